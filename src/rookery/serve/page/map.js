/** The plane of the embedding: every post and person as a dot, and on it a reader, neighbours and first posts. */

import { byId } from "./dom.js";
import { topicHue } from "./posts.js";

const MARGIN = 0.04; // of the side, left free around the dots
const REACH_PX = 14; // a pointer this near to a dot means it
const CLOSE_SHARE = 0.02; // of the posts are in view when zoomed in

/** Draws into the page's canvas; ``show(marks)`` with {user, neighbors: [id], posts: [id], pointed: id or null}. */
export class EmbeddingMap {
  constructor(points, describe) {
    this.describe = describe;
    this.posts = points.posts;
    this.users = points.users;
    this.postRow = rowsOf(points.posts.id);
    this.userRow = rowsOf(points.users.id);
    this.whole = squareAround([...points.posts.x, ...points.users.x], [...points.posts.y, ...points.users.y]);
    this.marks = { user: null, neighbors: [], posts: [], pointed: null };
    this.canvas = byId("map");
    this.zoomed = false;
    this.backdrop = null;
    this.canvas.addEventListener("pointermove", (event) => this.tell(event));
    this.canvas.addEventListener("pointerleave", () => (byId("map-tip").hidden = true));
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  show(marks) {
    const moved = this.zoomed && marks.user !== undefined && marks.user !== this.marks.user;
    Object.assign(this.marks, marks);
    if (moved) this.backdrop = null;
    this.draw();
  }

  zoom(on) {
    this.zoomed = on;
    this.redraw();
  }

  redraw() {
    this.backdrop = null;
    this.draw();
  }

  /** The marks change with every slider; the thousands of dots beneath are kept as a picture. */
  draw() {
    const side = this.canvas.clientWidth;
    if (!side) return;
    const pixels = Math.round(side * devicePixelRatio);
    if (!this.backdrop || this.canvas.width !== pixels) {
      this.canvas.width = this.canvas.height = pixels;
      this.view = this.zoomed ? this.closeView() : this.whole;
      this.backdrop = this.paintDots(pixels);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, pixels, pixels);
    pen.drawImage(this.backdrop, 0, 0);
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    this.paintMarks(pen, side);
  }

  paintDots(pixels) {
    const sheet = Object.assign(document.createElement("canvas"), { width: pixels, height: pixels });
    const pen = sheet.getContext("2d");
    pen.scale(devicePixelRatio, devicePixelRatio);
    const side = pixels / devicePixelRatio;
    const style = getComputedStyle(this.canvas);
    const light = style.getPropertyValue("--dot-light");
    const radius = this.zoomed ? 2.2 : Math.max(0.9, Math.min(2, 90 / Math.sqrt(this.posts.id.length)));
    pen.globalAlpha = Number(style.getPropertyValue("--dot-alpha"));
    pen.fillStyle = style.getPropertyValue("--shade");
    for (let row = 0; row < this.users.id.length; row++) disc(pen, this.place(this.users, row, side), radius * 0.7);
    for (let row = 0; row < this.posts.id.length; row++) {
      pen.fillStyle = `hsl(${topicHue(this.posts.topic[row])} 55% ${light})`;
      disc(pen, this.place(this.posts, row, side), radius);
    }
    return sheet;
  }

  paintMarks(pen, side) {
    const style = getComputedStyle(this.canvas);
    const [ink, paper, accent, warm] = ["--ink", "--card", "--accent", "--warm"].map((name) => style.getPropertyValue(name));
    for (const at of this.placesOf(this.marks.posts, this.postRow, this.posts, side)) ring(pen, at, 3.6, accent, paper);
    for (const at of this.placesOf(this.marks.neighbors, this.userRow, this.users, side)) ring(pen, at, 3.6, warm, paper);
    for (const at of this.placesOf([this.marks.user], this.userRow, this.users, side)) ring(pen, at, 7, ink, paper);
    for (const at of this.placesOf([this.marks.pointed], this.postRow, this.posts, side)) {
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.beginPath();
      pen.arc(at[0], at[1], 9, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  placesOf(ids, rows, points, side) {
    return ids.filter((id) => rows.has(id)).map((id) => this.place(points, rows.get(id), side));
  }

  place(points, row, side) {
    const { left, top, size } = this.view;
    const free = MARGIN * side;
    const scale = (side - 2 * free) / size;
    return [free + (points.x[row] - left) * scale, free + (points.y[row] - top) * scale];
  }

  /** A square around the reader that holds the nearest posts. */
  closeView() {
    const row = this.userRow.get(this.marks.user);
    if (row === undefined) return this.whole;
    const [x, y] = [this.users.x[row], this.users.y[row]];
    const distances = this.posts.x.map((each, number) => Math.max(Math.abs(each - x), Math.abs(this.posts.y[number] - y)));
    distances.sort((a, b) => a - b);
    const reach = distances[Math.min(distances.length - 1, Math.max(30, Math.round(CLOSE_SHARE * distances.length)))];
    return { left: x - reach, top: y - reach, size: 2 * reach };
  }

  tell(event) {
    const side = this.canvas.clientWidth;
    const tip = byId("map-tip");
    const nearest = this.nearest(event.offsetX, event.offsetY, side);
    tip.hidden = !nearest;
    if (!nearest) return;
    tip.textContent = this.describe(nearest);
    tip.style.left = `${Math.min(event.offsetX, side - 150)}px`;
    tip.style.top = `${event.offsetY + 14}px`;
  }

  nearest(x, y, side) {
    let [best, found] = [REACH_PX ** 2, null];
    for (const [kind, points] of [["post", this.posts], ["user", this.users]]) {
      for (let row = 0; row < points.id.length; row++) {
        const at = this.place(points, row, side);
        const distance = (at[0] - x) ** 2 + (at[1] - y) ** 2;
        if (distance < best) [best, found] = [distance, { kind, id: points.id[row], topic: points.topic?.[row] }];
      }
    }
    return found;
  }
}

function rowsOf(ids) {
  return new Map(ids.map((id, row) => [id, row]));
}

function squareAround(xs, ys) {
  const [left, right] = extent(xs);
  const [top, bottom] = extent(ys);
  const size = Math.max(right - left, bottom - top) || 1;
  return { left: (left + right - size) / 2, top: (top + bottom - size) / 2, size };
}

/** Not Math.min(...values): that many arguments overflow the stack. */
function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

function disc(pen, [x, y], radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

function ring(pen, at, radius, color, paper) {
  pen.fillStyle = paper;
  disc(pen, at, radius + 1.6);
  pen.fillStyle = color;
  disc(pen, at, radius);
}
