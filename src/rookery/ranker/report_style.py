"""The style sheet of a report: one column on a phone, several on a screen, light or dark as the reader has it."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --card: #ffffff; --ink: #1d2129; --soft: #596270; --rule: #e3e4e0; --grid: #ededea;
  --accent: #1f5fa8; --warm: #b4550f; --shade: #8b929c;
  --c0: #1f5fa8; --c1: #b4550f; --c2: #17805d; --c3: #a8326e;
  --c4: #6a4fb3; --c5: #8a6d00; --c6: #2a8494; --c7: #6b6f76;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --ink: #e7e8ea; --soft: #a3abb8; --rule: #2e333c; --grid: #262a32;
    --accent: #7fb2f0; --warm: #f0a05a; --shade: #8a919d;
    --c0: #7fb2f0; --c1: #f0a05a; --c2: #5ec9a1; --c3: #ef86b5;
    --c4: #b7a0f5; --c5: #dcc04a; --c6: #6fcbdc; --c7: #b3b8c0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1260px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header p.kicker { margin: 0; color: var(--soft); font-size: .875rem; overflow-wrap: anywhere; }
h1 { margin: .1rem 0 1.4rem; font-size: 1.9rem; font-weight: 650; line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 3rem 0 .3rem; font-size: 1.2rem; font-weight: 650; letter-spacing: -.005em; }
h3 { margin: 0 0 .15rem; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; }
p.lead, figcaption { margin: 0 0 1rem; color: var(--soft); font-size: .875rem; max-width: 46rem; }
figcaption { margin: 0 0 .5rem; }
a { color: var(--accent); }
dl.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.4rem; margin: 0; }
dl.facts dt { color: var(--soft); font-size: .8125rem; }
dl.facts dd { margin: 0; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
dl.facts small { display: block; color: var(--soft); font-size: .78rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .8125rem; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { padding: .45rem .5rem; text-align: right; vertical-align: top; white-space: nowrap; line-height: 1.35; }
thead th { color: var(--soft); font-weight: 500; font-size: .8125rem; vertical-align: bottom; }
thead tr:last-child th { border-bottom: 1px solid var(--rule); }
thead th.group { text-align: left; padding-bottom: 0; font-weight: 600; color: var(--ink); }
th.first, td.first { border-left: 1px solid var(--rule); }
tbody th, thead th.corner { position: sticky; left: 0; background: var(--card); text-align: left; font-weight: 600; }
tbody tr + tr th, tbody tr + tr td { border-top: 1px solid var(--grid); }
tr.mean th, tr.mean td { border-top: 1px solid var(--rule) !important; }
td small { display: block; color: var(--soft); font-size: .68rem; }
.none { color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .9rem .9rem .6rem; min-width: 0; }
figure, .scroll { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
figure > svg { display: block; width: 100%; height: auto; }
ul.legend {
  display: flex; flex-wrap: wrap; gap: .15rem .9rem; margin: .3rem 0 .2rem; padding: 0; list-style: none;
  color: var(--soft); font-size: .78rem; overflow-wrap: anywhere;
}
ul.legend svg.swatch { width: 22px; height: 10px; margin-right: .35rem; vertical-align: middle; }
ul.legend i { display: inline-block; width: 12px; height: 10px; margin-right: .35rem; border-radius: 2px; }
i.positives { background: color-mix(in srgb, var(--warm) 32%, transparent); border: 1.5px solid var(--warm); }
i.negatives { background: color-mix(in srgb, var(--shade) 45%, transparent); }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
details > .scroll { margin-top: .7rem; }
dl.terms { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.2rem; font-size: .875rem; }
dl.terms dt { font-weight: 600; }
dl.terms dd { margin: 0; color: var(--soft); }
svg text { font-family: inherit; fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
svg text.label { fill: var(--ink); font-size: 12px; }
svg text.axis { font-size: 11px; }
svg text.note { font-size: 10px; opacity: .85; }
line.grid { stroke: var(--grid); }
line.edge { stroke: var(--shade); stroke-width: 1; }
line.diagonal, line.reference { stroke: var(--shade); stroke-width: 1; stroke-dasharray: 3 3; }
line.whisker { stroke: var(--accent); stroke-width: 1.5; opacity: .55; }
circle.dot { fill: var(--accent); }
circle.hollow { fill: var(--card); stroke: var(--accent); stroke-width: 1.75; }
path.positives { fill: color-mix(in srgb, var(--warm) 22%, transparent); stroke: var(--warm); stroke-width: 1.5; }
path.negatives { fill: color-mix(in srgb, var(--shade) 40%, transparent); }
.curve { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.curve.dashed { stroke-dasharray: 5 3; }
.curve.point { stroke-width: 3; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
@media (max-width: 560px) {
  main { padding-top: 1.5rem; }
  h1 { font-size: 1.5rem; }
  dl.facts { gap: .8rem 1.6rem; }
  dl.facts dd { font-size: 1.1rem; }
  dl.terms { grid-template-columns: 1fr; gap: 0; }
  dl.terms dd { margin-bottom: .6rem; }
}
@media print { body { background: #fff; } figure, tr { break-inside: avoid; } }
""".strip()
