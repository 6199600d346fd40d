/** Choosing a reader: a text box with a list beneath, after the combobox pattern of ARIA 1.2. */

import { getUsers } from "./api.js";
import { byId, element } from "./dom.js";
import { count } from "./format.js";

const LIMIT = 20;
const PAUSE_MS = 120; // of typing before the server is asked

/** Wire the box. ``choose(id)`` hears each choice, ``fail(error)`` what the server refused. Returns ``show(id)``. */
export function makePicker(choose, fail) {
  const box = byId("user");
  const list = byId("user-list");
  const state = { users: [], active: -1, chosen: "", asked: null, timer: 0 };

  const open = (shown) => {
    list.hidden = !shown;
    box.setAttribute("aria-expanded", String(shown));
    if (!shown) activate(-1);
  };
  const activate = (place) => {
    state.active = place;
    [...list.querySelectorAll("[role=option]")].forEach((option, number) => {
      option.setAttribute("aria-selected", String(number === place));
      if (number === place) option.scrollIntoView({ block: "nearest" });
    });
    if (place < 0) box.removeAttribute("aria-activedescendant");
    else box.setAttribute("aria-activedescendant", `user-option-${place}`);
  };
  const take = (id) => {
    show(id);
    open(false);
    choose(id);
  };
  const show = (id) => {
    state.chosen = id;
    box.value = id;
  };
  const search = async () => {
    state.asked?.abort();
    state.asked = new AbortController();
    try {
      const prefix = box.value === state.chosen ? "" : box.value.trim();
      state.users = await getUsers(prefix, LIMIT, state.asked.signal);
    } catch (error) {
      if (error.name !== "AbortError") fail(error);
      return;
    }
    list.replaceChildren(...(state.users.length ? state.users.map(option) : [nobody(box.value)]));
    open(document.activeElement === box);
    activate(state.users.length && box.value !== state.chosen ? 0 : -1);
  };
  const option = (user, place) =>
    element(
      "li",
      // A click must not take the focus from the box before it is heard.
      { id: `user-option-${place}`, role: "option", "aria-selected": "false", onmousedown: (event) => event.preventDefault(), onclick: () => take(user.id) },
      element("span", {}, user.id),
      element("small", {}, `${count(user.favorites)} favourites · follows ${count(user.following)}`),
    );

  box.addEventListener("focus", () => {
    box.select();
    search();
  });
  box.addEventListener("input", () => {
    clearTimeout(state.timer);
    state.timer = setTimeout(search, PAUSE_MS);
  });
  box.addEventListener("blur", () => {
    open(false);
    box.value = state.chosen;
  });
  box.addEventListener("keydown", (event) => {
    if (!pressed(event, state, list, { search, activate, take, open })) return;
    event.preventDefault();
  });
  return show;
}

/** Act on a key of the box; whether it was one of ours. */
function pressed(event, state, list, { search, activate, take, open }) {
  const last = state.users.length - 1;
  switch (event.key) {
    case "ArrowDown":
    case "ArrowUp":
      if (list.hidden) search();
      else if (last >= 0) activate(moved(state.active, event.key === "ArrowDown" ? 1 : -1, last));
      return true;
    case "Enter":
      if (list.hidden || state.active < 0) return false;
      take(state.users[state.active].id);
      return true;
    case "Escape":
      open(false);
      return true;
    default:
      return false;
  }
}

function moved(place, step, last) {
  if (place < 0) return step > 0 ? 0 : last;
  return (place + step + last + 1) % (last + 1);
}

function nobody(prefix) {
  return element("li", { class: "nobody", role: "option", "aria-disabled": "true", "aria-selected": "false" }, `No reader begins with “${prefix}”.`);
}
