// Puts the console together: who is asking, and what the agent says each second.

import * as charts from "./charts.js";
import * as conflicts from "./conflicts.js";
import { by, get, post } from "./dom.js";
import { tables } from "./forest.js";
import { headline, lost } from "./headline.js";
import { joins } from "./joins.js";
import { topology } from "./topology.js";
import * as waiting from "./waiting.js";

const SILENCE = 45000; // a connection that says nothing for so long is made anew
let session = { signed_in: false, rows: false };
let seen = {};
let source = null;
let watchdog = 0;

async function identify() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname); // it is neither kept nor shared
    try {
      await post("/session", { token });
    } catch (error) {
      by("session").textContent = error.message;
    }
  }
  session = await get("/session");
  if (session.signed_in) by("session").textContent = "signed in";
  by("sign-out").hidden = !session.signed_in;
  await conflicts.signed(session);
}

// Ask again only for what has changed since the last second.
function changed(name, value) {
  const now = JSON.stringify(value);
  if (seen[name] === now) return false;
  seen[name] = now;
  return true;
}

function count(id, value) {
  const link = document.querySelector(`nav a[href="#${id}"]`);
  if (value) {
    link.dataset.count = value;
    link.setAttribute("aria-label", `${link.textContent}: ${value}`);
  } else {
    delete link.dataset.count;
    link.removeAttribute("aria-label");
  }
}

function failed(name) {
  return () => delete seen[name]; // the next second asks again
}

function news(told) {
  headline(told);
  charts.moment(told);
  if (!told.database) return;
  topology(told);
  joins(told.joins);
  tables(told);
  const parked = told.sites[0].parked;
  count("conflicts", told.open_conflicts);
  count("schema", told.schema_changes.length);
  count("parked", parked);
  if (changed("conflicts", [told.newest_conflict, told.resolved_conflict, told.open_conflicts])) conflicts.load();
  if (changed("schema", told.schema_changes)) waiting.schema().catch(failed("schema"));
  if (changed("parked", [parked, session])) waiting.parked(parked, session).catch(failed("parked"));
}

function listen() {
  source?.close();
  source = new EventSource("/api/v1/events");
  source.addEventListener("past", (event) => charts.past(JSON.parse(event.data)));
  source.addEventListener("state", (event) => {
    wait();
    news(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    lost();
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  });
  wait();
}

function wait() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => { lost(); listen(); }, SILENCE);
}

by("sign-out").addEventListener("click", async () => {
  await post("/session/end").catch(() => null);
  by("session").textContent = "";
  await identify();
});

by("parked-retry").addEventListener("click", waiting.retry);
addEventListener("hashchange", () => location.hash.includes("token=") && identify());
listen();
identify().catch((error) => { by("session").textContent = error.message; });
