/** A post of the timeline: what it is, why it stands where it stands. */

import { element } from "./dom.js";
import { age, amount, familyOf, mediaName, percent, signed, sourceName, taskName, topicName, weight as written } from "./format.js";
import { contributions } from "./ranking.js";

const LEAST_SHOWN = 1e-5; // the left end of the logarithmic scale of probabilities; the right end is 1

/** The common scale of bars: the largest sums of positive and of negative parts, and the largest single part. */
export function scaleOf(ranked, weights) {
  let [up, down, part] = [1e-9, 0, 1e-9];
  for (const { post } of ranked) {
    const parts = Object.values(contributions(post.probabilities, weights));
    up = Math.max(up, sumOf(parts.filter((each) => each > 0)));
    down = Math.max(down, -sumOf(parts.filter((each) => each < 0)));
    part = Math.max(part, ...parts.map(Math.abs));
  }
  return { up, down, part };
}

/** An empty card; ``point(id or null)`` hears which post is pointed at. */
export function makeCard(post, config, { point, opened }) {
  const card = element("li", {
    class: "post", "data-post": post.post_id, "data-source": post.source,
    onpointerenter: () => point(post.post_id), onpointerleave: () => point(null),
    onfocusin: () => point(post.post_id), onfocusout: () => point(null),
  });
  const why = element("details", { class: "why", ontoggle: opened });
  why.append(element("summary", {}, element("span", { class: "strip" }), element("span", { class: "sparks", "aria-hidden": "true" }), element("span", { class: "hint" }, "why")));
  why.append(element("div", { class: "reasons" }));
  why.querySelector(".sparks").append(...config.tasks.map((task) => spark(task, post.probabilities[task])));
  card.append(
    element(
      "div",
      { class: "about" },
      element("span", { class: "place" }),
      element("h2", {}, post.author_id, " ", element("small", {}, post.post_id)),
      element("p", { class: "score" }),
      factsOf(post, config),
    ),
    why,
  );
  return card;
}

/** Bring a card up to date with its place and score. The table of reasons is filled when it is open. */
export function fillCard(card, row, place, { weights, config, scale }) {
  const { post, final } = row;
  const parts = contributions(post.probabilities, weights);
  card.querySelector(".place").textContent = place;
  const score = card.querySelector(".score");
  score.textContent = amount(final);
  score.classList.toggle("negative", final < 0);
  card.querySelector(".strip").replaceChildren(...strip(parts, scale));
  const why = card.querySelector("details");
  why.querySelector("summary").setAttribute("aria-label", `Why ${post.post_id} by ${post.author_id} is number ${place}, score ${amount(final)}`);
  if (why.open) why.querySelector(".reasons").replaceChildren(reasons(row, parts, weights, config, scale), factors(row));
}

/** One line for a post in columns beside each other. ``from`` is its place in the timeline; null says nothing of it. */
export function makeLine(row, place, score, from, config, point) {
  const { post } = row;
  return element(
    "li",
    { class: "row", "data-post": post.post_id, tabindex: 0, onpointerenter: () => point(post.post_id), onpointerleave: () => point(null), onfocusin: () => point(post.post_id), onfocusout: () => point(null) },
    element("span", { class: "place" }, String(place)),
    element("span", { class: "who" }, post.author_id),
    element("span", { class: "score" }, amount(score)),
    element("span", { class: "facts" }, topicMark(post.topic), `${age(post.created_at, config.now)} · ${sourceName(post.source)}`),
    from === null ? null : element("span", { class: "from" }, `For You ${from}`),
  );
}

export function topicMark(topic) {
  const mark = element("i", { class: "topic", "aria-hidden": "true" });
  mark.style.setProperty("--hue", topicHue(topic));
  return mark;
}

/** Topics whose names follow each other get hues far from each other: steps of the golden angle. */
export function topicHue(topic) {
  let number = 0;
  for (const letter of topic) number = (number * 10 + letter.charCodeAt(0)) % 100_003;
  return Math.round((number * 137.508) % 360);
}

function factsOf(post, config) {
  const words = [topicName(post.topic), mediaName(post.media), age(post.created_at, config.now)];
  return element("p", { class: "facts" }, element("span", { class: "source" }, sourceName(post.source)), topicMark(post.topic), words.join(" · "));
}

function logShare(probability) {
  return Math.max(0, 1 - Math.log10(Math.max(probability, LEAST_SHOWN)) / Math.log10(LEAST_SHOWN));
}

function spark(task, probability) {
  const bar = element("i", { class: familyOf(task) });
  bar.style.height = `${Math.max(8, 100 * logShare(probability))}%`;
  return bar;
}

/** Parts end to end: the negative ones to the left of zero, the positive ones to the right. */
function strip(parts, { up, down }) {
  const whole = up + down;
  const zero = (100 * down) / whole;
  const pieces = [];
  let [left, right] = [zero, zero];
  for (const [task, part] of Object.entries(parts)) {
    const width = (100 * Math.abs(part)) / whole;
    if (width < 0.05) continue; // less than half a pixel
    if (part < 0) left -= width;
    pieces.push(bar(`${familyOf(task)} ${part < 0 ? "takes" : ""}`, part < 0 ? left : right, width));
    if (part > 0) right += width;
  }
  pieces.push(bar("zero", zero, 0));
  return pieces;
}

function bar(names, left, width) {
  const piece = element("i", { class: names.trim() });
  piece.style.left = `${left}%`;
  piece.style.width = `${width}%`;
  return piece;
}

function reasons({ post }, parts, weights, config, scale) {
  const head = element("tr", {}, ...["engagement", "chance", "× weight", "adds"].map((name) => element("th", { scope: "col" }, name)));
  const rows = config.tasks.map((task) => reasonRow(task, post, weights[task], parts[task], scale));
  return element("table", {}, element("caption", { class: "unseen" }, `Probabilities of ${post.post_id} and what each adds`), element("thead", {}, head), element("tbody", {}, ...rows));
}

function reasonRow(task, post, weight, part, { part: largest }) {
  const chance = bar(familyOf(task), 0, 100 * logShare(post.probabilities[task]));
  const truth = post.true_probabilities ? bar("truth", 100 * logShare(post.true_probabilities[task]), 0) : null;
  const width = (50 * Math.abs(part)) / largest;
  const adds = bar(`${familyOf(task)} ${part < 0 ? "takes" : ""}`, part < 0 ? 50 - width : 50, width);
  return element(
    "tr",
    { "data-task": task },
    element("th", { scope: "row" }, taskName(task)),
    element("td", { class: "chance" }, element("span", { class: "track" }, chance, truth), element("span", { class: "number" }, percent(post.probabilities[task]))),
    element("td", { class: "times" }, written(weight)),
    element("td", { class: part < 0 ? "adds negative" : "adds" }, element("span", { class: "track middle" }, adds), element("span", { class: "number" }, signed(part))),
  );
}

/** The score as a product: sum × source × author. */
function factors({ base, networkFactor, diversityFactor, final, post }) {
  const line = element("p", { class: "product" }, "sum ", element("b", {}, amount(base)));
  if (networkFactor !== 1) line.append(" × ", element("b", {}, amount(networkFactor)), " discovered");
  if (diversityFactor !== 1) line.append(" × ", element("b", {}, amount(diversityFactor)), " author seen above");
  if (final !== base) line.append(" = ", element("b", {}, amount(final)));
  if (post.true_probabilities) line.append(element("small", {}, "The upright ticks are the true chances."));
  return line;
}

function sumOf(values) {
  return values.reduce((sum, value) => sum + value, 0);
}
