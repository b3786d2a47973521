// Sites that join: how much of their copy they have, as far as it comes from here.

import { by, h, number, show, span } from "./dom.js";

function told({ site, given }) {
  if (!given) return `${site} joins; rows that it is given by another site are counted there.`;
  if (given.ranges === given.ranges_expected) return `${site} joins: its ${number(given.rows)} rows are copied, it makes its indexes and catches up.`;
  if (given.rows_expected === null) return `${site} joins: ${number(given.rows)} rows copied since this agent began.`;
  const rate = given.seconds > 1 ? given.rows / given.seconds : 0;
  const left = rate ? `, ${number(Math.round(rate))} in a second, ${span((given.rows_expected - given.rows) / rate)} to go` : "";
  const idle = given.idle > 10 ? `; none came for ${span(given.idle)}` : left;
  return `${site} joins: ${number(given.rows)} of about ${number(given.rows_expected)} rows copied from here${idle}.`;
}

// Changed in place: a progress bar that is made anew each second would be read out each second.
export function joins(found) {
  show(by("joins"), found.map(({ site }) => site), () =>
    found.map(({ site }) => h("div", { class: "join" }, h("p", {}), h("progress", { max: 1, "aria-label": `Copy of the rows to ${site}` }))));
  found.forEach((one, i) => {
    const [text, bar] = by("joins").children[i].children;
    if (text.textContent !== told(one)) text.textContent = told(one);
    const { given } = one;
    if (given && given.rows_expected !== null) bar.value = given.ranges === given.ranges_expected ? 1 : given.rows / Math.max(given.rows_expected, 1);
    else bar.removeAttribute("value");
  });
}
