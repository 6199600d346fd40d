/**
 * The order of a timeline from probabilities and weights: the formula of docs/timeline.md, on plain values.
 *
 * A post is {post_id, author_id, source, created_at, probabilities: {task: p}, true_probabilities: {task: p} or null}.
 * Rules are {decay, floor, outOfNetworkFactor, diversity: boolean, sources: Set of sources}.
 */

export const IN_NETWORK = "in_network";
export const OUT_OF_NETWORK = "out_of_network";

/** What each task adds to the score: {task: weight · probability}. */
export function contributions(probabilities, weights) {
  return Object.fromEntries(Object.entries(weights).map(([task, weight]) => [task, weight * probabilities[task]]));
}

/** Σ weight · probability, added in the order of the weights. */
export function weightedSum(probabilities, weights) {
  let sum = 0;
  for (const [task, weight] of Object.entries(weights)) sum += weight * probabilities[task];
  return sum;
}

/** (1 − floor) · decay^n + floor for the post with n posts of its author before it. */
export function diversityFactor(n, { decay, floor }) {
  return (1 - floor) * decay ** n + floor;
}

/**
 * Posts by final score, each as {post, base, networkFactor, diversityFactor, final}; equal ones keep their order.
 *
 * A factor applies to positive scores alone: it must never raise a post. Taking the best remaining post again and again
 * gives this same order, since an author's factors fall and so keep the order among the author's own posts.
 */
export function rankByScore(posts, weights, rules, key = "probabilities") {
  return scored(posts, weights, rules, key).sort((a, b) => b.final - a.final);
}

/** The same rows, newest first. */
export function rankByTime(posts, weights, rules) {
  const rows = scored(posts, weights, rules, "probabilities");
  // Times of one zone in ISO 8601 compare as strings, to the microsecond; Date knows milliseconds.
  return rows.sort((a, b) => (a.post.created_at < b.post.created_at) - (a.post.created_at > b.post.created_at));
}

/** Σ over the first k of score / log2(place + 1): what an order is worth when attention falls down the page. */
export function discountedValue(ranked, weights, k, key = "probabilities") {
  let value = 0;
  ranked.slice(0, k).forEach(({ post }, place) => {
    value += weightedSum(post[key], weights) / Math.log2(place + 2);
  });
  return value;
}

/** Rows in the order of the posts. */
function scored(posts, weights, rules, key) {
  const rows = posts
    .filter((post) => rules.sources.has(post.source))
    .map((post) => withNetworkFactor(post, weightedSum(post[key], weights), rules));
  return rules.diversity ? diversified(rows, rules) : rows;
}

function withNetworkFactor(post, base, rules) {
  const networkFactor = post.source === OUT_OF_NETWORK && base > 0 ? rules.outOfNetworkFactor : 1;
  return { post, base, networkFactor, diversityFactor: 1, final: base * networkFactor };
}

function diversified(rows, rules) {
  const before = new Map(); // posts of each author that score higher
  for (const row of [...rows].sort((a, b) => b.final - a.final)) {
    const n = before.get(row.post.author_id) ?? 0;
    before.set(row.post.author_id, n + 1);
    if (row.base <= 0) continue;
    row.diversityFactor = diversityFactor(n, rules);
    row.final *= row.diversityFactor;
  }
  return rows;
}
