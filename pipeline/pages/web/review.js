import { ask, el, figure, number, pictureOf, Refused, ruleTable, valueTable } from "/files/parts.js";
import { Matte } from "/files/matte.js";

const at = (id) => document.getElementById(id);
const matte = new Matte(at("target"), at("foreground"), at("background"));
const NAMES = { undecided: "undecided first", nearest: "nearest to a threshold", audit: "random audit", errors: "errors",
  flagged: "flagged by me", disagreement: "reviewers differ", all: "all, in the plan's order" };
let run, about, ids = [], place = 0, left = 0, total = 0, story, said, mode = null, waiting = 0, last = Promise.resolve();

// Every action goes through here, one after the other. Errors of the server are told in one line.
function doing(work) {
  waiting += 1;
  last = last.then(async () => {
    try {
      tell("");
      await work();
    } catch (error) {
      tell(error instanceof Refused ? error.message : String(error));
      if (!(error instanceof Refused)) console.error(error);
    } finally {
      waiting -= 1;
    }
  });
}

// A key or button that comes while something is at work was meant for the sample that is going: it is left out.
function doingNow(work) {
  if (!waiting) doing(work);
}

function tell(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

async function openQueue(name) {
  const found = await ask(`/api/queue?name=${encodeURIComponent(name)}`);
  ({ ids, left, total } = found);
  place = found.first;
  if (ids.length) await show(place);
  else {
    at("sample").hidden = true;
    at("empty").hidden = false;
    at("empty").textContent = about.decided
      ? "No sample in this queue. Choose another above."
      : "Nothing is decided yet in this run. Curate it first; what becomes whole can be reviewed here.";
    progress();
  }
}

function progress() {
  const name = at("queue").value.startsWith("reason:") ? "with this reason" : "in this queue";
  at("progress").textContent = total ? `${left.toLocaleString("en")} of ${total.toLocaleString("en")} ${name} left` : "";
}

async function show(index) {
  const id = ids[index];
  const [newStory, newSaid] = await Promise.all([ask(`/api/story/${encodeURIComponent(id)}`), ask(`/api/opinions/${encodeURIComponent(id)}`)]);
  const shown = (name) => (newStory.pictures[name] ? pictureOf(id, name) : null);
  await matte.load(shown("target"), matteUrl(id, newSaid) || shown("alpha"), threshold(newSaid), run.dilate ?? 0);
  [place, story, said] = [index, newStory, newSaid];
  setMode(null);
  drawDecision();
  drawPictures(id);
  drawJudged();
  at("empty").hidden = true;
  at("sample").hidden = false;
  at("sample").dataset.id = id;
}

// A matte that was painted and is not taken over into the run yet.
const painted = (said) => (said.mine.matte || {}).value;
const matteUrl = (id, said) => (painted(said) ? `/matte/${encodeURIComponent(id)}?path=${encodeURIComponent(painted(said))}` : null);
const threshold = (said) => (said.mine.alpha_threshold || {}).value ?? run.alpha_threshold ?? 0.5;

function drawDecision() {
  const { mine } = said;
  const verdict = (mine.verdict || {}).value;
  const decide = story.decide;
  at("state").replaceChildren(...[
    decide && el("span", { class: `tag ${decide.decision}`, id: "decision-now" }, decide.decision),
    ...(decide ? decide.reasons.map((reason) => el("span", { class: "tag" }, reason)) : []),
    verdict && el("span", { class: `tag ${verdict}`, id: "mine" }, `you: ${verdict}`),
    el("code", { class: "muted" }, story.sample_id),
  ].filter(Boolean));
  at("reason").value = (mine.verdict || {}).reason || "";
  at("flag").setAttribute("aria-pressed", String(Boolean((mine.flag || {}).value)));
  at("undo").disabled = !said.last;
  const failed = Boolean(decide && decide.decision === "error");
  at("accept").disabled = at("reject").disabled = failed;
  at("alpha").value = threshold(said);
  at("alpha").disabled = !matte.alpha;
  showAlpha();
  at("drop-alpha").hidden = (mine.alpha_threshold || {}).value == null;
  at("drop-matte").hidden = !painted(said);
  at("brush").disabled = at("erase").disabled = !matte.alpha;
  at("said").replaceChildren(...Object.entries(said.others).map(([who, lines]) => el("p", { class: "text" }, `${who}: `,
    Object.entries(lines).map(([action, line]) => `${action} ${action === "matte" ? "painted" : line.value}${line.reason ? ` (${line.reason})` : ""}`).join(", "))),
    failed ? el("p", { class: "text" }, `Stage ${decide.error_stage} failed on it: ${decide.error_message}. Curate with --retry-errors to try it again.`) : "");
  progress();
}

function showAlpha() {
  const value = Number(at("alpha").value);
  at("alpha-shown").textContent = value.toFixed(2);
  at("save-alpha").disabled = !matte.alpha || value === threshold(said);
}

function drawPictures(id) {
  const plan = story.plan || {};
  at("references").replaceChildren(...[0, 1].map((k) => figure(id, `reference_${k}`, plan[`reference_${k}_name`] || `reference ${k}`, story.pictures[`reference_${k}`], 400)));
  at("prompt").textContent = plan.prompt || "";
  at("stage").hidden = !matte.picture;
  for (const name of ["foreground", "background"]) at(name).closest("figure").hidden = !matte.alpha;
  drawBoxes();
}

function drawBoxes() {
  const plan = story.plan || {};
  const names = at("boxes-shown").checked && mode === null ? [0, 1] : [];
  at("boxes").replaceChildren(...names.filter((k) => plan[`box_${k}`]).map((k) => {
    const [x0, y0, x1, y1] = plan[`box_${k}`];
    const box = el("div", {}, el("span", {}, plan[`reference_${k}_name`] || ""));
    Object.assign(box.style, { left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` });
    return box;
  }));
}

function drawJudged() {
  const parts = [];
  if (story.rules.length) parts.push(el("h2", {}, "Rules"), el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Rules" }, ruleTable(story.rules, run.columns)));
  const rows = Object.fromEntries(story.stages.map((stage) => [stage.name, stage]));
  const matrix = rows.identity && rows.identity.row && "similarity_0_0" in rows.identity.row && rows.identity.row;
  if (matrix) parts.push(el("h2", {}, "Similarity of regions and references"), similarity(matrix));
  if (rows.semantics && rows.semantics.row) parts.push(el("h2", {}, "The judge"), answers(rows.semantics.row));
  for (const stage of story.stages) {
    const title = `${stage.name}: ${stage.made ? stage.row.status : "not made yet"}${stage.made ? `, by ${stage.row.model}` : ""}`;
    parts.push(el("details", {}, el("summary", { class: "text" }, title), stage.made ? valueTable(stage.row, run.columns) : ""));
  }
  parts.push(el("details", {}, el("summary", {}, "plan"), valueTable(story.plan)));
  at("judged").replaceChildren(...parts);
}

function similarity(row) {
  const plan = story.plan || {};
  const head = ["", ...[0, 1].map((k) => plan[`reference_${k}_name`] || `reference ${k}`)];
  return el("table", { class: "matrix" },
    el("thead", {}, el("tr", {}, head.map((text) => el(text ? "th" : "td", text ? { scope: "col", class: "text" } : {}, text)))),
    el("tbody", {}, [0, 1].map((i) => el("tr", {}, el("th", { scope: "row" }, `region ${i}`),
      [0, 1].map((k) => el("td", { class: "number" }, number(row[`similarity_${i}_${k}`])))))));
}

const NOT_SAID = ["sample_id", "status", "error_code", "error_message", "model", "raw_text"];
const answers = (row) => valueTable(Object.fromEntries(Object.entries(row).filter(([name]) => !NOT_SAID.includes(name))), run.columns);

// Saying things. Each has an id of its own, so sent again after a lost answer it counts once.

const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function say(action, value, reason = null) {
  const line = { id: newId(), sample_id: story.sample_id, action, value, reason };
  try {
    await ask("/api/say", line);
  } catch (error) {
    if (!error.message.includes("does not answer")) throw error;
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await ask("/api/say", line);
  }
}

async function decide(value, reason) {
  const first = !(said.mine.verdict || {}).value;
  await say("verdict", value, reason);
  left -= first ? 1 : 0;
  at("reason").blur(); // keys mean actions again
  if (place + 1 < ids.length) await show(place + 1);
  else await refresh();
}

async function refresh() {
  said = await ask(`/api/opinions/${encodeURIComponent(story.sample_id)}`);
  drawDecision();
}

const accept = () => decide("kept", null);
const reject = () => (at("reason").value.trim() ? decide("rejected", at("reason").value.trim()) : (tell("Give a reason, then reject."), at("reason").focus()));

async function undo() {
  if (!said.last) return;
  const verdict = said.last.action === "verdict";
  await say("undo", said.last.id);
  left += verdict ? 1 : 0;
  await show(place);
}

async function step(by) {
  if (ids[place + by] !== undefined) await show(place + by);
}

// Painting

function setMode(wanted) {
  mode = wanted === mode ? null : wanted;
  for (const name of ["brush", "erase"]) at(name).setAttribute("aria-pressed", String(mode === name));
  at("stage").classList.toggle("painting", mode !== null);
  if (matte.picture) matte.draw(mode !== null || matte.strokes.length > 0);
  if (story) drawBoxes();
  strokesChanged();
}

function strokesChanged() {
  at("stroke-back").disabled = at("save-matte").disabled = !matte.strokes.length;
}

function pointOf(event) {
  const box = at("target").getBoundingClientRect();
  const scale = matte.picture.width / box.width;
  return { x: (event.clientX - box.left) * scale - 0.5, y: (event.clientY - box.top) * scale - 0.5 };
}

let from = null;
at("target").addEventListener("pointerdown", (event) => {
  if (!mode || !matte.alpha) return;
  at("target").setPointerCapture(event.pointerId);
  matte.begin();
  from = pointOf(event);
  stroke(from);
  strokesChanged();
});
at("target").addEventListener("pointermove", (event) => { if (from) stroke(pointOf(event)); });
for (const end of ["pointerup", "pointercancel"]) at("target").addEventListener(end, () => { from = null; });

function stroke(to) {
  matte.paint(from, to, Number(at("size").value), mode === "brush" ? 255 : 0);
  from = to;
}

function strokeBack() {
  matte.strokeBack();
  strokesChanged();
}

async function saveMatte() {
  await say("matte", matte.png());
  await show(place);
}

// Taking over

async function watchApplying() {
  const told = await ask("/api/apply");
  at("applying").hidden = told.state === "idle";
  at("lines").textContent = told.lines.join("\n");
  at("lines").scrollTop = at("lines").scrollHeight;
  at("applying").dataset.state = told.state;
  at("apply").disabled = told.state === "running";
  if (told.state === "running") setTimeout(() => watchApplying().catch((error) => tell(error.message)), 700);
  else if (told.state !== "idle") {
    await start(at("queue").value, story && story.sample_id);
    if (told.state === "failed") tell("The curation did not end well; its lines say why. Nothing that was decided is lost.");
  }
}

async function start(chosen, sample) {
  [run, about] = await Promise.all([ask("/api/run"), ask("/api/review")]);
  document.title = `Review of ${run.name}`;
  at("title").textContent = `Review of ${run.name}${about.blind ? ", blind" : ""}, by ${about.reviewer}`;
  at("reasons").replaceChildren(...run.rules.map((rule) => el("option", { value: rule.reason })));
  at("queue").replaceChildren(...about.queues.map((name) => el("option", { value: name }, NAMES[name] || name.replace("reason:", "reason: "))));
  if (about.queues.includes(chosen)) at("queue").value = chosen;
  await openQueue(at("queue").value);
  if (sample && ids.includes(sample)) await show(ids.indexOf(sample));
  if (about.missing.length && about.decided) tell(`Not made for all samples yet: ${about.missing.join(", ")}.`);
}

const actions = {
  accept, undo, flag: () => say("flag", !(said.mine.flag || {}).value).then(refresh),
  back: () => step(-1), next: () => step(1), brush: () => setMode("brush"), erase: () => setMode("erase"),
  "stroke-back": strokeBack, "save-matte": saveMatte,
  "drop-matte": () => say("matte", null).then(() => show(place)),
  "save-alpha": () => say("alpha_threshold", Number(at("alpha").value)).then(refresh),
  "drop-alpha": () => say("alpha_threshold", null).then(() => show(place)),
  apply: () => ask("/api/apply", {}).then(watchApplying),
  help: () => at("help").setAttribute("aria-expanded", String(!(at("keys").hidden = !at("keys").hidden))),
};
for (const [id, work] of Object.entries(actions)) at(id).addEventListener("click", () => doingNow(work));
at("decision").addEventListener("submit", (event) => { event.preventDefault(); doingNow(reject); });
at("queue").addEventListener("change", () => doing(() => openQueue(at("queue").value)));
at("boxes-shown").addEventListener("change", drawBoxes);
at("alpha").addEventListener("input", () => {
  showAlpha();
  matte.threshold = Number(at("alpha").value);
  if (matte.picture) matte.draw(mode !== null);
});

const KEYS = { a: "accept", f: "flag", u: "undo", ArrowRight: "next", j: "next", ArrowLeft: "back", k: "back", b: "brush",
  e: "erase", z: "stroke-back", s: "save-matte", "?": "help" };
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range], [type=checkbox]), textarea, select");
  if (event.key === "Escape") return document.activeElement.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
  const focus = { r: "reason", t: "alpha" }[event.key];
  const size = { "[": -4, "]": 4 }[event.key];
  if (KEYS[event.key]) at(KEYS[event.key]).click();
  else if (focus) at(focus).focus();
  else if (size) at("size").value = Number(at("size").value) + size;
  else return;
  event.preventDefault();
});

doing(() => start("undecided").then(watchApplying));
