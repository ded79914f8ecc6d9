// Rows are drawn where the reader looks: the table is cut into sections, and those far from the view are one empty row.

const SECTION = 50;
const PRINTED = 1000;
const view = { rows: [], draw: null, sections: [], average: 0, width: 0, pinned: null, printing: false };
const scroller = () => document.querySelector(".scroller");

// Shows `rows`, each as the element that `draw` makes of it. The first row in view stays there where only cells changed.
function showRows(rows, draw, width) {
  const stays = rows.length === view.rows.length && rows.every((row, i) => row === view.rows[i]) ? firstInView() : 0;
  Object.assign(view, { rows, draw, pinned: null });
  view.sections = Array.from({ length: Math.ceil(rows.length / SECTION) }, (_, i) => ({
    start: i * SECTION, end: Math.min(rows.length, (i + 1) * SECTION), body: el("tbody"), drawn: false, height: 0,
  }));
  const none = el("tbody", {}, el("tr", {}, el("td", { class: "none", colspan: width }, "No row passes the filters.")));
  const table = find("table");
  table.setAttribute("aria-rowcount", rows.length + table.tHead.rows.length);
  table.replaceChildren(table.tHead, ...(rows.length ? view.sections.map((section) => section.body) : [none]));
  if (!rows.length) return;
  estimate(width);
  if (stays) scroller().scrollTop = topOf(view.sections[Math.floor(stays / SECTION)]) + (stays % SECTION) * view.average;
  else scroller().scrollTop = 0;
  fillView();
}

// Heights of rows that were not drawn yet are guessed from the first section.
function estimate(width) {
  const [first] = view.sections;
  fill(first);
  view.average = first.body.offsetHeight / (first.end - first.start) || 48; // a hidden table has no height
  view.width = width;
  for (const section of view.sections) {
    if (section.drawn) continue;
    section.height = Math.round(view.average * (section.end - section.start));
    empty(section);
  }
  first.height = first.body.offsetHeight;
}

function fill(section) {
  section.drawn = true;
  const head = find("table").tHead.rows.length;
  section.body.replaceChildren(...view.rows.slice(section.start, section.end).map((row, i) => {
    const line = view.draw(row);
    line.setAttribute("aria-rowindex", head + section.start + i + 1);
    return line;
  }));
}

function empty(section) {
  section.drawn = false;
  const cell = el("td", { colspan: view.width });
  cell.style.height = `${section.height}px`;
  section.body.replaceChildren(el("tr", { class: "gap", "aria-hidden": "true" }, cell));
}

const topOf = (section) => view.sections.slice(0, section.start / SECTION).reduce((sum, other) => sum + other.height, 0);

function firstInView() {
  let top = scroller().scrollTop;
  for (const section of view.sections) {
    if (top < section.height) return section.start + Math.floor((top / section.height) * (section.end - section.start));
    top -= section.height;
  }
  return 0;
}

// Draws what is within a screen of the view and the section with the focus, and empties all others.
function fillView() {
  if (view.printing) return;
  const area = scroller(), top = area.scrollTop, reach = area.clientHeight, changed = wanted(top - reach, top + 2 * reach);
  if (!changed.length) return;
  for (const { section, near } of changed) (near ? fill : empty)(section);
  let above = 0;
  for (const { section, at, near } of changed) {
    if (!near) continue;
    const guessed = section.height;
    section.height = section.body.offsetHeight;
    if (at + guessed <= top) above += section.height - guessed;
  }
  // What is looked at stays where it is when rows above it turn out higher than guessed.
  if (above) area.scrollTop = top + above;
  holdWidths();
}

// Sections to draw or to empty so that those between `top` and `bottom` are drawn.
function wanted(top, bottom) {
  const focused = document.activeElement?.closest("tbody"), changed = [];
  let at = 0;
  for (const section of view.sections) {
    const near = at + section.height >= top && at <= bottom;
    const kept = near || section.body === focused || section === view.pinned;
    if (kept !== section.drawn) changed.push({ section, at, near: kept });
    at += section.height;
  }
  return changed;
}

// Columns only grow while one scrolls: each is as wide as its widest cell so far.
function holdWidths() {
  if (view.sections.length < 2) return;
  const heads = headings(), widths = heads.map((head) => head.offsetWidth);
  heads.forEach((head, i) => { head.style.minWidth = `${widths[i]}px`; });
}

const headings = () => [...[...find("table").tHead.rows].at(-1).cells];

function startWindow() {
  let pending = false;
  scroller().addEventListener("scroll", () => {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => { pending = false; fillView(); });
  }, { passive: true });
  window.addEventListener("resize", () => {
    headings().forEach((head) => { head.style.minWidth = ""; });
    fillView();
  });
  window.addEventListener("beforeprint", drawForPrint);
  window.addEventListener("afterprint", () => { view.printing = false; drawTable(); });
}

// On paper there is no scrolling: the first rows, and how many are left out.
function drawForPrint() {
  view.printing = true;
  for (const section of view.sections) if (section.start < PRINTED && !section.drawn) fill(section);
  const left = view.rows.length - PRINTED, text = `${counted(left)} more row${left === 1 ? "" : "s"}: filters choose what is printed.`;
  if (left > 0) find("table").append(el("tbody", {}, el("tr", {}, el("td", { class: "none", colspan: view.width }, text))));
}

// Focus on the row at a place of the list, wherever the view is.
function focusRow(place) {
  const section = view.sections[Math.floor(place / SECTION)];
  if (!section || place < 0 || place >= view.rows.length) return;
  view.pinned = section;
  if (!section.drawn) fillView();
  section.body.rows[place - section.start].querySelector(".row-name").focus();
}

const placeOf = (line) => Number(line.getAttribute("aria-rowindex")) - find("table").tHead.rows.length - 1;
