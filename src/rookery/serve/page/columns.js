/** The timeline beside other orders of the same candidates: newest first, and by the true chances where they are known. */

import { element } from "./dom.js";
import { makeLine } from "./posts.js";
import { discountedValue, rankByScore, rankByTime } from "./ranking.js";

const WORTH_OF = 20; // first posts

/** The columns to show: [{name, title, ranked}], the timeline first. */
export function ordersOf(posts, ranked, settings, rules) {
  const orders = [{ name: "score", title: "For You", ranked }];
  if (settings.beside.has("recency")) orders.push({ name: "recency", title: "Newest first", ranked: rankByTime(posts, settings.weights, rules) });
  if (settings.beside.has("oracle")) orders.push({ name: "oracle", title: "Best order there is", ranked: oracle(posts, settings.weights, rules) });
  return orders;
}

/** By the true score alone: no other order of these candidates is worth more. */
function oracle(posts, weights, rules) {
  return rankByScore(posts, weights, { ...rules, diversity: false, outOfNetworkFactor: 1 }, "true_probabilities");
}

export function renderColumns(place, orders, length, { posts, settings, rules, config, point }) {
  const truthKnown = Boolean(posts[0]?.true_probabilities);
  const key = truthKnown ? "true_probabilities" : "probabilities";
  const best = truthKnown ? discountedValue(oracle(posts, settings.weights, rules), settings.weights, WORTH_OF, key) : null;
  const places = new Map(orders[0].ranked.map(({ post }, number) => [post.post_id, number + 1]));
  place.replaceChildren(
    ...orders.map(({ name, title, ranked }) => {
      const worth = discountedValue(ranked, settings.weights, WORTH_OF, key);
      const from = (post) => (name === "score" ? null : places.get(post.post_id));
      const lines = ranked.slice(0, length).map((row, number) => makeLine(row, number + 1, row.final, from(row.post), config, point));
      return element(
        "section",
        { class: "column", "data-order": name, "aria-labelledby": `column-${name}` },
        element("h2", { id: `column-${name}` }, title),
        element("p", { class: "lead" }, worthWords(worth, best, truthKnown)),
        element("ol", { class: "rows", "aria-labelledby": `column-${name}` }, ...lines),
      );
    }),
  );
}

function worthWords(worth, best, truthKnown) {
  const value = `First ${WORTH_OF} worth ${worth.toFixed(2)}`;
  if (!truthKnown) return `${value} by the model’s own chances`;
  return best > 0 ? `${value}, ${Math.round((100 * worth) / best)}% of the best` : value;
}
