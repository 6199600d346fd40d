/** The page: one state, fetched when the reader changes, ranked anew here whenever a weight or a switch does. */

import * as api from "./api.js";
import { ordersOf, renderColumns } from "./columns.js";
import { initialSettings, makeControls } from "./controls.js";
import { announce, byId, element, glide } from "./dom.js";
import { FAMILY_NAMES, count, topicName } from "./format.js";
import { EmbeddingMap } from "./map.js";
import { renderMetrics } from "./metrics.js";
import { makePicker } from "./picker.js";
import { fillCard, makeCard, scaleOf, topicMark } from "./posts.js";
import { rankByScore } from "./ranking.js";

const PAGE_LENGTH = 20; // posts shown at first and more with each "Show more"
const NEIGHBORS = 8;
const MARKED_POSTS = 20; // of the timeline, on the map

const state = {
  config: null, settings: null, user: null, posts: [], ranked: [], cards: new Map(), length: PAGE_LENGTH, map: null,
  fetching: null, metricsShown: false, allOpen: false,
};

// ---- starting --------------------------------------------------------------------------------------------------------

async function start() {
  byId("token-form").hidden = true;
  try {
    state.config = await api.getConfig();
  } catch (error) {
    fail(error);
    return;
  }
  state.settings = initialSettings(state.config);
  byId("version").textContent = state.config.version;
  byId("notice").hidden = true;
  makeControls(state.config, state.settings, () => render());
  byId("families").replaceChildren(...Object.entries(FAMILY_NAMES).map(([family, name]) => element("li", {}, element("i", { class: `swatch ${family}` }), name)));
  state.showUser = makePicker(chooseUser, fail);
  selectTab(location.hash.startsWith("#metrics") ? "metrics" : "timeline");
  loadMap();
  const asked = new URLSearchParams(location.hash.slice(1)).get("user");
  openReader(asked);
}

async function openReader(asked) {
  if (asked) {
    state.showUser(asked);
    chooseUser(asked);
    return;
  }
  try {
    const [first] = await api.getUsers("", 1);
    if (!first) return say("timeline-state", "This server knows no readers yet.");
    state.showUser(first.id);
    chooseUser(first.id);
  } catch (error) {
    fail(error);
  }
}

async function loadMap() {
  try {
    state.map = new EmbeddingMap(await api.getMap(), ({ kind, id, topic }) => (kind === "post" ? `${id} · ${topicName(topic)}` : id));
    showMarks();
  } catch (error) {
    byId("map-words").classList.remove("unseen");
    byId("map-words").textContent = `There is no map: ${error.message}`;
  }
}

// ---- a reader ----------------------------------------------------------------------------------------------------------

async function chooseUser(id) {
  state.fetching?.abort();
  const { signal } = (state.fetching = new AbortController());
  state.user = id;
  state.length = PAGE_LENGTH;
  showAddress();
  byId("layout").setAttribute("aria-busy", "true");
  say("timeline-state", "Ranking…");
  try {
    const [user, posts, neighbors] = await Promise.all([api.getUser(id, signal), api.getRankedCandidates(id, signal), api.getNeighbors(id, NEIGHBORS, signal)]);
    state.posts = posts;
    byId("notice").hidden = true;
    byId("oracle-switch").hidden = !posts[0]?.true_probabilities;
    showFacts(user);
    showNeighbors(neighbors);
    resetCards();
    render();
    announce(`${posts.length} posts ranked for ${id}.`);
  } catch (error) {
    if (error.name === "AbortError") return;
    state.posts = [];
    resetCards();
    render();
    fail(error);
  }
  byId("layout").removeAttribute("aria-busy");
}

function showFacts(user) {
  const facts = { favourites: user.favorites, following: user.following, followers: user.followers, candidates: state.posts.length };
  byId("user-facts").replaceChildren(...Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, count(value)))));
  const likes = user.topics.map(({ topic, favorites }) => element("li", {}, topicMark(topic), `${topicName(topic)} `, element("b", {}, count(favorites))));
  byId("topics").replaceChildren(...(likes.length ? likes : [element("li", {}, "no favourites yet")]));
}

