// Schema changes in their phases, and rows that are parked.

import { by, counted, get, h, number, show, when } from "./dom.js";

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

export async function parked(count, rows) {
  by("parked-more").textContent = count ? `${number(count)} at this site` : "";
  if (count && !rows) {
    show(by("parked-list"), [count, rows], () => h("p", { class: "note" }, "Rows are shown to who is signed in."));
    return;
  }
  const found = count ? await get("/parked", { limit: 50 }) : [];
  show(by("parked-list"), found, () =>
    found.length
      ? found.map((one) => h("div", { class: "parked-row" }, h("p", {}, h("strong", {}, one.table_name), " ", h("code", {}, one.key), h("span", { class: "dim" }, ` from ${one.origin}, since ${when(one.since)}`)),
        h("p", {}, one.reason), h("p", { class: "dim" }, "To give it up: ", h("code", {}, `syncagent parked drop ${one.table_name} ${one.key}`))))
      : h("p", { class: "dim" }, "None: every row that came fits."));
}
