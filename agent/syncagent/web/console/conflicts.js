// The inbox of conflicts: both versions column by column, settled by whoever is signed in.

import { by, counted, get, h, post, say, show, when } from "./dom.js";
import { draft, forget, merged, values } from "./values.js";

let chosen = null; // the id of the one that is unfolded
let onlyOpen = false;
let session = { signed_in: false, rows: false };
let found = { count: 0, conflicts: [] };

const text = (value) => (value === null || value === undefined ? "null" : typeof value === "string" ? value : JSON.stringify(value));

// A row whose parent was merged into another, and that a constraint kept from following: it is as it was.
const stray = (one) => one.kind === "foreign key" && one.strategy === "merge";

const said = (message, level) => say("conflicts-said", message, level);

function tag(one) {
  if (one.open) return h("span", { class: "tag open" }, "open");
  return one.resolved_at ? h("span", { class: "tag done" }, "resolved") : h("span", { class: "tag" }, merged(one) ? "merged" : "by rule");
}

function versions(one) {
  const [won, lost] = [one.winning_image, one.losing_image];
  const columns = [...new Set([...Object.keys(won || {}), ...Object.keys(lost || {})])];
  const cell = (image, column) => (image ? text(image[column]) : "(deleted)");
  const [here, there] = merged(one)
    ? [`row ${one.other_key}, of ${one.winner}`, `row ${one.key}, of ${one.loser}, merged into it`]
    : [`${one.winner} won, ${when(one.winning_time)}`, stray(one) ? "as it is" : `${one.loser} lost, ${when(one.losing_time)}`];
  return h("table", { "aria-label": stray(one) ? `The row ${one.table_name} ${one.key}` : `Both ${merged(one) ? "rows" : "versions"} of ${one.table_name} ${one.key}` },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "column"), !stray(one) && h("th", { scope: "col" }, here), h("th", { scope: "col" }, there))),
    h("tbody", {}, columns.map((column) => {
      const [here, there] = [cell(won, column), cell(lost, column)];
      return h("tr", { class: stray(one) || here === there ? "same" : "differs" }, h("th", { scope: "row" }, column), !stray(one) && h("td", {}, here), h("td", {}, there));
    })));
}

async function act(path, body, told) {
  try {
    await post(path, body);
    forget(body.id);
    said(told);
  } catch (error) {
    said(error.message, "bad");
  }
  await load();
  by("conflicts-list").querySelector(`[data-id="${body.id}"]`)?.focus(); // its buttons were made anew
}

function actions(one) {
  if (!session.signed_in) return h("p", { class: "note" }, "To settle it, sign in: open what ", h("code", {}, "syncagent console token"), " prints.");
  const take = (name, which, label) =>
    h("button", { type: "button", class: "main", "data-take": which, onclick: () => act("/conflict/resolve", { id: one.id, take: which }, `${one.table_name} ${one.key}: ${name}’s version is taken, at every site.`) }, label);
  const undo = (label, told) => h("button", { type: "button", "data-undo": "", onclick: () => act("/conflict/undo", { id: one.id }, `${one.table_name} ${one.key}${told}`) }, label);
  const write = () => {
    const value = draft(one);
    if (!Object.keys(value).length) return said("Nothing is changed: write another value into a column first.", "bad");
    return act("/conflict/resolve", { id: one.id, value }, `${one.table_name} ${one.key} has these values, at every site.`);
  };
  if (merged(one)) {
    return one.resolved_at
      ? h("p", { class: "buttons" }, undo("Merge them again", `: merged into ${one.other_key} again, at every site.`))
      : [h("p", { class: "buttons" }, undo("Both rows again", " lives again, beside the other row, at every site.")), values(one, write)];
  }
  if (stray(one) && !one.resolved_at) return values(one, write);
  return [h("p", { class: "buttons" },
    !stray(one) && [take(one.winner, "winner", `${one.resolved_at ? "Take" : "Keep"} ${one.winner}’s`), take(one.loser, "loser", `Take ${one.loser}’s`)],
    one.resolved_at && undo("Undo the resolution", ": the resolution is taken back.")),
    (one.winning_image || one.resolved_at) && values(one, write)]; // one that is deleted has no columns to write
}

