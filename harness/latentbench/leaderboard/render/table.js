// The table: header with column groups, one page of rows, and the sentences that say what is best.

function drawHead(head) {
  const columns = shownColumns(), all = state.group.columns;
  const groups = [];
  for (const i of columns) {
    const domain = all[i].domain ?? "";
    if (groups.length && groups.at(-1).domain === domain) groups.at(-1).width += 1;
    else groups.push({ domain, width: 1 });
  }
  head.replaceChildren(
    el("tr", { class: "domains" }, el("th", { class: "name" }),
      ...groups.map((g) => el("th", { colspan: g.width, scope: "colgroup", class: "first" }, g.domain,
        state.group.counts[g.domain] ? el("span", { class: "counts" }, state.group.counts[g.domain]) : null)), el("th", { colspan: 2 })),
    el("tr", {}, heading("spec", "Spec", null, "name"),
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
  state.page = 0;
  drawTable();
  document.querySelector(`[data-sort="${by}"]`).focus();
}

function drawTable() {
  const table = find("table"), rows = visibleRows(), ordered = sorted(rows);
  const columns = shownColumns(), judged = new Map(columns.map((i) => [i, standings(i)]));
  const pages = Math.max(1, Math.ceil(ordered.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const slice = ordered.slice(state.page * PAGE, (state.page + 1) * PAGE);
  drawHead(table.tHead);
  table.tBodies[0].replaceChildren(...slice.map((row) => drawRow(row, columns, judged)));
  if (!slice.length) table.tBodies[0].append(el("tr", {}, el("td", { class: "none", colspan: columns.length + 3 }, "No row passes the filters.")));
  find("count").textContent = countText(ordered.length);
  drawPager(pages);
  drawFindings();
  const partial = rows.length < state.group.rows.length;
  find("scope").textContent = !partial ? "" : Object.keys(state.group.pairs).length
    ? "Ties are judged among the rows that pass the filters."
    : `Ties refer to all ${state.group.rows.length} rows, not only to those that pass the filters.`;
}

function countText(n) {
  const all = state.group.rows.length;
  const from = state.page * PAGE + 1, to = Math.min(n, from + PAGE - 1);
  const rows = `${all} row${all === 1 ? "" : "s"}`, filtered = n === all ? rows : `${n} of ${rows}`;
  return n > PAGE ? `${from}–${to} of ${filtered}` : filtered;
}

function drawPager(pages) {
  const turn = (by, label, text) => el("button", {
    type: "button", class: "quiet", "aria-label": label, disabled: state.page + by < 0 || state.page + by >= pages,
    onclick: () => { state.page += by; drawTable(); document.querySelector(".scroller").scrollTop = 0; },
  }, text);
  find("pager").replaceChildren(...(pages < 2 ? [] : [
    turn(-1, "Previous page", "‹"), el("span", { class: "muted" }, `page ${state.page + 1} of ${pages}`), turn(1, "Next page", "›")]));
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
  if (state.intervals && column.better !== null) cell.append(el("span", { class: "interval" }, intervalText(row, i)));
  return cell;
}

function intervalText(row, i) {
  const column = state.group.columns[i], low = numberOf(row, i, LOW), high = numberOf(row, i, HIGH), sd = numberOf(row, i, SD);
  const range = low === null ? "" : `${shownIn(column, low)}–${shownIn(column, high)}`;
  return [range, sd === null ? "" : `± ${spread(sd, column.unit, column.decimals ?? undefined)}`].filter(Boolean).join("  ");
}

// One card per domain: the column sorted by, or the first with a direction, and who is best or cannot be told from it.
function drawFindings() {
  const cards = state.group.domains.map((domain) => {
    const columns = shownColumns().filter((i) => state.group.columns[i].domain === domain && state.group.columns[i].better !== null);
    const chosen = columns.includes(state.sort?.by) ? state.sort.by : columns.find((i) => state.group.columns[i].label === state.group.columns[state.sort?.by]?.label) ?? columns[0];
    return chosen === undefined ? null : finding(domain, chosen);
  });
  find("findings").replaceChildren(...cards.filter(Boolean));
}

function finding(domain, i) {
  const column = state.group.columns[i], judged = standings(i);
  const count = (kind) => [...judged].filter(([, v]) => v.standing === kind).map(([row]) => row);
  const [best] = count("best"), tied = count("tied"), behind = count("behind");
  const head = el("h3", {}, `Best ${column.label} on ${domain}`);
  if (!best) return el("div", { class: "card" }, head, el("p", { class: "muted" }, "Nothing to compare: fewer than two ranked rows, or no test is possible."));
  const link = (row) => el("button", { type: "button", class: "link", onclick: () => openDrawer(row) }, nameOf(row));
  const low = numberOf(best, i, LOW);
  const range = low === null ? "" : ` (${shownIn(column, low)}–${shownIn(column, numberOf(best, i, HIGH))})`;
  const rivals = tied.slice(0, 3).flatMap((row, n) => [n ? ", " : "", link(row)]);
  const rest = tied.length > 3 ? ` and ${tied.length - 3} more` : "";
  const lead = el("p", { class: "lead" }, link(best), el("span", { class: "number" }, shownIn(column, numberOf(best, i))), el("span", { class: "muted" }, range));
  const tie = tied.length ? el("p", {}, "Not distinguishable from ", ...rivals, rest, ".") : el("p", {}, "Significantly ahead of all others.");
  return el("div", { class: "card" }, head, lead, tie, el("p", { class: "muted" }, `${behind.length} behind (adjusted p ≤ 0.05).`));
}
