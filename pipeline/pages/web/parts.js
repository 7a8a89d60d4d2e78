// What the scripts of the pages share. Everything that data says becomes text nodes, never markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export class Refused extends Error {}

// The server's answer as JSON. Throws Refused with the server's own line if it refuses.
export async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused("the server does not answer; is it still running?");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(said.error || said.detail || `the server answered ${answer.status}`);
  return said;
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(3);
}

export const pictureOf = (id, name, side) =>
  `/picture/${encodeURIComponent(id)}/${name}${side ? `?side=${side}` : ""}`;

// A picture with its caption; "not made" where there is none.
export function figure(id, name, caption, there, side) {
  const shown = there
    ? el("img", { src: pictureOf(id, name, side), alt: caption, class: name === "target" ? "" : "check", loading: "lazy" })
    : el("div", { class: "absent muted" }, "not made");
  return el("figure", { "data-picture": name }, shown, el("figcaption", { class: "text" }, caption));
}

// The table of a sample's rules, those it breaks first: score, bound, and whether it passes.
export function ruleTable(rules, columns = {}) {
  const order = { fail: 0, unknown: 1, pass: 2 };
  const rows = [...rules].sort((a, b) => order[a.state] - order[b.state]).map((rule) => el("tr", { "data-reason": rule.reason },
    el("td", { title: rule.meaning }, el("span", { class: `tag ${rule.state}` }, rule.reason)),
    el("td", { title: (columns[rule.column] || {}).meaning || "", class: "column" }, rule.column),
    el("td", { class: "number" }, number(rule.score)),
    el("td", { class: "number" }, `${rule.bound === "min" ? "≥" : "≤"} ${number(rule.threshold)}`)));
  return el("table", { class: "rules" },
    el("thead", {}, el("tr", {}, ...["rule", "score of", "score", "needs"].map((text, k) => el("th", { scope: "col", class: ["", "column", "number", "number"][k] }, text)))),
    el("tbody", {}, rows));
}

// Every column of a row as a table of name and value.
export function valueTable(row, columns = {}) {
  return el("table", {}, el("tbody", {}, Object.entries(row || {}).map(([name, value]) => el("tr", {},
    el("th", { scope: "row", class: "muted", title: (columns[name] || {}).meaning || "" }, name),
    el("td", { class: "text" }, Array.isArray(value) ? value.map(number).join(", ") : number(value))))));
}
