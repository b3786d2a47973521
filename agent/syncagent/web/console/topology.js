// The sites and the lag between them: a picture, and the same as a table.

import { by, counted, h, number, s, show, span, state, table } from "./dom.js";

const LEVEL = { running: "good", linked: "good", relayed: "good", paused: "warn", away: "bad", "no agent": "bad" };
const GLYPH = { good: "✓", warn: "!", bad: "▲" };

const joining = (site) => site.role === "joining";
const word = (site) => (joining(site) ? "joins" : site.state === "relayed" ? `via ${site.via}` : site.state);
const level = (site) => (joining(site) ? "warn" : site.trouble ? "bad" : site.waiting && LEVEL[site.state] === "good" ? "warn" : LEVEL[site.state] || "unknown");

function places(sites) {
  const count = sites.length;
  if (count === 1) return [[300, 120]];
  if (count === 2) return [[130, 120], [470, 120]];
  return sites.map((_, i) => {
    const turn = (2 * Math.PI * i) / count - Math.PI / 2;
    return [300 + 215 * Math.cos(turn), (count === 3 ? 165 : 150) + (count === 3 ? 120 : 105) * Math.sin(turn)];
  });
}

function between(a, b, links) {
  const both = links.filter((link) => [a.name, b.name].includes(link.origin) && [a.name, b.name].includes(link.receiver));
  const ours = both.find((link) => link.rows !== null && (a.is_self || b.is_self) && link.origin === (a.is_self ? a : b).name);
  const cuts = Math.max(0, ...both.map((link) => link.cuts || 0));
  const far = a.is_self ? b : b.is_self ? a : null;
  if (far && joining(far)) return ["", "joins"];
  if (far && ["away", "no agent"].includes(far.state)) return ["cut", "no link", ours && ours.rows ? counted(ours.rows, "row") : ""];
  if (far && far.state === "paused") return ["late", "paused"];
  if (ours && ours.rows > 0 && ours.seconds > 2) return ["late", counted(ours.rows, "row"), span(ours.seconds)];
  if (far) return ["near", far.rtt_ms === null ? "" : `${far.state === "relayed" ? `via ${far.via}, ` : ""}${far.rtt_ms < 1 ? "< 1" : Math.round(far.rtt_ms)} ms`];
  return cuts > 5 ? ["late", counted(cuts, "cut")] : ["", ""];
}

function picture(sites, links) {
  const place = places(sites);
  const lines = [];
  const labels = [];
  sites.forEach((a, i) => sites.slice(i + 1).forEach((b, j) => {
    const [p, q] = [place[i], place[i + 1 + j]];
    const [kind, ...texts] = between(a, b, links);
    lines.push(s("line", { class: `link ${kind}`, x1: p[0], y1: p[1], x2: q[0], y2: q[1] }));
    const [x, y] = [(p[0] + q[0]) / 2, (p[1] + q[1]) / 2];
    const said = texts.filter(Boolean);
    if (said.length) labels.push(s("text", { class: `label ${kind}`, y: y + 6 - said.length * 4 }, said.map((text, n) => s("tspan", { x, dy: n ? "1.2em" : 0 }, text))));
  }));
  const nodes = sites.map((site, i) => {
    const [x, y] = place[i];
    const good = level(site);
    const above = sites.length > 2 && i === 0; // links leave it below
    return s("g", { transform: `translate(${x} ${y})` },
      s("circle", { class: `node ${good} ${site.is_self ? "self" : ""}`, r: 25 }),
      s("text", { class: `glyph ${good}`, y: 6 }, GLYPH[good] || "?"),
      s("text", { class: "name", y: above ? -48 : 45 }, site.name),
      s("text", { class: "role", y: above ? -32 : 61 }, [site.is_self ? "this site" : "", site.leads ? "leader" : site.role].filter(Boolean).join(", ")));
  });
  const told = sites.map((site) => `${site.name}: ${word(site)}`).join(", ");
  const box = sites.length === 3 ? "40 -18 520 313" : sites.length < 3 ? "40 80 520 115" : "20 -20 560 345";
  return s("svg", { viewBox: box, role: "img", "aria-label": `The sites and their links. ${told}` }, lines, labels, nodes);
}

function row(site) {
  const lacks = site.is_self ? "" : site.behind_rows === null ? "" : site.behind_rows ? counted(site.behind_rows, "row") : "nothing";
  return [
    site.name, state(level(site), word(site)),
    lacks, site.behind_rows ? span(site.behind_seconds) : "", number(site.parked),
    site.rtt_ms === null ? "" : `${Math.round(site.rtt_ms)} ms`,
    site.clock_offset_seconds === null ? "" : `${site.clock_offset_seconds > 0 ? "+" : ""}${site.clock_offset_seconds.toFixed(2)} s`,
  ];
}

export function topology(told) {
  const { sites, links } = told;
  const slow = sites.map(({ name, state: now, role, leads, via, is_self, trouble, waiting, rtt_ms }) => [name, now, role, leads, via, is_self, trouble, waiting, Math.round(rtt_ms)]);
  show(by("topology"), [slow, links], () => picture(sites, links));
  show(by("sites-table"), sites, () => [
    table("What each site lacks and has", ["site", "state", ">lacks of ours", ">since", ">parked", ">round trip", ">clock"], sites.map(row)),
    ...sites.filter((site) => !joining(site)).flatMap((site) => [site.waiting, site.trouble].filter(Boolean).map((text) => h("p", { class: "note" }, `${site.name}: ${text}`))),
  ]);
  const leader = sites.find((site) => site.leads);
  by("sites-more").textContent = leader ? `${leader.name} leads` : "no leader";
}
