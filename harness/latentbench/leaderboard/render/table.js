// The table: headings in groups of columns, and how a row is drawn.

function drawHead(head) {
  const columns = shownColumns(), all = state.group.columns;
  const groups = [];
  for (const i of columns) {
    const domain = all[i].domain ?? "";
    if (groups.length && groups.at(-1).domain === domain) groups.at(-1).width += 1;
    else groups.push({ domain, width: 1 });
  }
  head.replaceChildren(
    el("tr", { class: "domains", "aria-rowindex": 1 }, el("th", { class: "name" }),
      ...groups.map((g) => el("th", { colspan: g.width, scope: "colgroup", class: "first" }, g.domain,
        state.group.counts[g.domain] ? el("span", { class: "counts" }, state.group.counts[g.domain]) : null)), el("th", { colspan: 2 })),
    el("tr", { "aria-rowindex": 2 }, heading("spec", "Spec", null, "name"),
      ...columns.map((i, n) => heading(i, all[i].label, all[i], firstOf(columns, n) ? "first" : "")),
      heading("seeds", "Seeds", null, "first"), heading("cost", "Time", null, "")));
}

const firstOf = (columns, n) => n === 0 || state.group.columns[columns[n]].domain !== state.group.columns[columns[n - 1]].domain;

function heading(by, label, column, kind) {
  const on = state.sort?.by === by;
  const arrow = on ? (state.sort.descending ? "↓" : "↑") : "";
  const hint = column && `${column.id}${column.params ? ` [${column.params}]` : ""} · ${column.unit}` +
    (column.better === null ? "" : column.better ? " · higher is better" : " · lower is better");
  const button = el("button", { type: "button", title: hint, "data-sort": by, onclick: () => sortBy(by, column) },
    label, el("span", { class: "arrow", "aria-hidden": "true" }, arrow));
  return el("th", { scope: "col", class: kind, "aria-sort": on ? (state.sort.descending ? "descending" : "ascending") : "none" }, button);
}

function sortBy(by, column) {
  const again = state.sort?.by === by;
  state.sort = { by, descending: again ? !state.sort.descending : column?.better === true };
  drawTable();
  document.querySelector(`[data-sort="${by}"]`).focus();
}

function drawTable() {
  const rows = visibleRows(), ordered = sorted(rows), all = state.group.rows.length;
  const columns = shownColumns(), judged = new Map(columns.map((i) => [i, standings(i)]));
  drawHead(find("table").tHead);
  showRows(ordered, (row) => drawRow(row, columns, judged), columns.length + 3);
  const total = `${counted(all)} row${all === 1 ? "" : "s"}`;
  find("count").textContent = rows.length === all ? total : `${counted(rows.length)} of ${total}`;
  drawFindings();
  find("scope").textContent = scopeText();
}

function drawRow(row, columns, judged) {
  const name = el("button", { type: "button", class: "row-name", "data-row": row.id, onclick: () => openDrawer(row) },
    el("span", {}, ...breakable(row.spec)), row.label ? el("span", { class: "label" }, row.label) : null);
  const badges = row.badges.map(([kind, text, detail]) => el("span", { class: `badge ${kind}`, title: detail }, text));
  return el("tr", { class: kindOf(row), onclick: (event) => { if (!event.target.closest("button")) openDrawer(row); } },
    el("th", { scope: "row", class: "name" }, name, badges.length ? el("div", { class: "badges" }, ...badges) : null),
    ...columns.map((i, n) => drawCell(row, i, judged.get(i).get(row), firstOf(columns, n))),
    el("td", { class: "first" }, row.seeds), el("td", {}, duration(row.cost)));
}

function drawCell(row, i, verdict, first) {
  const column = state.group.columns[i], value = numberOf(row, i);
  const reason = numberOf(row, i, REASON), standing = verdict?.standing;
  if (value === null) return el("td", { class: `blank ${first ? "first" : ""}`, title: reason ?? "not measured" }, "–");
  const said = { best: "best", tied: "tied with the best", behind: "behind the best" }[standing];
  const beyond = beyondOf(row, i), hint = [said, pText(verdict?.p), reason, beyond].filter(Boolean).join("; ");
  const cell = el("td", { class: `${standing ?? ""} ${first ? "first" : ""}`, title: hint || null },
    el("span", { class: "number" }, standing === "best" || standing === "tied" ? el("span", { class: `mark ${standing}`, role: "img", "aria-label": said }) : null, shownIn(column, value), beyond ? "†" : null));
  // Where neither direction is better the interval would only be noise here; the drawer has it.
  if (state.intervals && column.better !== null) cell.append(el("span", { class: "interval" }, intervalText(row, i, "\n")));
  return cell;
}

// The 95 % interval and the spread over seeds; below each other in the table, which is wide enough.
function intervalText(row, i, between = "  ") {
  const column = state.group.columns[i], low = numberOf(row, i, LOW), high = numberOf(row, i, HIGH), sd = numberOf(row, i, SD);
  const range = low === null ? "" : `${shownIn(column, low)}–${shownIn(column, high)}`;
  return [range, sd === null ? "" : `± ${spread(sd, column.unit, column.decimals ?? undefined)}`].filter(Boolean).join(between);
}
