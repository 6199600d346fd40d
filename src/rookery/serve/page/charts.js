/** Drawings of the metrics page: curves over steps and reliability diagrams, as SVG that follows the page's colours. */

import { svg } from "./dom.js";
import { amount, percent } from "./format.js";

const WIDTH = 340;
const HEIGHT = 210;
const FRAME = { left: 46, right: WIDTH - 8, top: 10, bottom: HEIGHT - 34 };
const Z = 1.959964; // of a 95% interval

/** Curves [{name, points: [[x, y]]}] in one frame; what a logarithmic frame cannot hold is left out. */
export function curveChart(title, { curves: given, log }) {
  const curves = given.map(({ name, points }) => ({ name, points: points.filter(([, y]) => y !== null && (!log || y > 0)) }));
  const points = curves.flatMap((curve) => curve.points);
  const across = scale(extent(points.map(([x]) => x)), [FRAME.left, FRAME.right]);
  const up = scale(extent(points.map(([, y]) => y)), [FRAME.bottom, FRAME.top], log ? Math.log10 : identity);
  const lines = curves.map((curve, number) =>
    svg("path", { class: `curve ${curveClass(number)}`, d: path(curve.points.map(([x, y]) => [across(x), up(y)])) }),
  );
  const drawn = curves.filter((curve) => curve.points.length);
  const words = drawn.map(({ name, points: own }) => `${name}: from ${amount(own[0][1])} to ${amount(own.at(-1)[1])}`).join("; ");
  return drawing(title, words, [
    ...frame(ticksOf(across, 4), log ? logTicks(up) : ticksOf(up, 6), compact, compact),
    ...lines,
    label((FRAME.left + FRAME.right) / 2, HEIGHT - 4, "step"),
  ]);
}

/** Eight colours, then the same dashed. */
export function curveClass(number) {
  return number < 8 ? `c${number}` : `c${number % 8} dashed`;
}

/** Observed share against predicted one by log-odds; the diagonal is right, whiskers are 95% intervals. */
export function reliabilityChart(title, bins) {
  const shares = bins.flatMap((bin) => [bin.mean_prediction, bin.ctr]).filter((share) => share > 0 && share < 1);
  const [least, most] = extent(shares.map(logit));
  const domain = [expit(least - 0.35), expit(most + 0.35)];
  const across = scale(domain, [FRAME.left, FRAME.right], logit);
  const up = scale(domain, [FRAME.bottom, FRAME.top], logit);
  const ticks = probabilityTicks(domain);
  const words = bins.map((bin) => `predicted ${percent(bin.mean_prediction)}, observed ${percent(bin.ctr)}`).join("; ");
  return drawing(title, words, [
    ...frame(spread(ticks, across, 44), spread(ticks, up, 24), percent, percent),
    svg("line", { class: "diagonal", x1: FRAME.left, y1: FRAME.bottom, x2: FRAME.right, y2: FRAME.top }),
    ...bins.flatMap((bin) => mark(bin, across, up, domain)),
    label((FRAME.left + FRAME.right) / 2, HEIGHT - 4, "predicted"),
    svg("text", { class: "axis", transform: `translate(9 ${(FRAME.top + FRAME.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "observed"),
  ]);
}

/** The 95% interval of a share observed in ``count`` rows (Wilson 1927). */
export function wilson(share, count) {
  const spreadOf = Z * Math.sqrt((share * (1 - share)) / count + Z ** 2 / (4 * count ** 2));
  const [center, whole] = [share + Z ** 2 / (2 * count), 1 + Z ** 2 / count];
  return [Math.max(0, (center - spreadOf) / whole), Math.min(1, (center + spreadOf) / whole)];
}

function mark(bin, across, up, [least, most]) {
  const inside = (share) => Math.min(most, Math.max(least, share));
  const [low, high] = wilson(bin.ctr, bin.count);
  const x = across(inside(bin.mean_prediction));
  const hollow = bin.ctr === 0 || bin.ctr === 1; // on the edge: its log-odds are infinite
  return [
    svg("line", { class: "whisker", x1: x, x2: x, y1: up(inside(low)), y2: up(inside(high)) }),
    svg("circle", { class: hollow ? "hollow" : "dot", cx: x, cy: up(inside(bin.ctr)), r: 3.2 }),
  ];
}

function drawing(title, words, parts) {
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${words}` }, ...parts);
}

function frame(xs, ys, xWords, yWords) {
  return [
    ...ys.map(([y, at]) => svg("line", { class: "grid", x1: FRAME.left, x2: FRAME.right, y1: at, y2: at, "data-value": y })),
    ...ys.map(([y, at]) => label(FRAME.left - 6, at + 3.5, yWords(y), "end")),
    svg("line", { class: "edge", x1: FRAME.left, x2: FRAME.right, y1: FRAME.bottom, y2: FRAME.bottom }),
    ...xs.map(([x, at]) => label(at, FRAME.bottom + 14, xWords(x))),
  ];
}

function label(x, y, words, anchor = "middle") {
  return svg("text", { x, y, "text-anchor": anchor }, words);
}

function path(points) {
  return points.map(([x, y], number) => `${number ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function scale([low, high], [from, to], transform = identity) {
  const [start, end] = [transform(low), transform(high)];
  const map = (value) => from + ((transform(value) - start) / (end - start || 1)) * (to - from);
  return Object.assign(map, { low, high });
}

/** Round values: 1, 2 or 5 times a power of ten apart. */
function ticksOf(map, wanted) {
  const rough = (map.high - map.low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const ticks = [];
  for (let n = Math.ceil(map.low / step - 1e-9); n * step <= map.high + step * 1e-9; n++) ticks.push([n * step, map(n * step)]);
  return ticks;
}

function logTicks(map) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(map.low)); power <= Math.ceil(Math.log10(map.high)); power++) {
    for (const factor of [1, 3]) ticks.push(factor * 10 ** power);
  }
  return spread(ticks.filter((value) => value >= map.low && value <= map.high), map, 22);
}

function probabilityTicks([low, high]) {
  const halves = [1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99];
  return halves.filter((value) => value > low && value < high);
}

function spread(values, map, gap) {
  const kept = [];
  for (const value of values) {
    if (!kept.length || Math.abs(map(value) - kept.at(-1)[1]) >= gap) kept.push([value, map(value)]);
  }
  return kept;
}

function compact(value) {
  if (Math.abs(value) >= 1000) return `${Number((value / 1000).toPrecision(3))}k`;
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function identity(value) {
  return value;
}

function logit(share) {
  return Math.log(share / (1 - share));
}

function expit(odds) {
  return 1 / (1 + Math.exp(-odds));
}