function showNeighbors(neighbors) {
  state.neighbors = neighbors.map(({ id }) => id);
  byId("neighbors").replaceChildren(
    ...neighbors.map(({ id, score }) => {
      const meter = element("span", { class: "track", "aria-hidden": "true" }, element("i", {}));
      meter.firstChild.style.width = `${100 * Math.max(0, score)}%`;
      const button = element("button", { type: "button", "data-user": id, "aria-label": `read as ${id}, likeness ${score.toFixed(2)}`, onclick: () => readAs(id) }, element("span", {}, id), meter, element("span", { class: "number" }, score.toFixed(2)));
      return element("li", {}, button);
    }),
  );
}

function readAs(id) {
  state.showUser(id);
  chooseUser(id);
  byId("posts-title").focus();
}

// ---- the timeline ------------------------------------------------------------------------------------------------------

/** Rank all candidates under the settings and show the first; no request. */
function render() {
  const { posts, settings, config } = state;
  const rules = { ...config.author_diversity, outOfNetworkFactor: config.out_of_network_factor, diversity: settings.diversity, sources: settings.sources };
  const before = state.ranked.slice(0, state.length).map(({ post }) => post.post_id);
  state.ranked = rankByScore(posts, settings.weights, rules);
  const beside = settings.beside.size > 0;
  byId("layout").classList.toggle("beside", beside);
  byId("posts").hidden = beside;
  byId("columns").hidden = !beside;
  byId("open-all").hidden = beside;
  byId("families").hidden = beside;
  if (beside) renderColumns(byId("columns"), ordersOf(posts, state.ranked, settings, rules), state.length, { posts, settings, rules, config, point });
  else renderCards();
  showEnds();
  showMarks();
  tellMoves(before);
}

function renderCards() {
  const shown = state.ranked.slice(0, state.length);
  const context = { weights: state.settings.weights, config: state.config, scale: scaleOf(shown, state.settings.weights) };
  const list = byId("posts");
  const focused = document.activeElement;
  const cards = shown.map((row) => cardOf(row.post));
  glide(list, () => {
    list.replaceChildren(...cards);
    shown.forEach((row, number) => fillCard(cards[number], row, number + 1, context));
  });
  if (focused?.isConnected && list.contains(focused)) focused.focus({ preventScroll: true }); // moving a card takes its focus
}

function cardOf(post) {
  if (!state.cards.has(post.post_id)) {
    state.cards.set(post.post_id, makeCard(post, state.config, { point, opened: () => fillShown(post.post_id) }));
    state.cards.get(post.post_id).querySelector("details").open = state.allOpen || state.cards.size === 1;
  }
  return state.cards.get(post.post_id);
}

function fillShown(postId) {
  const shown = state.ranked.slice(0, state.length);
  const number = shown.findIndex(({ post }) => post.post_id === postId);
  if (number < 0) return;
  fillCard(state.cards.get(postId), shown[number], number + 1, { weights: state.settings.weights, config: state.config, scale: scaleOf(shown, state.settings.weights) });
}

function resetCards() {
  state.cards.clear();
  byId("posts").replaceChildren();
  state.ranked = [];
}

function showEnds() {
  const { posts, ranked, length } = state;
  byId("more").hidden = ranked.length <= length;
  byId("summary").textContent = ranked.length ? `The first ${Math.min(length, ranked.length)} of ${count(ranked.length)} candidates` : "";
  if (ranked.length) byId("timeline-state").hidden = true;
  else if (posts.length) say("timeline-state", "Both sources are switched off, or what is left of them is empty. Switch one on to see posts.");
  else say("timeline-state", "No posts for this reader: nothing recent from followed authors, and nothing near this taste. Choose another reader.");
}

