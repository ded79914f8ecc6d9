// The data, what the reader chose, and what follows from both. Foreign text only ever becomes textContent.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const find = (id) => document.getElementById(id);
const board = read("board");
const [VALUE, LOW, HIGH, SD, DOCUMENTS, STANDING, P, REASON] = [0, 1, 2, 3, 4, 5, 6, 7];
const ALPHA = 0.05;
const PAGE = 50;

board.groups.forEach((group) => group.rows.forEach((row, i) => {
  row.index = i;
  row.text = `${row.spec} ${row.label} ${row.variant} ${row.badges.map((b) => b[1]).join(" ")}`.toLowerCase();
}));

const state = {
  group: board.groups[0], sort: null, search: "", suite: "", status: "", limits: [],
  shown: new Set(), intervals: true, page: 0, domain: null,
};

function el(tag, properties = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "polyline", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function digits(x, unit) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (size >= 1e6 || (x !== 0 && size < 5e-4)) return x.toExponential(2);
  const decimals = board.decimals[unit];
  if (decimals !== undefined) return x.toFixed(decimals);
  return String(Number(x.toPrecision(4)));
}

// A spread has the digits of its number; what rounds to nothing is said to be small.
function spread(sd, unit) {
  const decimals = board.decimals[unit];
  if (decimals === undefined || sd === 0) return digits(sd, unit);
  const least = 10 ** -decimals;
  return sd < least / 2 ? `<${least.toFixed(decimals)}` : sd.toFixed(decimals);
}

const pText = (p) => (p === null || p === undefined ? "" : p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);

function duration(seconds) {
  if (seconds === null) return "–";
  for (const [size, unit] of [[3600, "h"], [60, "min"]]) if (seconds >= size) return `${(seconds / size).toFixed(1)} ${unit}`;
  return `${seconds.toFixed(1)} s`;
}

const nameOf = (row) => (row.label ? `${row.spec} · ${row.label}` : row.spec);
// Long names may break after a slash, not within a word.
const breakable = (text) => text.split(/(?<=\/)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
const columnName = (column) => (column.domain ? `${column.label}, ${column.domain}` : column.label);

function numberOf(row, column, field = VALUE) {
  const value = row.values[column];
  return value === undefined || value[field] === undefined ? null : value[field];
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
