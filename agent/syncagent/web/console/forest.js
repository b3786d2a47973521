// The Merkle forest of a table as a heat map: days by hours, or months by days where there are many.

import { by, counted, get, h, number, s, show, table, when } from "./dom.js";

const SIZE = 20;
const LEFT = 74;
const MOST_ROWS = 31;
let chosen = null;
let drawnFor = null;
let place = null; // the table and the cell that was chosen last

const two = (value) => String(value).padStart(2, "0");

function grid(parts, level) {
  const hours = level === "hour";
  const rows = new Map();
  for (const part of parts.filter((one) => one.begins !== null)) {
    const time = new Date(part.begins);
    const day = `${time.getUTCFullYear()}-${two(time.getUTCMonth() + 1)}`;
    const row = hours ? `${day}-${two(time.getUTCDate())}` : day;
    if (!rows.has(row)) rows.set(row, new Map());
    rows.get(row).set(hours ? time.getUTCHours() : time.getUTCDate() - 1, part);
  }
  return { names: [...rows.keys()].sort().slice(-MOST_ROWS), rows, columns: hours ? 24 : 31, hours, hidden: Math.max(0, rows.size - MOST_ROWS) };
}

const told = (part, hours) =>
  `${part.begins.slice(0, hours ? 16 : 10).replace("T", " ")} UTC: ${counted(part.rows, "row")} in ${counted(part.buckets, "bucket")}, ${counted(part.leaves, "leaf").replace("leafs", "leaves")}${part.open ? `, ${number(part.open)} being written` : ""}; digest ${part.digest}`;

function map(name, parts, level) {
  const found = grid(parts, level);
  const most = Math.max(1, ...parts.map((part) => part.rows));
  const output = h("output", {}, "Choose a cell with the pointer or the arrow keys.");
  const cells = new Map();
  let at = null;
  const choose = (row, column) => {
    const cell = cells.get(`${row},${column}`);
    if (!cell) return;
    if (at) cells.get(at).element.classList.remove("chosen");
    at = `${row},${column}`;
    cell.element.classList.add("chosen");
    place = { name, row: found.names[row], column };
    output.textContent = cell.part ? told(cell.part, found.hours) : "no rows";
  };
  const drawn = [];
  for (let column = 0; column < found.columns; column += found.hours ? 3 : 5) {
    drawn.push(s("text", { class: "axis", x: LEFT + column * SIZE + 2, y: 11 }, found.hours ? `${two(column)}h` : String(column + 1)));
  }
  found.names.forEach((row, r) => {
    drawn.push(s("text", { class: "axis", x: 3, y: 18 + r * SIZE + 13 }, row));
    for (let column = 0; column < found.columns; column += 1) {
      const part = found.rows.get(row).get(column);
      const element = s("rect", { class: `cell${part && part.open ? " open" : ""}`, x: LEFT + column * SIZE + 1, y: 18 + r * SIZE + 1, width: SIZE - 3, height: SIZE - 3 });
      if (part && part.rows) element.style.fill = `rgba(var(--heat), ${(0.2 + 0.8 * Math.sqrt(part.rows / most)).toFixed(2)})`;
      element.addEventListener("pointerenter", () => choose(r, column));
      cells.set(`${r},${column}`, { element, part });
      drawn.push(element);
    }
  });
  const [width, height] = [LEFT + found.columns * SIZE, 20 + found.names.length * SIZE];
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const picture = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "application", "aria-roledescription": "heat map", tabindex: 0, "aria-label": `${name}: ${counted(rows, "row")} in sealed buckets, ${found.hours ? "days by hours" : "months by days"}; arrow keys choose a cell` }, drawn);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [r, c] = at ? at.split(",").map(Number) : [found.names.length - 1 - move[0], -move[1]];
    choose(r + move[0], c + move[1]);
  });
  if (place && place.name === name) choose(found.names.indexOf(place.row), place.column);
  const timeless = parts.find((part) => part.begins === null);
  return [
    h("h3", { class: "hidden" }, `The forest of ${name}`), h("div", { class: "scroll" }, picture), output,
    h("p", { class: "legend" }, h("span", {}, "stronger: more rows"), h("span", {}, "framed: being written, its digest is computed anew"),
      timeless && h("span", {}, `keys without a time: ${counted(timeless.rows, "row")}`), found.hidden > 0 && h("span", {}, `${found.hidden} older lines are not shown`)),
  ];
}

async function draw(name) {
  try {
    let level = "day";
    let parts = await get("/forest", { table: name, by: level });
    if (parts.length <= MOST_ROWS) [level, parts] = ["hour", await get("/forest", { table: name, by: "hour" })];
    const timed = parts.filter((part) => part.begins !== null);
    if (name !== chosen) return;
    const had = by("forest").contains(document.activeElement);
    show(by("forest"), [name, level, parts], () =>
      timed.length ? map(name, parts, level) : h("p", { class: "dim" }, parts.length ? `${name}: ${counted(parts[0].rows, "row")}, whose keys hold no time.` : `Nothing of ${name} is sealed yet: a bucket is, a minute after its time has ended.`));
    if (had) by("forest").querySelector("svg")?.focus();
  } catch (error) {
    show(by("forest"), [error.message], () => h("p", { class: "note" }, error.message));
  }
}

export function tables(told) {
  const found = told.tables.filter((one) => !one.dropped);
  if (!found.some((one) => one.name === chosen)) chosen = found.length ? found[0].name : null;
  const row = (one) => [
    h("button", { type: "button", "aria-pressed": String(one.name === chosen), onclick: () => { chosen = one.name; drawnFor = null; tables(told); [...by("tables-list").querySelectorAll("button")].find((button) => button.textContent === one.name)?.focus(); } }, one.name),
    one.rows === null ? "not counted" : `≈ ${number(one.rows)}`, number(one.unsettled), number(one.parked), one.strategy, one.sealed_until ? when(one.sealed_until) : "", number(one.open),
  ];
  show(by("tables-list"), [found, chosen], () =>
    found.length ? table("Attached tables", ["table", ">rows", ">unsettled", ">parked", "strategy", "sealed until", ">open buckets"], found.map(row)) : h("p", { class: "dim" }, "None is attached yet: ", h("code", {}, "syncagent attach TABLE")));
  const one = found.find((other) => other.name === chosen);
  const now = one && JSON.stringify([one.name, one.sealed_until, one.open]);
  if (one && now !== drawnFor) {
    drawnFor = now;
    draw(chosen);
  }
}
