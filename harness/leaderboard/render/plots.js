// Pareto plots as inline SVG: intervals as whiskers, dominated points faded, shape by variant.

const SIZE = { width: 520, height: 330, left: 58, right: 18, top: 14, bottom: 44 };
const SAME = 1.01;
const WHISKERS = 300;
const INTERACTIVE = 600;
const SHAPES = [
  "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0", "M-4-4h8v8h-8z", "M0-5.4L5 3.6H-5z", "M0-5.6L5.6 0L0 5.6L-5.6 0z",
  "M0 5.4L5-3.6H-5z", "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
];

function drawPlots() {
  const area = find("plots"), { plots, domains } = state.group;
  const drawn = plots.filter((plot) => plot.domain === state.domain);
  if (!drawn.length) return area.replaceChildren();
  const rows = visibleRows().filter((row) => row.values.length);
  const kinds = [...new Set(state.group.rows.map((row) => row.variant).filter(Boolean))];
  const choose = el("select", { id: "plot-domain", onchange: (event) => { state.domain = event.target.value; drawPlots(); } },
    ...domains.map((d) => el("option", { value: d, selected: d === state.domain }, d)));
  const legend = el("div", { class: "shapes" }, ...kinds.map((kind) => el("span", {}, icon(kinds.indexOf(kind)), kind)),
    el("span", { class: "muted" }, "line: not dominated by any other row · faint: dominated"));
  return area.replaceChildren(
    el("div", { class: "plot-head" }, el("h3", {}, "Trade-offs"), el("label", { class: "field inline" }, el("span", {}, "Domain"), choose)), legend,
    el("div", { class: "figures" }, ...drawn.map((plot) => figure(plot, rows, kinds))));
}

const shapeOf = (index) => SHAPES[Math.max(0, index) % SHAPES.length];
const icon = (index) => el("svg", { viewBox: "-7 -7 14 14", width: 14, height: 14, "aria-hidden": "true" }, el("path", { d: shapeOf(index), class: "point" }));

function figure(plot, rows, kinds) {
  const { columns } = state.group, x = columns[plot.x], y = columns[plot.y];
  const points = rows.map((row) => ({
    row, x: numberOf(row, plot.x), y: numberOf(row, plot.y),
    xs: [numberOf(row, plot.x, LOW), numberOf(row, plot.x, HIGH)], ys: [numberOf(row, plot.y, LOW), numberOf(row, plot.y, HIGH)],
  })).filter((p) => p.x !== null && p.y !== null && p.x > 0);
  const caption = el("figcaption", {}, `${y.label} against ${x.label}, ${plot.domain}`);
  if (!points.length) return el("figure", {}, caption, el("p", { class: "muted" }, "No row has both numbers."));
  const frontier = frontierOf(points, y.better);
  const sx = scale(points.flatMap((p) => [p.x]), SIZE.left, SIZE.width - SIZE.right, true);
  const sy = scale(points.flatMap((p) => [p.y, ...p.ys.filter((v) => v !== null)]), SIZE.height - SIZE.bottom, SIZE.top, false);
  const svg = el("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "group", "aria-label": caption.textContent },
    ...axis(sx, sy, x, y), el("polyline", { class: "frontier", points: frontier.map((p) => `${sx(p.x)},${sy(p.y)}`).join(" ") }),
    ...marks(points, new Set(frontier), sx, sy, kinds, [x, y]));
  return el("figure", {}, caption, svg);
}

// A point stays when nothing is better in y at the same or a smaller x, where 1 % more counts as the same: a measured
// L0 never equals another exactly. Partial rows stay out.
function frontierOf(points, higher) {
  const ranked = points.filter((p) => p.row.complete).sort((a, b) => a.x - b.x), sign = higher ? 1 : -1;
  let bound = -Infinity, next = 0;
  return ranked.filter((p) => {
    while (next < ranked.length && ranked[next].x <= p.x * SAME) bound = Math.max(bound, sign * ranked[next++].y);
    return sign * p.y >= bound;
  });
}