function showMarks() {
  const shown = state.ranked.slice(0, MARKED_POSTS).map(({ post }) => post.post_id);
  state.map?.show({ user: state.user, neighbors: state.neighbors ?? [], posts: shown });
  if (state.map) byId("map-words").textContent = `The map shows ${state.user}, ${state.neighbors?.length ?? 0} neighbours and the first ${shown.length} posts among all others.`;
}

function point(postId) {
  state.map?.show({ pointed: postId });
  for (const row of byId("columns").querySelectorAll(".row")) row.classList.toggle("pointed", row.dataset.post === postId);
}

function tellMoves(before) {
  const after = state.ranked.slice(0, state.length).map(({ post }) => post.post_id);
  const moved = after.filter((id, place) => before[place] !== id).length;
  if (before.length) announce(moved ? `${moved} of the first ${after.length} places have changed.` : "The order is the same.");
}

// ---- states, tabs, keys ------------------------------------------------------------------------------------------------

function say(id, words) {
  byId(id).textContent = words;
  byId(id).hidden = false;
}

function fail(error) {
  if (!(error instanceof api.ApiError)) throw error; // our own mistake belongs in the console
  byId("timeline-state").hidden = true;
  if (error.status === 401) {
    askToken(error);
    return;
  }
  byId("notice").replaceChildren(element("p", {}, error.message), element("button", { class: "primary", onclick: retry }, "Try again"));
  byId("notice").hidden = false;
}

function retry() {
  byId("notice").hidden = true;
  if (state.user) chooseUser(state.user);
  else start();
}

function askToken(error) {
  byId("view-timeline").hidden = byId("view-metrics").hidden = byId("notice").hidden = true;
  byId("token-error").textContent = api.hasToken() ? error.message : "";
  byId("token-form").hidden = false;
  byId("token").focus();
}

async function showMetrics() {
  if (state.metricsShown) return;
  say("metrics-state", "Loading…");
  try {
    state.metricsShown = renderMetrics(await api.getMetrics());
    byId("metrics-state").hidden = state.metricsShown;
    if (!state.metricsShown) say("metrics-state", "This bundle was built without measurements.");
  } catch (error) {
    byId("metrics-state").hidden = true;
    fail(error);
  }
}

function selectTab(name) {
  for (const each of ["timeline", "metrics"]) {
    const chosen = each === name;
    byId(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${each}`).tabIndex = chosen ? 0 : -1;
    byId(`view-${each}`).hidden = !chosen;
  }
  if (name === "metrics") showMetrics();
  if (state.user) showAddress();
}

/** The address leads back to what is shown. */
function showAddress() {
  const metrics = byId("tab-metrics").getAttribute("aria-selected") === "true";
  history.replaceState(null, "", metrics ? "#metrics" : `#user=${encodeURIComponent(state.user)}`);
}

function wire() {
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.setToken(byId("token").value);
    location.reload();
  });
  for (const [name, other] of [["timeline", "metrics"], ["metrics", "timeline"]]) {
    byId(`tab-${name}`).addEventListener("click", () => selectTab(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      selectTab(other);
      byId(`tab-${other}`).focus();
    });
  }
  byId("more").addEventListener("click", () => {
    state.length += PAGE_LENGTH;
    render();
  });
  byId("open-all").addEventListener("click", (event) => {
    state.allOpen = !state.allOpen;
    event.target.setAttribute("aria-pressed", String(state.allOpen));
    for (const card of state.cards.values()) card.querySelector("details").open = state.allOpen;
  });
  byId("zoom").addEventListener("click", (event) => {
    const on = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", String(on));
    state.map?.zoom(on);
  });
  byId("posts").addEventListener("keydown", moveAmongPosts);
  byId("controls").open = matchMedia("(min-width: 820px)").matches; // on a phone the timeline comes first
}

/** Up and down on a post's summary go to the next post's. */
function moveAmongPosts(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target.tagName !== "SUMMARY") return;
  const card = event.target.closest(".post");
  const next = step > 0 ? card.nextElementSibling : card.previousElementSibling;
  next?.querySelector("summary").focus();
  event.preventDefault();
}

wire();
start();
