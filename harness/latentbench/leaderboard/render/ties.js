// Who is best among the rows that pass the filters, and who cannot be told from the best.

// As the records' tests say it of all rows; for a part of them judged anew from the tests that the page holds.
// `basis` says which: "all", "passed", or "untested" where no test is at hand and nothing is claimed.
function judge(rows, i) {
  const group = state.group, { better } = group.columns[i];
  if (better === null) return verdicts("all");
  const pairs = rows.length < group.rows.length ? pairsOf(group, i) : null;
  if (!pairs) return recorded(rows, i);
  const ranked = rows.filter((row) => row.complete && numberOf(row, i) !== null);
  if (ranked.length < 2) return verdicts("passed");
  const sign = better ? 1 : -1;
  const best = ranked.reduce((a, b) => (sign * numberOf(b, i) > sign * numberOf(a, i) ? b : a));
  if (!pairs.has(best.index)) return { ...verdicts("untested"), first: best };
  return adjusted(ranked, best, pairs);
}

function recorded(rows, i) {
  const group = state.group, standing = valuesOf(group, i, STANDING), p = valuesOf(group, i, P);
  const at = ({ index }) => (standing[index] ? { standing: standing[index], p: p[index] ?? null } : undefined);
  return verdicts("all", at, rows.filter((row) => standing[row.index]), ({ index }) => standing[index]);
}

// Holm over all pairs of what is left, since which row is best was decided by the same data.
function adjusted(ranked, best, pairs) {
  const p = (row) => pairs.get(best.index)[row.index] ?? pairs.get(row.index)?.[best.index] ?? null;
  const tested = ranked.filter((row) => row !== best).map((row) => [row, p(row)]).filter(([, value]) => value !== null);
  tested.sort(([, a], [, b]) => a - b);
  const found = new Map(), all = (ranked.length * (ranked.length - 1)) / 2;
  let running = 0;
  tested.forEach(([row, value], rank) => {
    running = Math.max(running, Math.min(1, value * (all - rank)));
    found.set(row, { standing: running <= ALPHA ? "behind" : "tied", p: running });
  });
  if (tested.length) found.set(best, { standing: "best", p: null });
  return verdicts("passed", (row) => found.get(row), ranked.filter((row) => found.has(row)));
}

// `get` says how a row stands, `rows` are those of which there is something to say.
function verdicts(basis, get = () => undefined, rows = [], standing = (row) => get(row).standing) {
  const tied = rows.filter((row) => standing(row) === "tied"), best = rows.find((row) => standing(row) === "best");
  return { basis, get, best, tied, behind: rows.length - tied.length - (best ? 1 : 0) };
}

// What the marks refer to, once a filter has left a part of the rows.
function scopeText() {
  const rows = state.group.rows.length;
  if (visibleRows().length === rows) return "";
  const columns = shownColumns().filter((i) => state.group.columns[i].better !== null);
  const named = (basis) => columns.filter((i) => standings(i).basis === basis).map((i) => columnName(state.group.columns[i]));
  const [here, all, untested] = ["passed", "all", "untested"].map(named);
  const which = (names) => (names.length === columns.length ? "" : ` (${names.join("; ")})`);
  return [
    here.length && "Ties are judged among the rows that pass the filters.",
    all.length && `Ties${which(all)} refer to all ${counted(rows)} rows, not only to those that pass the filters.`,
    untested.length && `Ties${which(untested)} are not told: the best of these rows was not tested here against the others; latentbench compare A B tests two rows.`,
  ].filter(Boolean).join(" ");
}
