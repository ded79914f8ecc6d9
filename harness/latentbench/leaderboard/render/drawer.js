// The drawer: all numbers of a row, what exactly was run, on what, and the command that runs it again.

function openDrawer(row) {
  untip();
  const facts = detailsOf(row);
  if (!facts) return whenWhole(() => openDrawer(row));
  const drawer = find("drawer");
  drawer.replaceChildren(el("div", { class: "sheet" }, ...drawerParts(row, facts)));
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
}

function drawerParts(row, facts) {
  const badges = row.badges.map(([kind, text, detail]) => el("li", {}, el("span", { class: `badge ${kind}` }, text), detail ? el("span", {}, ` ${detail}`) : null));
  return [
    el("header", {}, el("div", {}, el("h2", { id: "drawer-title" }, ...breakable(row.spec)), row.label ? el("p", { class: "label" }, row.label) : null),
      el("button", { type: "button", class: "quiet", "aria-label": "Close", autofocus: true, onclick: () => find("drawer").close() }, "Close")),
    badges.length ? el("ul", { class: "notes" }, ...badges) : null,
    el("h3", {}, facts.imported ? "Measured by another tool; import it again" : "Run it again"), command(facts.command),
    facts.imported ? fold("Imported from", facts.imported, true) : null,
    linksOf(row),
    ...numbersOf(row),
    fold("What was run, as resolved", { ...facts.resolved }, true),
    curvesOf(row),
    el("h3", {}, "Cells"), ...facts.cells.map(cellFacts),
    fold("Spec", facts.spec), fold("Comparability keys", facts.comparability), fold("Content keys", facts.keys),
    fold("Environment", facts.environment), fold("Cost", facts.cost), fold("Artifacts", facts.artifacts),
  ];
}

function command(text) {
  const done = el("span", { class: "muted", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      done.textContent = "copied";
    } catch {
      window.getSelection().selectAllChildren(code);
      done.textContent = "selected";
    }
  };
  const code = el("code", {}, text);
  return el("div", { class: "command" }, code, el("button", { type: "button", class: "quiet", onclick: copy }, "Copy"), done);
}

// Pages that lie beside the report: single latents, steering vectors, flow maps.
function linksOf(row) {
  const links = piece("pages")?.[row.id] ?? [];
  return links.length ? el("p", { class: "links" }, "Look closer: ", ...links.flatMap(([text, address], i) => [i ? " · " : "", el("a", { href: address }, text)])) : null;
}

const countedText = (n, units) => (n === null ? "–" : `${n.toLocaleString("en")} ${n === 1 ? (units ?? "").replace(/s$/, "") : units ?? ""}`.trim());

// The columns of the table first, so that what was run is not far below; the others on demand.
function numbersOf(row) {
  if (!row.measured) return [];
  const all = state.group.columns.map((_, i) => i), shown = all.filter((i) => state.shown.has(i)), rest = all.filter((i) => !state.shown.has(i));
  return [numbersTable(row, shown, "Numbers", true), rest.length ? numbersTable(row, rest, `${rest.length} more numbers`, false) : null];
}

function numbersTable(row, columns, title, open) {
  const said = { best: "best", tied: "tied with the best", behind: "behind the best" };
  const body = columns.map((i) => {
    const column = state.group.columns[i], standing = numberOf(row, i, STANDING);
    const verdict = [said[standing], pText(numberOf(row, i, P)), numberOf(row, i, REASON), beyondOf(row, i)].filter(Boolean).join("; ");
    return el("tr", {}, el("th", { scope: "row" }, columnName(column), el("span", { class: "interval" }, `${column.id}${column.params ? ` [${column.params}]` : ""}`)),
      el("td", {}, shownIn(column, numberOf(row, i)), beyondOf(row, i) ? "†" : null, el("span", { class: "interval" }, intervalText(row, i))),
      el("td", {}, countedText(numberOf(row, i, COUNT), column.units)), el("td", { class: "words" }, verdict));
  });
  const head = ["Number", "Value", "Over", "Against the group's best"].map((text) => el("th", { scope: "col" }, text));
  return el("details", { open }, el("summary", {}, title), el("div", { class: "wide" }, el("table", { class: "numbers stacked" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body))));
}

function cellFacts(cell) {
  const pairs = [["status", cell.status], ["cell", cell.cell.slice(0, 16)], ["record", cell.record], ["written", cell.created]];
  if (cell.error) pairs.push([cell.error.stage, `${cell.error.type}: ${cell.error.message}`], ["log", cell.error.log ?? "none"]);
  return el("dl", { class: `cell ${cell.status}` }, el("dt", {}, "seed"), el("dd", {}, String(cell.seed)),
    ...pairs.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
}

function fold(title, data, open = false) {
  if (data === null || (typeof data === "object" && !Object.keys(data).length)) return null;
  return el("details", { open }, el("summary", {}, title), el("pre", {}, yaml(data).join("\n")));
}

function yaml(data, indent = "") {
  if (data === null || typeof data !== "object") return [indent + scalar(data)];
  const entries = Array.isArray(data) ? data.map((v) => ["-", v]) : Object.entries(data).map(([k, v]) => [`${scalar(k)}:`, v]);
  return entries.flatMap(([head, value]) => {
    if (value === null || typeof value !== "object") return [`${indent}${head} ${scalar(value)}`];
    if (!Object.keys(value).length) return [`${indent}${head} ${Array.isArray(value) ? "[]" : "{}"}`];
    const inner = yaml(value, `${indent}  `);
    if (head === "-") return [`${indent}- ${inner[0].trimStart()}`, ...inner.slice(1)];
    return [`${indent}${head}`, ...inner];
  });
}

// Strings that YAML could take for something else are quoted.
function scalar(value) {
  if (typeof value !== "string") return String(value);
  const bare = /^[A-Za-z_/][\w ./@=+-]*$/.test(value) && value === value.trim() && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(value);
  return bare ? value : JSON.stringify(value);
}
