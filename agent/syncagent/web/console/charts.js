// Throughput and lag of the last minutes, as small pictures; the pointer reads a moment.

import { by, h, number, s, span } from "./dom.js";

const KEPT = 300;
const WIDTH = 300;
const HEIGHT = 100;
let points = []; // [time, written, applied, lag], a second apart

function rates(column) {
  return points.slice(1).map((point, i) => {
    const seconds = point[0] - points[i][0];
    return seconds > 0 ? Math.max(0, point[column] - points[i][column]) / seconds : 0;
  });
}

const rounded = (value) => `${number(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))}`;

class Chart {
  constructor(title, curves, tell) {
    this.curves = curves;
    this.tell = tell;
    this.values = curves.map(() => h("b", {}, "–"));
    this.picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
    this.most = h("span", {});
    this.chosen = null;
    this.picture.addEventListener("pointermove", (event) => {
      const box = this.picture.getBoundingClientRect();
      this.chosen = (event.clientX - box.left) / box.width;
      this.draw();
    });
    this.picture.addEventListener("pointerleave", () => { this.chosen = null; this.draw(); });
    const keys = curves.map(([kind, name], i) => h("span", { class: `key ${kind}` }, this.values[i], h("span", {}, name)));
    this.figure = h("figure", {}, h("figcaption", {}, keys), this.picture,
      h("p", { class: "scale" }, h("span", {}, "5 min ago"), this.most, h("span", {}, "now")));
  }

  draw() {
    const series = this.curves.map(([, , values]) => values());
    const most = Math.max(this.curves[0][3], ...series.flat().filter((value) => value !== null)) * 1.08;
    const x = (i, length) => WIDTH - ((length - 1 - i) * WIDTH) / (KEPT - 2);
    const y = (value) => HEIGHT - (value / most) * HEIGHT;
    const drawn = [0.5, 1].map((part) => s("line", { class: "rule", x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part }));
    series.forEach((values, n) => {
      const kind = this.curves[n][0];
      let run = [];
      const flush = () => {
        if (run.length > 1) {
          const line = run.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" L");
          drawn.push(s("path", { class: `area ${kind}`, d: `M${run[0][0].toFixed(1)},${HEIGHT} L${line} L${run.at(-1)[0].toFixed(1)},${HEIGHT}Z` }));
          drawn.push(s("path", { class: `curve ${kind}`, d: `M${line}` }));
        }
        run = [];
      };
      values.forEach((value, i) => (value === null ? flush() : run.push([x(i, values.length), y(value)])));
      flush();
      const at = this.chosen === null ? values.length - 1 : values.length - 1 - Math.round((1 - this.chosen) * (KEPT - 2));
      const value = values[at];
      this.values[n].textContent = value === null || value === undefined ? "–" : this.tell(value);
    });
    if (this.chosen !== null) drawn.push(s("line", { class: "at", x1: this.chosen * WIDTH, x2: this.chosen * WIDTH, y1: 0, y2: HEIGHT }));
    this.most.textContent = `top: ${this.tell(most / 1.08)}`;
    this.picture.replaceChildren(...drawn);
  }
}

const charts = [
  new Chart("Rows written here and applied here, in a second", [
    ["one", "rows/s written here", () => rates(1), 1],
    ["two", "rows/s of others applied", () => rates(2), 1],
  ], rounded),
  new Chart("How long the site that is furthest behind lacks rows of this one", [
    ["three", "lag of the site furthest behind", () => points.slice(1).map((point) => point[3]), 1],
  ], span),
];

export function past(found) {
  points = found;
  by("charts").replaceChildren(...charts.map((chart) => chart.figure));
  charts.forEach((chart) => chart.draw());
}

export function moment(told) {
  const lags = (told.sites || []).map((site) => site.behind_seconds).filter((value) => value !== null);
  points.push([Date.parse(told.at) / 1000, told.written, told.applied, told.database ? Math.max(0, ...lags) : null]);
  points = points.slice(-KEPT);
  if (!document.hidden) charts.forEach((chart) => chart.draw());
}
