// A sample's whole story: its pictures with the plan's boxes, every rule, every stage's row, and who made it.
import { el, ask, figure, pictureOf, ruleTable, valueTable } from "/files/parts.js";
import { go } from "/files/explore.js";

const $ = (id) => document.getElementById(id);
let columns = {};
let near = [];
let current = null;

export async function showStory(id, about, ids) {
  if (!Object.keys(columns).length) columns = Object.fromEntries(about.columns.map((own) => [own.name, own]));
  near = ids;
  const found = about.pictures ? await ask(`/api/story/${encodeURIComponent(id)}`) : null;
  const row = found ? null : await ask(`/api/row/${encodeURIComponent(id)}`);
  current = id;
  $("story-title").replaceChildren(...title(id, found ? found.decide : row));
  $("story-body").replaceChildren(...(found ? told(found) : [el("div", {}, valueTable(row, columns))]));
  const at = near.indexOf(id);
  $("story-before").disabled = at <= 0;
  $("story-after").disabled = at < 0 || at >= near.length - 1;
  if (!$("story").open) $("story").showModal();
  $("story").scrollTop = 0;
}

export function closeStory() {
  current = null;
  if ($("story").open) $("story").close();
}

function title(id, decide) {
  const decision = (decide || {}).decision;
  return [el("code", {}, id), " ", el("span", { class: `tag ${decision || "unknown"}` }, decision || "not decided")];
}

function told(story) {
  const plan = story.plan || {};
  const decide = story.decide || {};
  const person = decide.reviewer ? [el("p", { class: "text" }, `${decide.reviewer}: ${decide.review_reason || "no reason given"}`)] : [];
  const error = decide.error_message ? [el("p", { class: "text" }, `${decide.error_stage}: ${decide.error_message}`)] : [];
  const names = [0, 1].map((n) => plan[`reference_${n}_name`] || `reference ${n + 1}`);
  const left = el("div", {},
    framed(story, plan, names),
    el("p", { class: "text" }, plan.prompt || ""),
    el("div", { class: "pictures" },
      [0, 1].map((n) => figure(story.sample_id, `reference_${n}`, names[n], story.pictures[`reference_${n}`], 300)),
      ["foreground", "background", "alpha"].map((name) => figure(story.sample_id, name, name, story.pictures[name], 300))));
  const right = el("div", {},
    ...person, ...error,
    el("h3", {}, "Rules"), el("div", { class: "scroll" }, ruleTable(story.rules, columns)),
    el("h3", {}, "Plan"), details(`part ${story.part}`, plan, !story.plan),
    el("h3", {}, "Stages"),
    ...story.stages.map((stage) => details(
      stage.made ? `${stage.name}: ${stage.row.status}` : `${stage.name}: not made yet`,
      stage.made ? { ...stage.row, fingerprint: stage.fingerprint } : {}, !stage.made,
      stage.made ? stage.row.model : "")));
  return [left, right];
}

function details(name, row, absent, model = "") {
  if (absent) return el("p", { class: "muted" }, name);
  return el("details", { class: "stage" },
    el("summary", {}, name, model ? el("span", { class: "muted text" }, ` by ${model}`) : null), valueTable(row, columns));
}

const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function framed(story, plan, names) {
  if (!story.pictures.target) return figure(story.sample_id, "target", "target", false);
  const over = drawn("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  [0, 1].forEach((n) => {
    const box = plan[`box_${n}`];
    if (!box) return;
    const place = { x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] };
    over.append(drawn("rect", { ...place, class: "under" }), drawn("rect", { ...place, class: `box-${n}` }));
  });
  return el("figure", { "data-picture": "target" },
    el("div", { class: "framed" }, el("img", { src: pictureOf(story.sample_id, "target"), alt: "target" }), over),
    el("figcaption", { class: "text" }, `planned boxes: ${names[0]} (solid), ${names[1]} (dashed)`));
}

const leave = () => go((next) => next.delete("sample"));
const step = (by) => {
  const next = near[near.indexOf(current) + by];
  if (next !== undefined) go((state) => state.set("sample", next), true);
};
$("story-close").addEventListener("click", leave);
$("story-before").addEventListener("click", () => step(-1));
$("story-after").addEventListener("click", () => step(1));
$("story").addEventListener("cancel", (event) => { event.preventDefault(); leave(); });
$("story").addEventListener("click", (event) => { if (event.target === $("story")) leave(); });
$("story").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
