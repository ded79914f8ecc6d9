// Pareto plots as inline SVG: intervals as whiskers, dominated points faded, shape by variant.

const SAME = 0.01;
const WHISKERS = 300;
const INTERACTIVE = 600;
const NEAR = 10; // pixels within which the mouse means a point
const FAR = 3; // interquartile ranges from the quartiles, beyond which a point would squeeze all others together
const FEW = 0.15; // the share of points that may be beyond
const SHAPES = [
  "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0", "M-4-4h8v8h-8z", "M0-5.4L5 3.6H-5z", "M0-5.6L5.6 0L0 5.6L-5.6 0z",
  "M0 5.4L5-3.6H-5z", "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
  "M0-5.8L1.5-1.8L5.6-1.7L2.4 .9L3.5 4.9L0 2.6L-3.5 4.9L-2.4 .9L-5.6-1.7L-1.5-1.8z", "M-5.4 0L3.6-5V5z", "M5.4 0L-3.6-5V5z",
  "M-4.6-5H4.6L-4.6 5H4.6z", "M-5-3.4L-3.4-5L0-1.6L3.4-5L5-3.4L1.6 0L5 3.4L3.4 5L0 1.6L-3.4 5L-5 3.4L-1.6 0z", "M-5-2.4H5V2.4H-5z",
];

function drawPlots() {
  const area = find("plots"), { plots } = state.group;
  const domains = [...new Set(plots.map((plot) => plot.domain))];
  if (!domains.length) {
    area.replaceChildren();
    return;
  }
  if (!domains.includes(state.domain)) state.domain = domains[0];
  const drawn = plots.filter((plot) => plot.domain === state.domain);
  const rows = visibleRows().filter((row) => row.measured);
  const kinds = [...new Set(state.group.rows.map((row) => row.variant).filter(Boolean))];
  const choose = el("select", { id: "plot-domain", onchange: (event) => { state.domain = event.target.value; drawPlots(); } },
    ...domains.map((d) => el("option", { value: d, selected: d === state.domain }, d)));
  const legend = el("div", { class: "shapes" }, ...kinds.map((kind) => el("span", {}, icon(kinds.indexOf(kind)), kind)),
    el("span", { class: "muted" }, "line: not dominated by any other row · faint: dominated"));
  const figures = el("div", { class: "figures" });
  area.replaceChildren(
    el("div", { class: "plot-head" }, el("h3", {}, "Trade-offs"), el("label", { class: "field inline" }, el("span", {}, "Domain"), choose)), legend, figures);
  addFigures(figures, drawn.map((plot) => () => figure(plot, rows, kinds)), rows.length > INTERACTIVE);
}

// Figures of thousands of points come one after the other, so that the page answers in between.
function addFigures(area, drawing, slowly) {
  if (!drawing.length || (slowly && !area.isConnected)) return;
  const [first, ...others] = drawing;
  area.append(first());
  if (slowly) setTimeout(() => addFigures(area, others, slowly), 0);
  else addFigures(area, others, slowly);
}

// Every shape filled, then every shape hollow: as many kinds as there are variants can be told apart.
const pointOf = (index, more = {}) => el("path", { class: index < SHAPES.length ? "point" : "point hollow", d: SHAPES[Math.max(0, index) % SHAPES.length], ...more });
const icon = (index) => el("svg", { viewBox: "-7 -7 14 14", width: 14, height: 14, "aria-hidden": "true" }, pointOf(index));