function scale(values, from, to, log) {
  const map = log ? Math.log : (v) => v;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const pad = ((map(high) - map(low)) || Math.abs(map(high)) || 1) * 0.06;
  const [start, end] = [map(low) - pad, map(high) + pad];
  const place = (v) => Math.round((from + ((map(v) - start) / (end - start)) * (to - from)) * 10) / 10;
  place.ticks = log ? logTicks(Math.exp(start), Math.exp(end)) : ticks(start, end);
  return place;
}

function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(Number((k * step).toPrecision(6)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = 2 ** Math.floor(Math.log2(low)); power <= high; power *= 2) if (power >= low) found.push(power);
  return found.length >= 2 && found.length <= 8 ? found.map((v) => Number(v.toPrecision(4))) : ticks(low, high).filter((v) => v > 0);
}

function axis(sx, sy, x, y) {
  const { left, right, top, bottom, width, height } = SIZE;
  const label = (cls, at, text, more = {}) => el("text", { class: cls, x: at[0], y: at[1], ...more }, text);
  return [
    ...sy.ticks.flatMap((v) => [el("line", { class: "grid", x1: left, x2: width - right, y1: sy(v), y2: sy(v) }), label("tick end", [left - 8, sy(v) + 4], String(v))]),
    ...sx.ticks.flatMap((v) => [el("line", { class: "grid", x1: sx(v), x2: sx(v), y1: top, y2: height - bottom }), label("tick middle", [sx(v), height - bottom + 17], String(v))]),
    label("axis middle", [(left + width - right) / 2, height - 6], `${x.label} (${x.unit})`),
    label("axis middle", [0, 0], `${y.label} (${y.unit})`, { transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)` }),
  ];
}

function marks(points, frontier, sx, sy, kinds, axes) {
  if (points.length > INTERACTIVE) return crowd(points, frontier, sx, sy, kinds, axes);
  const ordered = [...points].sort((a, b) => frontier.has(a) - frontier.has(b));
  return ordered.map((p) => mark(p, frontier.has(p), sx, sy, kinds, axes, points.length <= WHISKERS));
}

// Thousands of points: the dominated ones become one path, so that drawing stays quick.
function crowd(points, frontier, sx, sy, kinds, axes) {
  const dots = points.filter((p) => !frontier.has(p)).map((p) => `M${sx(p.x) - 1.5} ${sy(p.y)}h3`).join("");
  return [el("path", { class: "crowd", d: dots }), ...[...frontier].map((p) => mark(p, true, sx, sy, kinds, axes, true))];
}

function mark(p, leading, sx, sy, kinds, [x, y], whiskers) {
  const line = (x1, y1, x2, y2) => el("line", { class: "whisker", x1, y1, x2, y2 });
  const said = `${nameOf(p.row)}: ${x.label} ${digits(p.x, x.unit)}, ${y.label} ${digits(p.y, y.unit)}`;
  const bars = !whiskers ? [] : [
    p.ys[0] === null ? null : line(sx(p.x), sy(p.ys[0]), sx(p.x), sy(p.ys[1])),
    p.xs[0] === null || p.xs[0] <= 0 ? null : line(sx(p.xs[0]), sy(p.y), sx(p.xs[1]), sy(p.y))];
  const show = () => tip(said, node), node = el("g", {
    class: leading ? "mark-point leading" : "mark-point", tabindex: leading ? 0 : -1, role: "button", "aria-label": said,
    onclick: () => openDrawer(p.row), onmouseenter: show, onfocus: show, onmouseleave: untip, onblur: untip,
    onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); openDrawer(p.row); } },
  }, ...bars, el("path", { class: "point", d: shapeOf(kinds.indexOf(p.row.variant)), transform: `translate(${sx(p.x)} ${sy(p.y)})` }));
  return node;
}

function tip(text, node) {
  const box = node.querySelector(".point").getBoundingClientRect(), area = find("tip");
  area.textContent = text;
  area.hidden = false;
  area.style.left = `${Math.max(8, Math.min(box.left + 12, window.innerWidth - area.offsetWidth - 8))}px`;
  area.style.top = `${Math.max(8, box.top - area.offsetHeight - 8)}px`;
}

function untip() {
  find("tip").hidden = true;
}