function detail(one) {
  const facts = [`${one.kind}, strategy ${one.strategy}, noticed ${when(one.noticed_at)}.`];
  if (one.yielded) facts.push(`By ${one.constraint_name} the row ${one.other_key} keeps the value; this one got ${JSON.stringify(one.yielded)} instead.`);
  if (merged(one)) facts.push(`The row was merged into ${one.other_key}, which has its value of ${one.constraint_name}.`);
  if (stray(one)) facts.push(`A constraint kept it from following the row to which it referred by ${one.constraint_name}, and which was merged into another one.`);
  if (one.strategy === "cascade") facts.push(`It was deleted with ${one.other_key}, to which it referred by ${one.constraint_name}.`);
  if (one.resolved_at) facts.push(`Resolved by ${one.resolved_by} at ${one.resolved_site}, ${when(one.resolved_at)}.`);
  return h("div", { class: "detail", id: `detail-${one.id}` },
    h("p", { class: "dim" }, facts.join(" ")), versions(one), actions(one),
    h("p", { class: "dim" }, "In a terminal: ", h("code", {}, `syncagent conflicts show ${one.id}`)));
}

function item(one) {
  const open = chosen === one.id;
  const row = h("button", {
    type: "button", class: "row", "data-id": one.id, "aria-expanded": String(open), "aria-controls": `detail-${one.id}`,
    onclick: () => { chosen = open ? null : one.id; draw(); by("conflicts-list").querySelector(`[data-id="${one.id}"]`).focus(); },
  },
  h("span", { class: "when dim" }, when(one.noticed_at)), h("span", { class: "what" }, one.table_name, " ", h("span", { class: "key-of" }, one.key)),
  h("span", { class: "kind dim" }, one.kind), h("span", { class: "who" }, one.loser ? `${one.winner} over ${one.loser}` : one.winner), tag(one));
  return h("li", {}, row, open && detail(one));
}

function draw() {
  const none = onlyOpen ? "None is open." : "None yet: no two sites wrote one row without having seen each other.";
  show(by("conflicts-list"), [found, chosen, session], () =>
    session.rows
      ? found.conflicts.length ? found.conflicts.map(item) : h("li", {}, h("p", { class: "dim" }, none))
      : h("li", {}, h("p", { class: "note" }, "Rows are shown to who is signed in: open what ", h("code", {}, "syncagent console token"), " prints.")));
  by("conflicts-more").textContent = session.rows ? counted(found.count, onlyOpen ? "open one" : "conflict") + (found.count > found.conflicts.length ? `, the newest ${found.conflicts.length} shown` : "") : "";
}

// Somebody types: the list is drawn anew when they are done, and what they wrote is still there.
const typing = () => by("conflicts-list").contains(document.activeElement) && document.activeElement.matches("input");
by("conflicts-list").addEventListener("focusout", () => setTimeout(() => by("conflicts-list").contains(document.activeElement) || draw()));

export async function load() {
  if (session.rows) {
    try {
      found = await get("/conflicts", onlyOpen ? { open: "true", limit: 50 } : { limit: 50 });
    } catch (error) {
      said(error.message, "bad");
    }
  }
  if (!typing()) draw();
}

export function signed(now) {
  session = now;
  return load();
}

for (const [id, open] of [["conflicts-all", false], ["conflicts-open", true]]) {
  by(id).addEventListener("click", () => {
    onlyOpen = open;
    by("conflicts-all").setAttribute("aria-pressed", String(!open));
    by("conflicts-open").setAttribute("aria-pressed", String(open));
    load();
  });
}
