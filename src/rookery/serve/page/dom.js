/** Elements from plain values; motion that heeds the reader's wish. */

const SVG = "http://www.w3.org/2000/svg";
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** ``element("p", {class: "lead", hidden: false}, "words", node)``; false and null leave an attribute out. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Change the order or content of ``list`` by ``change`` and let the children that stay glide to their new places. */
export function glide(list, change) {
  const places = new Map([...list.children].map((child) => [child, child.getBoundingClientRect().top]));
  change();
  if (stillness.matches) return;
  for (const child of list.children) {
    const before = places.get(child);
    const moved = before === undefined ? 0 : before - child.getBoundingClientRect().top;
    if (before === undefined) child.animate({ opacity: [0, 1] }, { duration: 160 });
    else if (Math.abs(moved) > 1) slide(child, moved);
  }
}

function slide(child, distance) {
  // A post from far away enters from just outside: a long flight is a blur.
  const start = Math.sign(distance) * Math.min(Math.abs(distance), 600);
  child.animate({ transform: [`translateY(${start}px)`, "none"] }, { duration: 260, easing: "cubic-bezier(.2,.7,.2,1)" });
}

/** Say something to those who listen instead of look; the last of quick messages wins. */
export function announce(words) {
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => {
    byId("announcer").textContent = words;
  }, 400);
}