function figure(plot, rows, kinds) {
  const { columns } = state.group, y = columns[plot.y];
  const x = plot.x === "scale" ? { label: "Steering scale", unit: "as specified", domain: plot.domain } : columns[plot.x];
  const points = rows.map((row) => ({
    row, y: numberOf(row, plot.y), ys: rangeOf(row, plot.y),
    ...(plot.x === "scale" ? { x: row.scale, xs: [null, null] } : { x: numberOf(row, plot.x), xs: rangeOf(row, plot.x) }),
  })).filter((p) => p.x !== null && p.y !== null && (!plot.log || p.x > 0));
  const against = x.domain === plot.domain ? x.label : `${x.label} on ${x.domain}`;
  const caption = el("figcaption", {}, `${y.label} against ${against}, ${plot.domain}`);
  if (!points.length) return el("figure", {}, caption, el("p", { class: "muted" }, "No row has both numbers."));
  const lines = plot.x === "scale" ? series(points) : [frontierOf(points, y.better, x.better === true)], leading = new Set(lines.flat());
  const { near, far } = apartFrom(points, leading);
  const ends = (value, [low, high]) => [value, low ?? value, high ?? value].filter((v) => !plot.log || v > 0);
  const sx = scale(points.flatMap((p) => ends(p.x, p.xs)), SIZE.left, SIZE.width - SIZE.right, plot.log);
  const sy = scale(near.flatMap((p) => [p.y, p.ys[0] ?? p.y, p.ys[1] ?? p.y]), SIZE.height - SIZE.bottom, SIZE.top, false);
  const svg = el("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "group", "aria-label": caption.textContent },
    ...axis(sx, sy, x, y), ...lines.map((line) => el("polyline", { class: "frontier", points: line.map((p) => `${sx(p.x)},${sy(p.y)}`).join(" ") })),
    ...marks(near, leading, sx, sy, kinds, [x, y]), ...arrows(far, sx, sy, [x, y]));
  if (points.length > INTERACTIVE) pointAtNearest(svg, [...near.map((p) => [p, sx(p.x), sy(p.y)]), ...far.map((p) => [p, sx(p.x), edgeOf(p, sy)])], [x, y]);
  const note = far.length ? el("p", { class: "muted beyond-note" }, `${far.length} row${far.length === 1 ? "" : "s"} beyond this scale, shown by arrows at its edge.`) : null;
  return el("figure", {}, caption, svg, note);
}

const rangeOf = (row, i) => [numberOf(row, i, LOW), numberOf(row, i, HIGH)];

// Rows that differ only in scale: a larger one costs nothing by itself, so none dominates another.
function series(points) {
  const lines = new Map(), key = (row) => `${row.spec} ${row.label.replace(/(^|,)[^,=]*\bscale=[^,]*/, "")}`;
  for (const p of [...points].sort((a, b) => a.x - b.x)) {
    const name = key(p.row);
    if (lines.has(name)) lines.get(name).push(p);
    else lines.set(name, [p]);
  }
  return [...lines.values()];
}

// A few dominated points far from all others are left out of the scale.
function apartFrom(points, leading) {
  const ys = points.map((p) => p.y).sort((a, b) => a - b), at = (share) => ys[Math.floor(share * (ys.length - 1))];
  const reach = FAR * (at(0.75) - at(0.25));
  const low = at(0.25) - reach, high = at(0.75) + reach, outside = (p) => !leading.has(p) && (p.y < low || p.y > high);
  const far = points.filter(outside);
  return far.length > FEW * points.length ? { near: points, far: [] } : { near: points.filter((p) => !outside(p)), far };
}

const edgeOf = (p, sy) => (p.y < sy.middle ? SIZE.height - SIZE.bottom - 2 : SIZE.top + 2);
const arrowOf = (p, sy) => (p.y < sy.middle ? "-5-9h10l-5 9z" : "-5 9h10l-5-9z");

function arrows(far, sx, sy, axes) {
  if (far.length > WHISKERS) return [el("path", { class: "crowd-beyond", d: [...new Set(far.map((p) => `M${sx(p.x)} ${edgeOf(p, sy)}m${arrowOf(p, sy)}`))].join("") })];
  return far.map((p) => pointer(p, axes, "mark-point", el("path", { class: "point", d: `M${arrowOf(p, sy)}`, transform: `translate(${sx(p.x)} ${edgeOf(p, sy)})` })));
}

// A point stays when nothing is better in y at the same or a smaller x, where 1 % more counts as the same: a measured
// L0 never equals another exactly. A number of which more is better is seen from its other end. Partial rows stay out.
function frontierOf(points, higher, more) {
  const spent = (p) => (more ? -p.x : p.x);
  const ranked = points.filter((p) => p.row.complete).sort((a, b) => spent(a) - spent(b)), sign = higher ? 1 : -1;
  let bound = -Infinity, next = 0;
  return ranked.filter((p) => {
    while (next < ranked.length && spent(ranked[next]) <= spent(p) + SAME * Math.abs(p.x)) bound = Math.max(bound, sign * ranked[next++].y);
    return sign * p.y >= bound;
  });
}

