// The sentences that say what is best.

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
  const column = state.group.columns[i], { basis, best, first, tied, behind } = standings(i);
  const card = (...parts) => el("div", { class: "card" }, el("h3", {}, `Best ${column.label} on ${domain}`), ...parts);
  if (basis === "untested") return card(leadOf(first, i), el("p", { class: "muted" }, "Ties are not told: not tested here. ", el("code", {}, "latentbench compare A B"), " tests two rows."));
  if (!best) return card(el("p", { class: "muted" }, "Nothing to compare: fewer than two ranked rows, or no test is possible."));
  const rivals = tied.slice(0, 3).flatMap((row, n) => [n ? ", " : "", linkTo(row)]);
  const rest = tied.length > 3 ? ` and ${counted(tied.length - 3)} more` : "";
  const tie = tied.length ? el("p", {}, "Not distinguishable from ", ...rivals, rest, ".") : el("p", {}, "Significantly ahead of all others.");
  return card(leadOf(best, i), tie, el("p", { class: "muted" }, `${counted(behind)} behind (adjusted p ≤ 0.05).`));
}

const linkTo = (row) => el("button", { type: "button", class: "link", onclick: () => openDrawer(row) }, nameOf(row));

function leadOf(row, i) {
  const column = state.group.columns[i], low = numberOf(row, i, LOW);
  const range = low === null ? "" : ` (${shownIn(column, low)}–${shownIn(column, numberOf(row, i, HIGH))})`;
  return el("p", { class: "lead" }, linkTo(row), el("span", { class: "number" }, shownIn(column, numberOf(row, i))), el("span", { class: "muted" }, range));
}
