// Elements, numbers and the server. Text is only ever set as text: what rows hold is untrusted.

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, properties, ...children) => filled(document.createElement(tag), properties, children);
export const s = (tag, properties, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
export const by = (id) => document.getElementById(id);

const shown = new WeakMap();

// Build the content of an element anew only if what it shows has changed: focus and screen readers stay.
export function show(element, data, build) {
  const said = JSON.stringify(data);
  if (shown.get(element) === said) return false;
  shown.set(element, said);
  element.replaceChildren(...[build()].flat().filter(Boolean));
  return true;
}

export function table(name, headings, rows) {
  const head = headings.map((text) => h("th", { scope: "col", class: text.startsWith(">") ? "number" : null }, text.replace(">", "")));
  const cell = (value, i) =>
    i ? h("td", { class: headings[i].startsWith(">") ? "number" : null }, value ?? "") : h("th", { scope: "row" }, value);
  return h("table", { "aria-label": name }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell)))));
}

export const state = (level, text) => h("span", { class: "state", "data-level": level }, text);
export const number = (value) => (value === null || value === undefined ? "" : Number(value).toLocaleString("en"));
export const counted = (value, what) => `${number(value)} ${what}${Number(value) === 1 ? "" : "s"}`;

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export function when(text) {
  const date = new Date(text);
  const clock = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return date.toDateString() === new Date().toDateString() ? clock : `${date.toLocaleDateString()} ${clock}`;
}

// What was done, or why not, where the eyes are; a live region.
export function say(id, message, level = "good") {
  by(id).dataset.level = level;
  by(id).textContent = message;
}

// Whether somebody wants what cannot be taken back; Escape is no.
export function agreed(text, yes, no) {
  return new Promise((answer) => {
    const dialog = h("dialog", { "aria-labelledby": "asked" });
    const choice = (label, value, kind) => h("button", { type: "button", class: kind, onclick: () => dialog.close(value) }, label);
    dialog.append(h("p", { id: "asked" }, text), h("p", { class: "buttons" }, choice(no, "no"), choice(yes, "yes", "danger")));
    dialog.addEventListener("close", () => { dialog.remove(); answer(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export class Refused extends Error {
  constructor(status, told) {
    super([told.message, told.detail, told.hint && `hint: ${told.hint}`].filter(Boolean).join("; "));
    this.status = status;
  }
}

async function answered(response) {
  const told = await response.json().catch(() => ({ message: `the agent answered ${response.status}` }));
  if (!response.ok) throw new Refused(response.status, told);
  return told;
}

export const get = async (path, query = {}) => {
  const asked = new URLSearchParams(query).toString();
  return answered(await fetch(`/api/v1${path}${asked && "?"}${asked}`));
};

export const post = async (path, body = {}) =>
  answered(await fetch(`/api/v1${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
