/** Requests to the server that this page came from. The token, where one is needed, lives as long as the tab. */

const TOKEN_KEY = "rookery.token";

/** An answer other than 2xx, or none; ``status`` is 0 where the server was not reached. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN_KEY, token);
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN_KEY) !== null;
}

export function getConfig() {
  return request("v1/config");
}

export async function getUsers(prefix, limit, signal) {
  const query = new URLSearchParams({ prefix, limit });
  return (await request(`v1/users?${query}`, { signal })).users;
}

export function getUser(id, signal) {
  return request(`v1/users/${encodeURIComponent(id)}`, { signal });
}

/** All candidates of a user with their probabilities, in the order of the candidates: it decides between equal scores. */
export async function getRankedCandidates(userId, signal) {
  const { candidates } = await post("v1/candidates", { user_id: userId }, signal);
  if (!candidates.length) return [];
  const postIds = candidates.map((candidate) => candidate.post_id);
  const { posts } = await post("v1/rank", { user_id: userId, post_ids: postIds }, signal);
  const byId = new Map(posts.map((each) => [each.post_id, each]));
  return postIds.map((id) => byId.get(id));
}

export async function getNeighbors(userId, k, signal) {
  return (await post("v1/neighbors", { user_id: userId, k }, signal)).neighbors;
}

export function getMap() {
  return request("v1/map");
}

export function getMetrics() {
  return request("v1/metrics");
}

function post(path, body, signal) {
  return request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (hasToken()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(TOKEN_KEY)}`);
  const response = await reach(path, { ...options, headers });
  if (!response.ok) throw new ApiError(response.status, await messageOf(response));
  return response.json();
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it still running?");
  }
}

async function messageOf(response) {
  if (response.headers.get("Content-Type")?.startsWith("application/json")) {
    return (await response.json()).error.message;
  }
  return `The server answered ${response.status}.`; // not from the server itself: a proxy before it
}
