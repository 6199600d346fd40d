/** How a slider's place becomes a weight: weights span −369 to 75 and .005 matters, so equal steps are equal ratios. */

export const SLIDER_END = 100; // places to either side of zero
const LARGEST = 1000;
const SMALLEST = 0.01; // below it the scale is linear, so that it passes through zero
const DECADES = Math.log10(1 + LARGEST / SMALLEST);

/** The weight of a slider's place in [−100, 100], to three digits. */
export function weightAt(place) {
  const size = SMALLEST * (10 ** ((Math.abs(place) / SLIDER_END) * DECADES) - 1);
  return Math.sign(place) * Number(size.toPrecision(3));
}

/** The place nearest to a weight; weights beyond ±1000 lie at the end. */
export function placeOf(weight) {
  const share = Math.log10(1 + Math.abs(weight) / SMALLEST) / DECADES;
  return Math.sign(weight) * Math.min(SLIDER_END, Math.round(share * SLIDER_END));
}

/** The name of the preset that has exactly these weights, or null. */
export function presetOf(weights, presets) {
  const same = ([, preset]) => Object.keys(weights).every((task) => preset[task] === weights[task]);
  return Object.entries(presets).find(same)?.[0] ?? null;
}
