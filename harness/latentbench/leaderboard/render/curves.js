// Training curves: of one row in its drawer, of the first rows of the table below the trade-offs.

const curvesById = () => piece("curves") ?? {};
const CURVE_ROWS = 8;
const TRACED = { normalised: ["Unexplained variance", "fraction of the batch"], l0: ["L0", "latents/token"], dead: ["Dead latents", "latents"] };

// lines: [{ name, steps, values, row? }]
function curveFigure(column, lines, caption) {
  const [label, unit] = TRACED[column];
  const points = lines.map((line) => line.steps.map((x, i) => ({ x, y: line.values[i] })).filter((p) => p.y !== null));
  const all = points.flat();
  if (!all.length) return null;
  const sx = scale(all.map((p) => p.x), SIZE.left, SIZE.width - SIZE.right, false);
  const log = column === "normalised" && all.every((p) => p.y > 0);
  const sy = scale(all.map((p) => p.y), SIZE.height - SIZE.bottom, SIZE.top, log);
  const traces = lines.map((line, i) => trace(line, points[i], i, sx, sy));
  const svg = el("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "group", "aria-label": caption },
    ...axis(sx, sy, { label: "Training step", unit: "steps" }, { label, unit }), ...traces);
  const legend = el("div", { class: "shapes" }, ...lines.map((line, i) => el("span", {}, el("span", { class: `swatch line-${i % CURVE_ROWS}` }), line.name)));
  return el("figure", {}, el("figcaption", {}, caption), svg, lines.length > 1 ? legend : null);
}

function trace(line, points, i, sx, sy) {
  const place = points.map((p) => `${sx(p.x)},${sy(p.y)}`).join(" ");
  const open = line.row ? { role: "button", onclick: () => openDrawer(line.row) } : {};
  return el("polyline", { class: `trace line-${i % CURVE_ROWS}`, points: place, "aria-label": line.name, ...open }, el("title", {}, line.name));
}

function curvesOf(row) {
  const found = Object.entries(curvesById()[row.id] ?? {});
  // A line that stays level (the L0 of a TopK SAE) says nothing that the numbers do not.
  const moves = (values) => values && values.some((v) => v !== values[0]);
  const columns = Object.keys(TRACED).filter((column) => found.some(([, curve]) => moves(curve[column])));
  const figures = columns.map((column) => curveFigure(column,
    found.filter(([, curve]) => curve[column]).map(([name, curve]) => ({ name, steps: curve.step, values: curve[column] })), TRACED[column][0]));
  const drawn = figures.filter(Boolean);
  return drawn.length ? el("details", { open: true }, el("summary", {}, "Training"), el("div", { class: "figures small" }, ...drawn)) : null;
}

// The first seed of each of the first rows as they are sorted now.
function drawCurves() {
  const rows = sorted(visibleRows()).filter((row) => curvesById()[row.id]).slice(0, CURVE_ROWS);
  const lines = rows.map((row) => {
    const curve = Object.values(curvesById()[row.id])[0];
    return curve.normalised && { name: nameOf(row), steps: curve.step, values: curve.normalised, row };
  }).filter(Boolean);
  const figure = lines.length ? curveFigure("normalised", lines, `Unexplained variance while training, ${lines.length === 1 ? "one row" : `first ${lines.length} rows of the table`}`) : null;
  find("curve-figures").replaceChildren(...(figure ? [el("div", { class: "plot-head" }, el("h3", {}, "Training")), el("div", { class: "figures" }, figure)] : []));
}
