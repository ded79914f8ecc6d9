// What the page carries, by column as columnar.py writes it: the short table is read at once, all else when it is asked for.

const board = read("board");
const DECIMALS = board.decimals;
const [VALUE, LOW, HIGH, SD, COUNT, STANDING, P, REASON, TRAINED] = ["value", "low", "high", "sd", "n", "standing", "p", "reason", "trained"];
const pieces = new Map();
let asked = false; // for a piece before the browser had read the whole file

function piece(name) {
  if (pieces.has(name)) return pieces.get(name);
  if (document.readyState === "loading") {
    asked = true;
    return null;
  }
  const node = find(name), found = node && JSON.parse(node.textContent);
  pieces.set(name, found);
  node?.remove();
  return found;
}

// Calls `act` once every piece is there.
function whenWhole(act) {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", act, { once: true });
  else act();
}

function unpack(column, count) {
  if (Array.isArray(column)) return column;
  if (column && "of" in column) return column.at.map((place) => column.of[place]);
  const found = new Array(count).fill(column?.all ?? null);
  column?.in?.forEach((row, i) => { found[row] = column.as[i]; });
  return found;
}

board.groups.forEach((group, index) => {
  const fields = Object.entries(group.rows).map(([name, column]) => [name, unpack(column, group.count)]);
  group.index = index;
  group.rows = Array.from({ length: group.count }, (_, i) => {
    const row = { index: i };
    for (const [name, values] of fields) row[name] = values[i];
    row.text = `${row.spec} ${row.label} ${row.variant} ${row.badges.map((b) => b[1]).join(" ")}`.toLowerCase();
    return row;
  });
});

// One kind of number of a column for all rows of a group.
function valuesOf(group, i, field) {
  const column = group.columns[i], raw = group.numbers[i] ?? piece(`numbers-${group.index}-${column.piece}`)?.[i];
  if (!raw) return [];
  column.read ??= {};
  return (column.read[field] ??= unpack(raw[field], group.count));
}

const numberOf = (row, column, field = VALUE) => valuesOf(state.group, column, field)[row.index] ?? null;

// The tests of a column: opponents' places to their p-values with every row; null where the page holds none.
function pairsOf(group, i) {
  const found = piece(`pairs-${group.index}-${i}`);
  if (!found) return null;
  found.lines ??= new Map(found.opponents.map((place, k) => [place, found.p[k]]));
  return found.lines;
}

// What was run, on what, and how to run it again.
function detailsOf(row) {
  const { index, count, details } = state.group, start = row.index - (row.index % details);
  const parts = piece(`details-${index}-${start / details}`), size = Math.min(details, count - start);
  return parts && Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, grown(part, row.index - start, size)]));
}

function grown({ of, forms }, at, count) {
  const kinds = unpack(of, count), alike = kinds.map((kind, i) => (kind === kinds[at] ? i : -1)).filter((i) => i >= 0);
  const { form, leaves } = forms[kinds[at]], place = alike.indexOf(at);
  const fill = (part) => {
    if (typeof part === "number") return unpack(leaves[part], alike.length)[place] ?? null;
    if (Array.isArray(part)) return part.map(fill);
    return Object.fromEntries(Object.entries(part).map(([name, inner]) => [name, fill(inner)]));
  };
  return fill(form);
}
