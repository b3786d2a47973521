// One sentence that says whether all is well, and what is not: with names, why, and what to type.

import { by, counted, h, show } from "./dom.js";

function said(level, text, more) {
  by("headline").dataset.level = level;
  if (by("headline-text").textContent !== text) {
    by("headline-text").textContent = text;
    by("spoken").textContent = text;
  }
  by("headline-more").textContent = more;
  const mark = { good: "✓", warn: "!", bad: "▲" }[level] || "…";
  document.title = `${mark} ${text} · ${by("site").textContent || "syncagent"}`;
}

export function lost() {
  said("bad", "The agent does not answer", "This page tries again by itself. At the site: syncagent run --http HOST:PORT");
  show(by("findings"), [], () => []);
}

export function headline(told) {
  by("site").textContent = told.site;
  const found = told.findings;
  const worst = found[0];
  const capital = worst && worst.text[0].toUpperCase() + worst.text.slice(1);
  const sites = (told.sites || []).length;
  const more = sites === 1 ? "One site; others can join: syncagent invite" : `${counted(sites, "site")}, ${counted((told.tables || []).length, "table")}`;
  if (!worst) said("good", "All is well", more);
  else said(worst.level, capital, found.length > 1 ? `and ${counted(found.length - 1, "more thing")} to look at` : "");
  show(by("findings"), found.map(({ why, ...rest }) => rest), () =>
    found.map((one) =>
      h("li", { "data-level": one.level },
        h("a", { href: `#${one.about}` }, one.text), h("span", { class: "why" }), h("code", {}, one.type))));
  found.forEach((one, i) => {
    by("findings").children[i].querySelector(".why").textContent = one.why || "";
  });
}
