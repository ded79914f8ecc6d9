// What the reader chose, and the rows that follow from it.

const state = {
  group: board.groups[0], sort: null, search: "", suite: "", status: "", limits: [],
  shown: new Set(), intervals: true, domain: null,
};

const COLUMNS = 10; // that fit a screen beside the names
const DOMAINS = 4; // that have room for two columns each there

const nameOf = (row) => (row.label ? `${row.spec} · ${row.label}` : row.spec);
// Long names may break between words, not within one.
const breakable = (text) => text.split(/(?<=[/_])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
// A number of a column with the digits that its intervals deserve.
const shownIn = (column, x) => digits(x, column.unit, column.decimals ?? undefined);
const columnName = (column) => (column.domain ? `${column.label}, ${column.domain}` : column.label);
const shownColumns = () => state.group.columns.map((_, i) => i).filter((i) => state.shown.has(i));

function beyondOf(row, column) {
  const k = numberOf(row, column, TRAINED);
  return k === null ? null : `measured with more active latents than the ${k} it was trained with`;
}

// Rows that pass the filters, and their standings by column, are kept until a filter changes: sorting needs neither anew.
let passed = { filters: null, rows: [], standings: new Map() };

function visibleRows() {
  const filters = JSON.stringify([state.group.index, state.search, state.suite, state.status, state.limits]);
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

const kindOf = (row) => (row.complete ? "ranked" : row.measured ? "partial" : "failed");
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
