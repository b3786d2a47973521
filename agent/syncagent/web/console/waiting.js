// Schema changes in their phases, and rows that are parked: tried again or given up by whoever is signed in.

import { agreed, by, counted, get, h, number, post, say, show, when } from "./dom.js";

function step(one) {
  const missing = one.missing.length ? `: waits for ${one.missing.join(", ")}` : "";
  return h("li", { "data-state": one.state }, h("span", {}, one.phase), h("span", {}, one.what, h("span", { class: "dim" }, ` ${one.state}${missing}`)));
}

function change(one) {
  const open = !["done", "aborted"].includes(one.state);
  return h("div", { class: "change" },
    h("p", {}, h("strong", {}, one.name), h("span", { class: `tag ${open ? "open" : one.state === "done" ? "done" : ""}` }, one.state), h("span", { class: "dim" }, `asked at ${one.site}, ${when(one.asked_at)}`)),
    Object.entries(one.failures).map(([site, why]) => h("p", { class: "note" }, `${site}: ${why}`)),
    h(open ? "div" : "details", {}, !open && h("summary", { class: "dim" }, counted(one.steps.length, "step")), h("ul", { class: "steps" }, one.steps.map(step))),
    one.state === "waits for approval" && h("p", {}, "When nobody needs the old shape any more: ", h("code", {}, "syncagent schema apply --contract")));
}

export async function schema() {
  const found = await get("/schema-steps", { limit: 5 });
  show(by("schema-list"), found, () => (found.length ? found.map(change) : h("p", { class: "dim" }, "None so far: ", h("code", {}, "syncagent schema plan FILE"))));
}

async function drop(one, session) {
  const sure = `Give up what ${one.origin} wrote to row ${one.key} of ${one.table_name}, at every site? The row becomes what it is here, or goes if it is not here. What is given up is kept as a conflict.`;
  if (!(await agreed(sure, "Give it up", "Let it wait"))) return;
  try {
    await post("/parked/drop", { table: one.table_name, key: one.key });
    say("parked-said", `${one.table_name} ${one.key}: given up, and kept as a conflict.`);
  } catch (error) {
    say("parked-said", error.message, "bad");
  }
  await parked(1, session).catch((error) => say("parked-said", error.message, "bad"));
  by("parked").focus(); // its button is gone
}

function parkedRow(one, session) {
  return h("li", { class: "parked-row" },
    h("p", {}, h("strong", {}, one.table_name), " ", h("code", {}, one.key), h("span", { class: "dim" }, ` from ${one.origin}, since ${when(one.since)}`)),
    h("p", {}, one.reason),
    session.signed_in
      ? h("p", { class: "buttons" }, h("button", { type: "button", "data-drop": one.key, "aria-label": `Give it up: ${one.table_name} ${one.key}`, onclick: () => drop(one, session) }, "Give it up …"))
      : h("p", { class: "dim" }, "To give it up, sign in, or type: ", h("code", {}, `syncagent parked drop ${one.table_name} ${one.key}`)));
}

export async function retry() {
  by("parked-retry").disabled = true;
  say("parked-said", "");
  try {
    const left = (await post("/parked/retry")).parked;
    say("parked-said", left ? `They were tried: ${counted(left, "row")} still parked.` : "They were tried, and every row fits now.", left ? "warn" : "good");
  } catch (error) {
    say("parked-said", error.message, "bad");
  }
  by("parked-retry").disabled = false;
}

export async function parked(count, session) {
  if (count && !session.rows) {
    by("parked-more").textContent = `${number(count)} at this site`;
    by("parked-buttons").hidden = true;
    show(by("parked-list"), [count, session], () => h("p", { class: "note" }, "Rows are shown to who is signed in."));
    return;
  }
  const found = count ? await get("/parked", { limit: 50 }) : [];
  by("parked-more").textContent = found.length ? `${number(Math.max(count, found.length))} at this site` : "";
  by("parked-buttons").hidden = !(found.length && session.signed_in);
  show(by("parked-list"), [found, session], () =>
    found.length ? h("ul", {}, found.map((one) => parkedRow(one, session))) : h("p", { class: "dim" }, "None: every row that came fits."));
}
