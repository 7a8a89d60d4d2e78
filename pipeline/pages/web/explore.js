// The page of "instructar explore". What it shows is in its address, so that it can be sent, and the back button works.
import { el, ask, number, Refused } from "/files/parts.js";
import { showStory, closeStory } from "/files/explore_story.js";
import { showComparison, showAgainst } from "/files/explore_compare.js";

const $ = (id) => document.getElementById(id);
const OPERATORS = {
  number: ["<", "<=", ">", ">=", "=", "!=", "in", "is missing", "is there"],
  text: ["=", "!=", "contains", "in", "is missing", "is there"],
  list: ["contains", "=", "!=", "in", "is missing", "is there"],
};
let about;
let shown = { rows: [] };
let asked = 0;

// The state is what the address says.
const state = () => new URLSearchParams(location.search);

export function go(change, replace = false) {
  const next = state();
  change(next);
  const text = next.toString();
  history[replace ? "replaceState" : "pushState"](null, "", text ? `?${text}` : location.pathname);
  return show();
}

// What the server is asked of the samples: all but the page's own concerns.
function question(keys) {
  const own = state();
  const sent = new URLSearchParams();
  for (const [key, value] of own) if (keys.includes(key)) sent.append(key, value);
  return sent.toString();
}

const toggled = (condition) => go((next) => {
  const where = next.getAll("where");
  next.delete("where");
  next.delete("page");
  const kept = where.includes(condition) ? where.filter((w) => w !== condition) : [...where, condition];
  kept.forEach((w) => next.append("where", w));
});

async function show() {
  const turn = ++asked;
  const own = state();
  document.querySelector("main").setAttribute("aria-busy", "true");
  fillForm(own);
  try {
    const found = await ask(`/api/rows?${question(["where", "sort", "descending", "set", "against", "page"])}`);
    if (turn !== asked) return;
    shown = found;
    fail(null);
    showRows();
    await showComparison($("comparison"), about, own, question(["set", "against"]), $("compare").open);
  } catch (error) {
    if (turn === asked) fail(error);
  }
  if (turn !== asked) return;
  document.querySelector("main").removeAttribute("aria-busy");
  const sample = own.get("sample");
  if (sample) await showStory(sample, about, shown.rows.map((row) => row.sample_id)).catch(fail);
  else closeStory();
}

function fail(error) {
  $("error").hidden = !error;
  if (!error) return;
  if (!(error instanceof Refused)) throw error;
  $("error").textContent = error.message;
}

function tag(text, count, condition, kind = "") {
  const on = state().getAll("where").includes(condition);
  return el("button", { type: "button", class: kind, "aria-pressed": String(on), onclick: () => toggled(condition) },
    el("span", { class: "text" }, text), " ", el("b", {}, number(count)));
}

function showRows() {
  $("decisions").replaceChildren(...Object.entries(shown.decisions).filter(([name, n]) => n || name === "kept").map(([name, n]) =>
    tag(name, n, name === "not decided" ? "decision is missing" : `decision = ${name}`, name)));
  $("reasons").replaceChildren(...Object.entries(shown.reasons).map(([name, n]) => tag(name, n, `reasons = ${name}`)));
  const last = shown.first + shown.rows.length;
  $("range").textContent = shown.found ? `${number(shown.first + 1)}–${number(last)} of ${number(shown.found)}` : "none";
  $("before").disabled = shown.page <= 1;
  $("after").disabled = shown.page >= shown.pages;
  $("grid").replaceChildren(...(shown.rows.length ? shown.rows.map(card)
    : [el("p", { class: "empty muted" }, shown.of ? "No sample meets these conditions." : "There are no samples yet.")]));
  $("select-command").replaceChildren(...(shown.command ? [copied(shown.command)] : []));
}

function card(row) {
  const id = row.sample_id;
  const picture = about.pictures && row.made
    ? el("img", { src: `/picture/${encodeURIComponent(id)}/target?side=256`, alt: "", loading: "lazy" })
    : el("span", { class: "absent muted" }, about.pictures ? "not made" : "no picture");
  const values = shown.shown.map((name) => el("span", { class: "text" }, `${name} `, el("b", {}, told(row[name]))));
  const compared = row.change && row.change !== "same" ? el("span", { class: "moved" }, `${row.before} → ${row.after}`) : null;
  const why = (row.reasons || []).join(", ");
  return el("button", { type: "button", class: "sample", "data-id": id, onclick: () => go((next) => next.set("sample", id)) },
    picture,
    el("span", { class: "caption" },
      el("span", {}, el("span", { class: `tag ${row.decision || "unknown"}` }, row.decision || "not decided")),
      compared, values,
      why ? el("span", { class: "text" }, why) : null,
      el("span", { class: "text prompt" }, row.prompt || "")));
}

