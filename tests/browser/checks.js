/* Looks at the page that is open. An expression: an object of checks, each of which returns what is wrong. */
({
  /**
   * Every visible piece of text whose colour and ground differ by less than WCAG 2.2 (1.4.3) asks. Grounds are added up
   * from the first opaque one; what is switched off is exempt. Text of an SVG has its colour in `fill`.
   */
  paleText() {
    const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = color;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      return [r / 255, g / 255, b / 255, a / 255];
    };
    const over = (top, under) => [0, 1, 2].map((n) => top[n] * top[3] + under[n] * (1 - top[3]));
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const ground = (node) => {
      const layers = [];
      for (let each = node; each; each = each.parentElement) layers.push(rgba(getComputedStyle(each).backgroundColor));
      return layers.reverse().reduce((under, top) => over(top, under), [1, 1, 1]);
    };
    const pale = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode.parentElement;
      if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest(":disabled, script, noscript")) continue;
      const style = getComputedStyle(node);
      const under = ground(node);
      const color = over(rgba(node instanceof SVGElement ? style.fill : style.color), under);
      const [dark, light] = [luminance(color), luminance(under)].sort((a, b) => a - b);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const ratio = (light + 0.05) / (dark + 0.05);
      if (ratio < (large ? 3 : 4.5)) pale.push([walker.currentNode.textContent.trim().slice(0, 40), Number(ratio.toFixed(2))]);
    }
    return pale;
  },

  /** Whatever can be pressed and is smaller than 24 px in a direction (WCAG 2.2, 2.5.8), its label included. */
  smallTargets() {
    return [...document.querySelectorAll("button, summary, input, [role=option]")]
    .filter((node) => node.checkVisibility())
    .map((node) => [node, (node.closest("label") ?? node).getBoundingClientRect()])
    .filter(([, box]) => box.width < 24 || box.height < 24)
    .map(([node, box]) => [node.id || node.className, box.width, box.height]);
  },

  /** Values that were not there, written out. */
  strayWords() {
    return document.documentElement.textContent.match(/undefined|NaN|null|\[object|Infinity/g) ?? [];
  },

  /** What acts without having a name, references to ids that are not there, ids that are there twice. */
  names() {
    const words = (id) => document.getElementById(id)?.textContent ?? "";
    const name = (node) =>
      node.getAttribute("aria-label") || (node.getAttribute("aria-labelledby") ?? "").split(" ").map(words).join("") ||
      [...(node.labels ?? [])].map((label) => label.textContent).join("") || node.textContent;
    const acting = "button, input, select, textarea, summary, a, [tabindex='0'], [role=img], [role=listbox], [role=tablist]";
    const nameless = [...document.querySelectorAll(acting)].filter((node) => node.checkVisibility() && !name(node).trim());
    const references = ["aria-labelledby", "aria-describedby", "aria-controls", "aria-activedescendant", "for"];
    const dangling = references.flatMap((kind) =>
      [...document.querySelectorAll(`[${kind}]`)].flatMap((node) =>
        node.getAttribute(kind).split(" ").filter((id) => !document.getElementById(id)).map((id) => `${kind}=${id}`)));
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    return [nameless.map((node) => node.outerHTML.slice(0, 80)), dangling, ids.filter((id, at) => ids.indexOf(id) !== at)];
  },
})
