// Wires the controls to the state.

let figures = 0;

function drawAll() {
  drawTable();
  // After the first paint: the table is what the reader waits for. Figures of what is no longer shown are not drawn.
  const turn = ++figures;
  requestAnimationFrame(() => setTimeout(() => whenWhole(() => { if (turn === figures) drawFigures(); }), 0));
}

function drawFigures() {
  drawPlots();
  drawCurves();
}

// The columns of the short table; of three domains and more the first of each alone, and of more than four domains those of
// the first four, so that they fit a screen side by side.
function shownAtFirst(columns) {
  const short = columns.map((column, i) => (column.shown ? i : -1)).filter((i) => i >= 0), found = {};
  const domains = [...new Set(short.map((i) => columns[i].domain))].slice(0, DOMAINS);
  const most = Math.max(2, Math.floor(COLUMNS / domains.length)), seen = (i) => (found[columns[i].domain] = (found[columns[i].domain] ?? 0) + 1);
  return new Set(short.length > COLUMNS ? short.filter((i) => domains.includes(columns[i].domain) && seen(i) <= most) : short);
}

function chooseGroup(group) {
  Object.assign(state, { group, sort: null, suite: "", status: "", limits: [], domain: group.domains[0] ?? null });
  state.shown = shownAtFirst(group.columns);
  find("status").value = "";
  find("group-title").textContent = group.title;
  fillFacts(group);
  fillControls(group);
  drawTabs();
  drawChips();
  drawAll();
}

function drawTabs() {
  const many = board.groups.length > 1;
  find("tabs").replaceChildren(...(many ? board.groups : []).map((group, i) => el("button", {
    type: "button", role: "tab", id: `tab-${i}`, "aria-controls": "group", "aria-selected": String(group === state.group),
    tabindex: group === state.group ? 0 : -1, onclick: () => { chooseGroup(group); find(`tab-${i}`).focus(); },
  }, el("span", {}, group.title), el("span", { class: "muted" }, tabText(group)))));
}

function tabText(group) {
  const rows = `${counted(group.rows.length)} row${group.rows.length === 1 ? "" : "s"}`;
  const suites = [...new Set(group.rows.map((row) => row.suite))].sort();
  return [rows, suites.join(", "), group.domains.join(", ")].filter(Boolean).join(" · ");
}

function fillFacts(group) {
  const facts = Object.keys(group.facts).length ? fold("What all rows of this table share", group.facts) : null;
  find("facts").replaceChildren(...(facts ? [facts] : []));
  const items = group.differs.map((d) => el("li", {}, el("code", {}, d.path), ` is ${shortFact(d.here)}, in the first table ${shortFact(d.there)}`));
  find("differs").replaceChildren(...(items.length ? [el("details", { class: "why", open: items.length < 7 }, el("summary", {}, "Why these rows stand apart"), el("ul", {}, ...items))] : []));
}

const shortFact = (value) => (value === null ? "absent" : typeof value === "string" && value.length > 40 ? `${value.slice(0, 12)}…` : typeof value === "string" ? value : JSON.stringify(value));

function fillControls(group) {
  const suites = [...new Set(group.rows.map((row) => row.suite))].sort();
  find("suite").replaceChildren(el("option", { value: "" }, "all"), ...suites.map((s) => el("option", { value: s }, s)));
  find("limit-column").replaceChildren(...group.columns.map((column, i) => el("option", { value: i, selected: column.label === "L0" && i < 1 }, columnName(column))));
  const boxes = group.columns.map((column, i) => el("label", { class: "check" }, el("input", {
    type: "checkbox", checked: state.shown.has(i), value: i,
    onchange: (event) => { state.shown[event.target.checked ? "add" : "delete"](i); drawTable(); },
  }), columnName(column)));
  find("columns").replaceChildren(...boxes);
}

function drawChips() {
  find("chips").replaceChildren(...state.limits.map((limit) => el("button", {
    type: "button", class: "chip", "aria-label": "Remove this limit",
    onclick: () => { state.limits = state.limits.filter((other) => other !== limit); drawChips(); drawAll(); },
  }, `${columnName(state.group.columns[limit.column])} ${limit.sign === "le" ? "≤" : "≥"} ${limit.bound}`, el("span", { "aria-hidden": "true" }, " ×"))));
}

// The reader goes on to type the bound: at least so good, or for numbers without a direction at most so much.
function limitColumn(event) {
  find("limit-sign").value = state.group.columns[event.target.value].better ? "ge" : "le";
  find("limit-number").focus();
}

function addLimit(event) {
  event.preventDefault();
  const bound = find("limit-number").valueAsNumber;
  if (Number.isNaN(bound) || !state.group) return;
  state.limits.push({ column: Number(find("limit-column").value), sign: find("limit-sign").value, bound });
  find("limit-number").value = "";
  drawChips();
  drawAll();
}

function filterWith(field, event) {
  state[field] = event.target.value;
  drawAll();
}

function saveCsv() {
  const columns = shownColumns(), cell = (text) => `"${String(text).replace(/^(?=[=+\-@\t\r])/, "'").replaceAll('"', '""')}"`;
  const head = ["spec", "label", ...columns.flatMap((i) => [state.group.columns[i].key, "low", "high"]), "seeds", "seconds"];
  const lines = sorted(visibleRows()).map((row) => [cell(row.spec), cell(row.label),
    ...columns.flatMap((i) => [VALUE, LOW, HIGH].map((field) => numberOf(row, i, field) ?? "")), cell(row.seeds), row.cost ?? ""].join(","));
  const link = el("a", { download: "leaderboard.csv", href: URL.createObjectURL(new Blob([[head.map(cell).join(","), ...lines].join("\n")], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function keys(event) {
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing && !find("drawer").open) {
    event.preventDefault();
    find("search").focus();
  }
  if (event.target.role === "tab" && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const tabs = [...find("tabs").children], step = event.key === "ArrowRight" ? 1 : -1;
    tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length].click();
  }
  if (event.target.matches?.(".row-name") && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    event.preventDefault();
    focusRow(placeOf(event.target.closest("tr")) + (event.key === "ArrowDown" ? 1 : -1));
  }
}

function start() {
  startTheme();
  fitSize();
  state.intervals = find("intervals").checked = window.innerWidth > NARROW;
  find("group").hidden = !state.group;
  if (!state.group) return;
  let pending = 0;
  find("search").addEventListener("input", (event) => { clearTimeout(pending); pending = setTimeout(() => filterWith("search", event), 60); });
  find("suite").addEventListener("change", (event) => filterWith("suite", event));
  find("status").addEventListener("change", (event) => filterWith("status", event));
  find("limit").addEventListener("submit", addLimit);
  find("limit-column").addEventListener("change", limitColumn);
  window.addEventListener("resize", () => { if (fitSize()) drawFigures(); });
  find("intervals").addEventListener("change", (event) => { state.intervals = event.target.checked; drawTable(); });
  find("csv").addEventListener("click", saveCsv);
  find("drawer").addEventListener("click", (event) => { if (event.target === find("drawer")) find("drawer").close(); });
  document.addEventListener("keydown", keys);
  document.addEventListener("click", (event) => document.querySelectorAll("details.menu[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; }));
  startWindow();
  chooseGroup(state.group);
  performance.mark("rows");
  whenWhole(() => { if (asked) drawAll(); });
}

start();
