// Other values for a row than either site wrote: a field for each column, of which those that are changed are sent.

import { h } from "./dom.js";

const drafts = new Map(); // by conflict: what was typed, so that it survives when the list is drawn anew
const unfolded = new Set();

// Two rows that have become one: the images are of either, and the one that has gone can have values of its own.
export const merged = (one) => one.kind === "unique" && one.strategy === "merge";

const composite = (value) => value !== null && typeof value === "object";
const text = (value) => (value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));

// Column by column what the row is known to have, and whether that is JSON: of a text column every input is text.
function known(one) {
  const [won, lost] = [one.winning_image || {}, one.losing_image || {}];
  const row = merged(one) ? lost : one.winning_image || lost;
  const columns = one.yielded ? Object.keys(one.yielded) : Object.keys(row).filter((column) => text(row[column]) !== one.key);
  return columns.map((column) => {
    const value = (one.yielded || row)[column];
    const samples = [value, won[column], lost[column]].filter((sample) => sample !== null && sample !== undefined);
    return { column, value, json: samples.some(composite), typed: samples.length > 0 && samples.every((sample) => typeof sample !== "string") };
  });
}

function read({ json, typed }, entry) {
  if (entry.none) return null;
  try {
    return typed || json ? JSON.parse(entry.text) : entry.text;
  } catch {
    return entry.text; // the server says what it thinks of it
  }
}

const initial = ({ value }) => ({ text: text(value), none: value === null || value === undefined });

// The columns that were changed, with their values.
export function draft(one) {
  const typed = drafts.get(one.id) || {};
  const changed = known(one).filter((field) => {
    const [entry, was] = [typed[field.column], initial(field)];
    return entry && (entry.none !== was.none || (!entry.none && entry.text !== was.text));
  });
  return Object.fromEntries(changed.map((field) => [field.column, read(field, typed[field.column])]));
}

export function forget(id) {
  drafts.delete(id);
  unfolded.delete(id);
}

function field(one, about) {
  const typed = drafts.get(one.id) || {};
  const entry = { ...(typed[about.column] || initial(about)) };
  const keep = () => drafts.set(one.id, { ...drafts.get(one.id), [about.column]: { ...entry } });
  const none = h("input", { type: "checkbox", checked: entry.none, "aria-label": `${about.column} is null`, onchange: () => { entry.none = none.checked; keep(); } });
  const input = h("input", { type: "text", value: entry.text, "data-column": about.column, autocomplete: "off", spellcheck: "false",
    oninput: () => { entry.text = input.value; entry.none = none.checked = false; keep(); } });
  return h("div", { class: "field" }, h("label", {}, h("span", {}, about.column), input), h("label", { class: "none" }, none, "null"));
}

export function values(one, write) {
  const fold = h("details", { class: "values", open: unfolded.has(one.id) },
    h("summary", {}, "Other values …"),
    h("form", { "aria-label": `Values of ${one.table_name} ${one.key}`, onsubmit: (event) => { event.preventDefault(); write(); } },
      known(one).map((about) => field(one, about)),
      h("p", { class: "buttons" }, h("button", { class: "main", "data-write": "" }, "Write what I changed"))));
  fold.addEventListener("toggle", () => (fold.open ? unfolded.add(one.id) : unfolded.delete(one.id)));
  return fold;
}