function marks(points, frontier, sx, sy, kinds, axes) {
  if (points.length > INTERACTIVE) return crowd(points, frontier, sx, sy, kinds, axes);
  const ordered = [...points].sort((a, b) => frontier.has(a) - frontier.has(b));
  return ordered.map((p) => mark(p, frontier.has(p), sx, sy, kinds, axes, points.length <= WHISKERS));
}

// Thousands of points: most become one path, so that drawing stays quick; the mouse finds each of them all the same.
function crowd(points, frontier, sx, sy, kinds, axes) {
  const few = frontier.size <= INTERACTIVE, among = points.filter((p) => !frontier.has(p));
  if (few) return [dots(among, "crowd", sx, sy), ...[...frontier].map((p) => mark(p, true, sx, sy, kinds, axes, frontier.size <= WHISKERS))];
  return [dots(among, "crowd", sx, sy), dots(points.filter((p) => frontier.has(p)), "crowd leading", sx, sy)];
}

// Points that would cover each other exactly are drawn once.
const dots = (points, kind, sx, sy) => el("path", { class: kind, d: [...new Set(points.map((p) => `M${Math.round(sx(p.x) * 2) / 2 - 1.5} ${Math.round(sy(p.y) * 2) / 2}h3`))].join("") });

// spots: [point, x, y in the figure]
function pointAtNearest(svg, spots, axes) {
  const nearest = (event) => {
    const { left, top, width } = svg.getBoundingClientRect(), by = SIZE.width / width;
    const [x, y] = [(event.clientX - left) * by, (event.clientY - top) * by];
    let found = null, least = NEAR ** 2;
    for (const [p, px, py] of spots) {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [found, least] = [p, distance];
    }
    return found;
  };
  svg.addEventListener("mousemove", (event) => {
    const p = event.target.closest(".mark-point") ? null : nearest(event);
    if (p) tipAt(saidOf(p, axes), event.clientX, event.clientY);
    else if (!event.target.closest(".mark-point")) untip();
  });
  svg.addEventListener("mouseleave", untip);
  svg.addEventListener("click", (event) => { const p = event.target.closest(".mark-point") ? null : nearest(event); if (p) openDrawer(p.row); });
}

function mark(p, leading, sx, sy, kinds, axes, whiskers) {
  const line = (x1, y1, x2, y2) => el("line", { class: "whisker", x1, y1, x2, y2 });
  const bars = !whiskers ? [] : [
    p.ys[0] === null ? null : line(sx(p.x), sy(p.ys[0]), sx(p.x), sy(p.ys[1])),
    p.xs[0] === null ? null : line(sx(p.xs[0]), sy(p.y), sx(p.xs[1]), sy(p.y))];
  return pointer(p, axes, leading ? "mark-point leading" : "mark-point", ...bars, pointOf(kinds.indexOf(p.row.variant), { transform: `translate(${sx(p.x)} ${sy(p.y)})` }));
}

const saidOf = (p, [x, y]) => `${nameOf(p.row)}: ${x.label} ${shownIn(x, p.x)}, ${y.label} ${shownIn(y, p.y)}`;

// A drawing that says what it stands for and opens the drawer of its row.
function pointer(p, axes, kind, ...drawing) {
  const said = saidOf(p, axes);
  const show = () => { const box = node.querySelector(".point").getBoundingClientRect(); tipAt(said, box.left, box.top); };
  const node = el("g", {
    class: kind, tabindex: kind.includes("leading") ? 0 : -1, "aria-label": said, ...pressed(() => openDrawer(p.row)),
    onmouseenter: show, onfocus: show, onmouseleave: untip, onblur: untip,
  }, ...drawing);
  return node;
}

function tipAt(text, left, top) {
  const area = find("tip");
  area.textContent = text;
  area.hidden = false;
  area.style.left = `${Math.max(8, Math.min(left + 12, window.innerWidth - area.offsetWidth - 8))}px`;
  area.style.top = `${Math.max(8, top - area.offsetHeight - 8)}px`;
}

function untip() {
  find("tip").hidden = true;
}