export const told = (value) => Array.isArray(value) ? value.map(number).join(", ") : number(value);

export function copied(command) {
  const button = el("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(command).then(() => { button.textContent = "Copied"; }, () => {
      getSelection().selectAllChildren(text);
    });
  } }, "Copy");
  const text = el("pre", {}, command);
  return el("div", { class: "copied" }, text, button);
}

function choices(select, empty) {
  const groups = new Map();
  for (const column of about.columns) {
    if (!groups.has(column.group)) groups.set(column.group, []);
    groups.get(column.group).push(el("option", { value: column.name, title: column.meaning }, column.name));
  }
  select.replaceChildren(...(empty ? [el("option", { value: "" }, empty)] : []),
    ...[...groups].map(([name, own]) => el("optgroup", { label: name }, own)));
}

function operators() {
  const column = about.columns.find((own) => own.name === $("column").value);
  $("operator").replaceChildren(...OPERATORS[column.kind].map((name) => el("option", {}, name)));
  $("column").title = column.meaning;
  values();
}

function values() {
  $("value-of").hidden = $("operator").value.startsWith("is ");
}

function fillForm(own) {
  $("conditions").replaceChildren(...own.getAll("where").map((text) =>
    el("button", { type: "button", "aria-pressed": "true", title: "Remove", onclick: () => toggled(text) },
      el("span", { class: "text" }, text), " ×")));
  $("sort").value = own.get("sort") || "";
  $("descending").setAttribute("aria-pressed", String(own.get("descending") === "true"));
  $("descending").disabled = !own.get("sort");
  showAgainst($("against"), about, own);
}

async function begin() {
  about = await ask("/api/about");
  document.title = `${about.name} – explore`;
  $("title").textContent = about.name;
  const planned = about.planned === about.samples ? "" : ` of ${number(about.planned)} planned`;
  $("told").textContent = `${number(about.samples)} samples${planned}` + (about.against ? `, compared with ${about.against}` : "");
  const lacking = Object.entries(about.missing).map(([stage, parts]) => `${stage} ${parts}`);
  const notes = [about.note, lacking.length ? `Parts that are not made yet: ${lacking.join(", ")}. Their columns are empty.` : ""];
  $("note").textContent = notes.filter(Boolean).join(" ");
  $("note").hidden = !$("note").textContent;
  if (lacking.length) $("note").append(" ", el("button", { type: "button", onclick: async () => { await begin(); } }, "Look again"));
  $("saving").hidden = !about.can_save;
  choices($("column"), "");
  choices($("sort"), "the plan");
  $("column").value = "decision";
  operators();
  const own = state();
  $("compare").open = own.has("set") || own.has("against");
  await show();
}

$("column").addEventListener("change", operators);
$("operator").addEventListener("change", values);
$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const unary = $("value-of").hidden;
  const text = `${$("column").value} ${$("operator").value}${unary ? "" : ` ${$("value").value.trim()}`}`;
  if (!state().getAll("where").includes(text)) toggled(text);
});
$("sort").addEventListener("change", () => go((next) => {
  next.delete("page");
  if ($("sort").value) next.set("sort", $("sort").value);
  else { next.delete("sort"); next.delete("descending"); }
}));
$("descending").addEventListener("click", () => go((next) => {
  next.delete("page");
  if (next.get("descending") === "true") next.delete("descending"); else next.set("descending", "true");
}));
const turned = (by) => go((next) => next.set("page", String(shown.page + by))).then(() => scrollTo(0, 0));
$("before").addEventListener("click", () => turned(-1));
$("after").addEventListener("click", () => turned(1));
$("compare").addEventListener("toggle", () => showComparison($("comparison"), about, state(), question(["set", "against"]), $("compare").open).catch(fail));
$("save").addEventListener("submit", async (event) => {
  event.preventDefault();
  const own = state();
  try {
    const done = await ask("/api/save", {
      name: $("name").value, shards: $("shards").checked, where: own.getAll("where"),
      thresholds: own.getAll("set"), against: own.get("against") === "true",
    });
    fail(null);
    $("saved").textContent = `${number(done.samples)} samples are in ${done.folder}`;
  } catch (error) {
    $("saved").textContent = "";
    fail(error);
  }
});
addEventListener("popstate", show);
begin().catch(fail);
