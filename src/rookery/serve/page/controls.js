/** The sliders, presets and switches of what counts. They change one settings object and tell of it. */

import { byId, element } from "./dom.js";
import { familyOf, taskName, weight as written } from "./format.js";
import { IN_NETWORK, OUT_OF_NETWORK } from "./ranking.js";
import { SLIDER_END, placeOf, presetOf, weightAt } from "./weights.js";

const SWITCHES = {
  "in-network": (settings, on) => toggle(settings.sources, IN_NETWORK, on),
  "out-of-network": (settings, on) => toggle(settings.sources, OUT_OF_NETWORK, on),
  diversity: (settings, on) => (settings.diversity = on),
  "beside-recency": (settings, on) => toggle(settings.beside, "recency", on),
  "beside-oracle": (settings, on) => toggle(settings.beside, "oracle", on),
};

/** What a reader of the page may change; weights as the server has them. */
export function initialSettings(config) {
  return {
    weights: Object.fromEntries(config.tasks.map((task) => [task, config.weights[task]])),
    sources: new Set([IN_NETWORK, OUT_OF_NETWORK]),
    diversity: true,
    beside: new Set(),
  };
}

/** Build the controls for ``settings``; ``changed()`` follows every change. */
export function makeControls(config, settings, changed) {
  const presets = { ...config.presets };
  const rows = new Map();
  const showAll = () => {
    for (const [task, row] of rows) showWeight(row, settings.weights[task]);
    markPreset(presetOf(settings.weights, presets), settings, config);
  };
  const setWeight = (task, value) => {
    settings.weights[task] = value;
    showAll();
    changed();
  };
  const setAll = (weights) => {
    for (const task of config.tasks) settings.weights[task] = weights[task];
    showAll();
    changed();
  };
  for (const task of config.tasks) rows.set(task, sliderRow(task, (value) => setWeight(task, value)));
  byId("sliders").replaceChildren(...[...rows.values()].map((row) => row.node));
  byId("presets").replaceChildren(
    ...Object.keys(presets).map((name) =>
      element("button", { type: "button", "data-preset": name, "aria-pressed": "false", onclick: () => setAll(presets[name]) }, name),
    ),
    element("button", { type: "button", id: "reset", class: "reset", onclick: () => setAll(config.weights) }, "Reset"),
  );
  for (const [id, apply] of Object.entries(SWITCHES)) {
    byId(id).addEventListener("change", (event) => {
      apply(settings, event.target.checked);
      changed();
    });
  }
  showAll();
}

function toggle(set, member, on) {
  if (on) set.add(member);
  else set.delete(member);
}

function sliderRow(task, setWeight) {
  const name = taskName(task);
  const slider = element("input", {
    type: "range", id: `weight-${task}`, "data-task": task, min: -SLIDER_END, max: SLIDER_END, step: 1,
    oninput: (event) => setWeight(weightAt(Number(event.target.value))),
  });
  const exact = element("input", {
    type: "number", step: "any", "data-task": task, "aria-label": `weight of ${name}`,
    onchange: (event) => setWeight(event.target.valueAsNumber || 0),
  });
  const label = element("label", { for: slider.id }, element("i", { class: `swatch ${familyOf(task)}` }), name);
  return { slider, exact, node: element("div", { class: "weight" }, label, exact, slider) };
}

function showWeight({ slider, exact, node }, value) {
  slider.value = placeOf(value);
  slider.setAttribute("aria-valuetext", `weight ${written(value)}`);
  exact.value = value;
  // The filled part of the track runs from the middle, where the weight is zero.
  const share = (Number(slider.value) / SLIDER_END) * 50;
  node.style.setProperty("--from", `${50 + Math.min(0, share)}%`);
  node.style.setProperty("--to", `${50 + Math.max(0, share)}%`);
}

function markPreset(current, settings, config) {
  for (const button of byId("presets").querySelectorAll("[data-preset]")) {
    button.setAttribute("aria-pressed", String(button.dataset.preset === current));
  }
  byId("reset").disabled = config.tasks.every((task) => settings.weights[task] === config.weights[task]);
}
