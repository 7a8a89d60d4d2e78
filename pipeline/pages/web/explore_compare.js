// Two sets of thresholds, or two runs, side by side: what enters, what leaves, and both funnels.
import { el, ask, number } from "/files/parts.js";
import { go, copied } from "/files/explore.js";

// The choice of what is compared with; only where there is another run.
export function showAgainst(place, about, own) {
  const other = own.get("against") === "true";
  const choice = (text, on, value) => el("button", { type: "button", "aria-pressed": String(on), onclick: () => go((next) => {
    next.delete("page");
    if (value) next.set("against", "true"); else next.delete("against");
  }) }, text);
  place.replaceChildren(...(about.against ? [
    choice("with the run's own thresholds", !other, false), choice(`with ${about.against_name}`, other, true),
  ] : []));
}

export async function showComparison(place, about, own, question, open) {
  if (!open) return;
  const found = await ask(`/api/compare?${question}`);
  const { before, after, changes } = found;
  const was = before.counts.kept;
  const now = after.counts.kept;
  const which = (name) => el("button", { type: "button", disabled: !changes[name], "aria-pressed": String(own.getAll("where").includes(`change = ${name}`)),
    onclick: () => go((next) => {
      next.delete("page");
      const others = next.getAll("where").filter((text) => !text.startsWith("change "));
      const again = next.getAll("where").includes(`change = ${name}`);
      next.delete("where");
      [...others, ...(again ? [] : [`change = ${name}`])].forEach((text) => next.append("where", text));
    }) }, `${{ enters: "enter", leaves: "leave", otherwise: "otherwise decided" }[name]} `, el("b", {}, number(changes[name])));
  const comparing = own.has("set") || own.has("against");
  place.replaceChildren(el("div", {},
    el("p", { class: "verdict" }, "kept ", el("b", {}, number(was)), " → ", el("b", { class: was === now ? "" : "moved" }, number(now)),
      el("span", { class: "muted" }, ` (${before.name} → ${after.name})`)),
    comparing ? el("div", { class: "tags" }, ["enters", "leaves", "otherwise"].map(which),
      own.has("set") ? el("button", { type: "button", onclick: () => go(unset) }, "own thresholds again") : null) : null,
    notes(found),
    el("div", { class: "sides" }, thresholds(about, own, before, after), funnels(before, after)),
    found.command ? el("h3", {}, "To apply it") : null,
    found.command ? copied(found.command) : null));
}

function unset(next) {
  next.delete("set");
  next.delete("page");
  withoutChange(next);
}

// A condition on the change means nothing when nothing is compared.
function withoutChange(next) {
  if (next.has("set") || next.has("against")) return;
  const where = next.getAll("where").filter((text) => !/^(change|before|after) /.test(text));
  next.delete("where");
  where.forEach((text) => next.append("where", text));
}

function notes(found) {
  const lines = [];
  if (found.alone.count) {
    const some = found.alone.examples.length ? `: ${found.alone.examples.join(" ")}${found.alone.kept > found.alone.examples.length ? " …" : ""}` : "";
    lines.push(`${number(found.alone.count)} samples are only in the other run, ${number(found.alone.kept)} of them kept${some}`);
  }
  if (found.not_compared) lines.push(`${number(found.not_compared)} samples are not scored yet and not compared`);
  const moves = found.transitions.map((line) => `${line.was || "not decided"} → ${line.is || "not decided"} ${number(line.count)}`);
  if (moves.length) lines.push(moves.join(", "));
  return lines.map((line) => el("p", { class: "muted text" }, line));
}

function thresholds(about, own, before, after) {
  const set = new Map(own.getAll("set").map((text) => text.split("=")));
  const rows = about.rules.map((rule) => {
    const input = el("input", {
      type: "number", step: "any", value: set.get(rule.reason) ?? rule.threshold, "aria-label": `threshold of ${rule.reason}`,
      "data-reason": rule.reason, onchange: (event) => go((next) => {
        const others = next.getAll("set").filter((text) => text.split("=")[0] !== rule.reason);
        const value = event.target.value;
        next.delete("set");
        next.delete("page");
        if (value !== "" && Number(value) !== rule.threshold) others.push(`${rule.reason}=${value}`);
        others.forEach((text) => next.append("set", text));
        withoutChange(next);
      }),
    });
    return el("tr", {}, el("td", { title: rule.meaning }, rule.reason,
      el("small", { class: "muted" }, ` ${rule.column} ${rule.bound === "min" ? "≥" : "≤"}`)),
      el("td", { class: `number${set.has(rule.reason) ? " moved" : ""}` }, number(before.thresholds[rule.reason] ?? null)),
      el("td", { class: "number" }, input));
  });
  return el("table", {}, el("thead", {}, el("tr", {}, ["rule", "before", "after"].map((name, at) =>
    el("th", { scope: "col", class: at ? "number" : "" }, name)))), el("tbody", {}, rows));
}

function funnels(before, after) {
  const then = new Map(before.funnel.map((line) => [line.step, line]));
  const rows = after.funnel.map((line) => {
    const was = then.get(line.step) || {};
    const moved = was.left !== line.left ? " moved" : "";
    const broken = (own) => own.breaks === undefined ? "" : number(own.breaks);
    return el("tr", {}, el("td", {}, line.step), el("td", { class: "number" }, number(was.left)),
      el("td", { class: `number${moved}` }, number(line.left)),
      el("td", { class: "number muted more" }, broken(was)), el("td", { class: "number muted more" }, broken(line)));
  });
  return el("table", { class: "funnel" }, el("thead", {}, el("tr", {}, ["funnel", "left before", "after", "broken before", "after"].map((name, at) =>
    el("th", { scope: "col", class: ["", "number", "number", "number more", "number more"][at] }, name)))), el("tbody", {}, rows));
}
