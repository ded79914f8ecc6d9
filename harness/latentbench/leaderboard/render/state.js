// The data, what the reader chose, and what follows from both.

const board = read("board");
const DECIMALS = board.decimals;
const [VALUE, LOW, HIGH, SD, COUNT, STANDING, P, REASON, TRAINED] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const PAGE = 50;

board.groups.forEach((group) => group.rows.forEach((row, i) => {
  row.index = i;
  row.text = `${row.spec} ${row.label} ${row.variant} ${row.badges.map((b) => b[1]).join(" ")}`.toLowerCase();
}));

const state = {
  group: board.groups[0], sort: null, search: "", suite: "", status: "", limits: [],
  shown: new Set(), intervals: true, page: 0, domain: null,
};

const nameOf = (row) => (row.label ? `${row.spec} · ${row.label}` : row.spec);
// Long names may break between words, not within one.
const breakable = (text) => text.split(/(?<=[/_])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
// A number of a column with the digits that its intervals deserve.
const shownIn = (column, x) => digits(x, column.unit, column.decimals ?? undefined);
const columnName = (column) => (column.domain ? `${column.label}, ${column.domain}` : column.label);

function numberOf(row, column, field = VALUE) {
  const value = row.values[column];
  return value === undefined || value[field] === undefined ? null : value[field];
}

function beyondOf(row, column) {
  const k = numberOf(row, column, TRAINED);
  return k === null ? null : `measured with more active latents than the ${k} it was trained with`;
}

// Rows that pass the filters, and their standings by column, are kept until a filter changes: sorting needs neither anew.
let passed = { filters: null, rows: [], standings: new Map() };

function visibleRows() {
  const filters = JSON.stringify([board.groups.indexOf(state.group), state.search, state.suite, state.status, state.limits]);
  if (passed.filters !== filters) passed = { filters, rows: filtered(), standings: new Map() };
  return passed.rows;
}

function standings(column) {
  const rows = visibleRows();
  if (!passed.standings.has(column)) passed.standings.set(column, judge(rows, column));
  return passed.standings.get(column);
}

function filtered() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  return state.group.rows.filter((row) =>
    words.every((word) => row.text.includes(word)) &&
    (!state.suite || row.suite === state.suite) &&
    (!state.status || state.status === kindOf(row)) &&
    state.limits.every((limit) => within(numberOf(row, limit.column), limit)));
}

const kindOf = (row) => (row.complete ? "ranked" : row.values.length ? "partial" : "failed");
const within = (x, { sign, bound }) => x !== null && (sign === "le" ? x <= bound : x >= bound);

function sorted(rows) {
  if (!state.sort) return rows;
  const { by, descending } = state.sort;
  const key = { spec: nameOf, cost: (row) => row.cost, seeds: (row) => row.seeds }[by] ?? ((row) => numberOf(row, by));
  const keyed = rows.map((row) => [key(row), row]);
  const compare = (a, b) => (typeof a === "string" ? (a < b ? -1 : a > b ? 1 : 0) : a - b);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return descending ? compare(b, a) : compare(a, b);
  });
  return keyed.map(([, row]) => row);
}

// Standing of the rows left by the filters; judged anew where the page holds the p-values of all pairs.
function judge(rows, column) {
  const group = state.group, better = group.columns[column].better, pairs = group.pairs[column];
  const found = new Map();
  if (better === null) return found;
  if (rows.length === group.rows.length || !pairs) {
    rows.forEach((row) => found.set(row, { standing: numberOf(row, column, STANDING), p: numberOf(row, column, P) }));
    return found;
  }
  const ranked = rows.filter((row) => row.complete && numberOf(row, column) !== null);
  if (ranked.length < 2) return found;
  const sign = better ? 1 : -1;
  const best = ranked.reduce((a, b) => (sign * numberOf(b, column) > sign * numberOf(a, column) ? b : a));
  const tested = ranked.filter((row) => row !== best && pairOf(pairs, row, best) !== null);
  tested.sort((a, b) => pairOf(pairs, a, best) - pairOf(pairs, b, best));
  let running = 0;
  tested.forEach((row, rank) => {
    const family = (ranked.length * (ranked.length - 1)) / 2 - rank;
    running = Math.max(running, Math.min(1, pairOf(pairs, row, best) * family));
    found.set(row, { standing: running <= ALPHA ? "behind" : "tied", p: running });
  });
  if (tested.length) found.set(best, { standing: "best", p: null });
  return found;
}

const pairOf = (pairs, a, b) => (a.index > b.index ? pairs[a.index][b.index] : pairs[b.index][a.index]);
const shownColumns = () => state.group.columns.map((_, i) => i).filter((i) => state.shown.has(i));
