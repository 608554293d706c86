// Makes a report's page interactive: tables that are sorted by a click on a column's head, and curves of which the values
// at a time or a number of tokens are read with the pointer. Without scripts, the page shows the tables and pictures.
// All texts are set as text, never as HTML.
"use strict";

function make(name, parent, attributes = {}, text = "") {
  const isDrawn = ["svg", "g", "line", "path", "circle", "text"].includes(name);
  const node = isDrawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  parent.append(node);
  return node;
}

// Tables

function number(text) {
  const found = text.replaceAll(",", "").match(/^[+-]?[\d.]+(e[+-]?\d+)?\s*([KM]?)/i);
  return found ? parseFloat(found[0]) * ({ K: 1e3, M: 1e6 }[found[2]] || 1) : NaN;
}

function sortable(table) {
  const heads = [...(table.tHead?.rows[0].cells || [])];
  if (!table.tBodies[0] || table.tBodies[0].rows.length < 2 || !heads.some((head) => head.textContent)) return;
  heads.forEach((head, place) => {
    head.classList.add("sortable");
    head.title = "sort";
    head.tabIndex = 0;
    const sort = () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [row.cells[place].textContent.trim(), row]);
      const isNumeric = head.style.textAlign === "right";
      const key = (text) => (isNumeric ? number(text) : text);
      const isMissing = (text) => (isNumeric ? isNaN(number(text)) : !text);
      rows.sort(([a], [b]) => {
        if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
        return turn * (isNumeric ? key(a) - key(b) : a.localeCompare(b, undefined, { numeric: true }));
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}

// Curves

const WIDTH = 1100, HEIGHT = 430, LEFT = 60, RIGHT = 15, TOP = 12, BOTTOM = 45;
const UNITS = { seconds: ["training time (s)", 1], tokens: ["tokens seen (millions)", 1e6] };

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at++) found.push(at * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return found.map((value) => [value, value.toFixed(digits)]);
}

function valueAt(xs, ys, x) {
  if (!xs.length || x < xs[0] || x > xs[xs.length - 1]) return null;
  const next = Math.max(xs.findIndex((other) => other >= x), 1);
  if (xs.length === 1) return ys[0];
  const share = (x - xs[next - 1]) / (xs[next] - xs[next - 1] || 1);
  return ys[next - 1] + share * (ys[next] - ys[next - 1]);
}

function chart(image, data) {
  const figure = make("div", image.parentNode, { class: "chart" });
  image.hidden = true;
  let over = image.dataset.over;
  const hidden = new Set();
  const bar = make("div", figure, { class: "bar" });
  const buttons = Object.keys(UNITS).map((unit) => {
    const button = make("button", bar, { type: "button" }, unit === "seconds" ? "equal time" : "equal tokens");
    button.addEventListener("click", () => { over = unit; draw(); });
    return [unit, button];
  });
  const svg = make("svg", figure, { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": image.alt });
  const legend = make("div", figure, { class: "legend" });
  const entries = data.runs.map((run, place) => {
    const entry = make("button", legend, { type: "button", title: "show or hide" });
    make("span", entry, { class: "mark" }).style.background = run.color;
    make("span", entry, {}, run.name);
    const value = make("span", entry, { class: "value" });
    entry.addEventListener("click", () => { hidden.delete(place) || hidden.add(place); draw(); });
    return [entry, value];
  });
  make("p", figure, { class: "hint" }, `Lines with points: ${data.score}. Thin lines: training loss, smoothed. ` +
    "The pointer reads the scores at a position; a click on a name hides its curves.");
  let cursor = null, toX = null, fromX = null, toY = null;

  function path(parent, xs, ys, attributes) {
    const line = xs.map((x, place) => `${place ? "L" : "M"}${toX(x).toFixed(1)} ${toY(ys[place]).toFixed(1)}`);
    make("path", parent, { d: line.join(""), fill: "none", ...attributes });
  }

  function draw() {
    svg.replaceChildren();
    const [label, scale] = UNITS[over];
    const shown = data.runs.filter((_, place) => !hidden.has(place));
    const xs = shown.flatMap((run) => [...run.scores[over], ...run.loss[over]]);
    const highX = Math.max(...xs, 0) / scale || 1;
    let low = Infinity, high = -Infinity;
    for (const { scores, loss } of shown) {
      const early = Math.floor(loss.values.length / 20);
      for (const value of [...scores.values, ...loss.values]) low = Math.min(low, value);
      high = Math.max(high, ...scores.values.slice(-1), ...loss.values.slice(early, early + 1));
    }
    if (!(low <= high)) { low = 0; high = 1; }
    const margin = 0.05 * (high - low) || 0.05 * high;
    low -= margin; high += margin;
    toX = (x) => LEFT + (x / scale / highX) * (WIDTH - LEFT - RIGHT);
    fromX = (place) => ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * highX * scale;
    toY = (y) => HEIGHT - BOTTOM - ((y - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    for (const [value, text] of ticks(0, highX, 9)) {
      const x = toX(value * scale);
      make("line", svg, { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" });
      make("text", svg, { x, y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, text);
    }
    for (const [value, text] of ticks(low, high, 7)) {
      const y = toY(value);
      make("line", svg, { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" });
      make("text", svg, { x: LEFT - 7, y: y + 4, "text-anchor": "end" }, text);
    }
    make("text", svg, { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, label);
    const side = { x: 0, y: 0, "text-anchor": "middle", transform: `translate(14 ${(HEIGHT - BOTTOM) / 2}) rotate(-90)` };
    make("text", svg, side, data.unit);
    const [width, height] = [WIDTH - LEFT, HEIGHT - BOTTOM];  // what is above is cut off
    const inside = make("svg", svg, { x: LEFT, y: 0, width, height, viewBox: `${LEFT} 0 ${width} ${height}` });
    for (const { color, loss, scores } of shown) {
      path(inside, loss[over], loss.values, { stroke: color, "stroke-width": 1, opacity: 0.6 });
      path(inside, scores[over], scores.values, { stroke: color, "stroke-width": 1.8 });
      scores.values.forEach((value, place) => {
        make("circle", inside, { cx: toX(scores[over][place]), cy: toY(value), r: 3.2, fill: color });
      });
    }
    cursor = make("line", svg, { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
    buttons.forEach(([unit, button]) => button.setAttribute("aria-pressed", unit === over));
    entries.forEach(([entry], place) => entry.classList.toggle("off", hidden.has(place)));
    read(null);
  }

  function read(x) {
    data.runs.forEach((run, place) => {
      const { values } = run.scores;
      const value = x === null ? values[values.length - 1] : valueAt(run.scores[over], values, x);
      entries[place][1].textContent = value === null || value === undefined ? "–" : value.toFixed(4);
    });
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = Math.min(Math.max(((event.clientX - box.left) / box.width) * WIDTH, LEFT), WIDTH - RIGHT);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
    read(fromX(place));
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); read(null); });
  draw();
}

document.querySelectorAll("table").forEach(sortable);
const charts = JSON.parse(document.getElementById("charts")?.textContent || "{}");
document.querySelectorAll("img[data-chart]").forEach((image) => chart(image, charts[image.dataset.chart]));
