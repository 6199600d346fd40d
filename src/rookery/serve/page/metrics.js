/** The metrics page: tables of what was measured, training curves, reliability diagrams. */

import { curveChart, curveClass, reliabilityChart } from "./charts.js";
import { byId, element } from "./dom.js";
import { amount, taskName, tenths } from "./format.js";

/** Fill the page from the answer of /v1/metrics; whether there was anything to show. */
export function renderMetrics({ tables = [], training = [], reliability = [] }) {
  const parts = tables.map(table);
  if (training.length) parts.push(section("Training", "What was logged while the models learned.", training.map(curves)));
  for (const model of new Set(reliability.map((each) => each.model))) {
    const own = reliability.filter((each) => each.model === model && each.bins.length);
    parts.push(section(`Reliability, ${model}`, RELIABILITY_LEAD, own.map(diagram)));
  }
  byId("metrics").replaceChildren(...parts);
  return parts.length > 0;
}

const RELIABILITY_LEAD =
  "Each dot is a bin of rows of about equal weight: the mean prediction against the share that happened, with its 95% interval. " +
  "On the dashed line a prediction says what happens. A hollow dot saw no positive, or nothing else.";

function section(title, lead, figures) {
  return element("section", {}, element("h2", {}, title), element("p", { class: "lead" }, lead), element("div", { class: "grid" }, ...figures));
}

function curves(group) {
  const legend = group.curves.map((curve, number) => element("li", {}, element("i", { class: `dash ${curveClass(number)}` }), taskName(curve.name)));
  return element(
    "figure",
    { class: "panel" },
    element("h3", {}, group.title),
    curveChart(group.title, group),
    group.curves.length > 1 ? element("ul", { class: "legend" }, ...legend) : null,
  );
}

function diagram({ task, metrics, bins }) {
  const facts = `ratio ${amount(metrics.calibration)} · ECE ${amount(metrics.ece)}`;
  return element("figure", { class: "panel" }, element("h3", {}, taskName(task)), element("p", { class: "lead" }, facts), reliabilityChart(`Reliability of ${taskName(task)}`, bins));
}

function table({ title, lead, columns, rows, percent = [], bar = null }) {
  const head = element("tr", {}, ...columns.map((name, number) => (name ? element("th", { scope: "col", class: number ? "number" : false }, name) : element("td"))));
  const body = rows.map((row) => element("tr", {}, ...row.map((value, number) => cell(value, number, columns[number], percent, bar))));
  return element(
    "section",
    {},
    element("h2", {}, title),
    lead ? element("p", { class: "lead" }, lead) : null,
    element(
      "div",
      { class: "panel scroll", tabindex: 0, role: "region", "aria-label": title },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)),
    ),
  );
}

function cell(value, number, column, percent, bar) {
  if (number === 0) return element("th", { scope: "row" }, String(value));
  const node = element("td", { class: "number" }, valueWords(value, percent.includes(column)));
  if (column === bar && value !== null) {
    const track = element("span", { class: "track" }, element("i", { class: "approve" }));
    track.firstChild.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
    node.append(track);
  }
  return node;
}

function valueWords(value, percent) {
  if (typeof value === "string") return value;
  return percent && value !== null ? tenths(value) : amount(value);
}
