// The graph as SVG: a column per layer, the residual stream in the middle, MLPs above it and attention below.

const COLUMN = 132, ROW = 74, TOP = 54, LEFT = 92, RADIUS = 13;
const SHAPES = {
  residual: `M${-RADIUS} 0a${RADIUS} ${RADIUS} 0 1 0 ${2 * RADIUS} 0a${RADIUS} ${RADIUS} 0 1 0 ${-2 * RADIUS} 0Z`,
  mlp: "M-12 -11H12V11H-12Z",
  attention: "M0 -15L15 0L0 15L-15 0Z",
};

function places(nodes) {
  const layers = [...new Set(nodes.map((node) => node.layer))].sort((a, b) => a - b);
  const lanes = { mlp: 0, residual: 1, attention: 0 }, taken = {}, found = new Map();
  for (const node of nodes) {
    const key = `${kindOf(node)} ${node.layer}`;
    taken[key] = (taken[key] ?? 0) + 1;
    lanes[kindOf(node)] = Math.max(lanes[kindOf(node)], taken[key]);
  }
  const offsets = { mlp: 0, residual: lanes.mlp, attention: lanes.mlp + lanes.residual }, used = {};
  for (const node of nodes) {
    const kind = kindOf(node), key = `${kind} ${node.layer}`, row = offsets[kind] + (used[key] ?? 0);
    used[key] = (used[key] ?? 0) + 1;
    const x = LEFT + COLUMN * (layers.indexOf(node.layer) + (kind === "residual" ? 0.5 : 0));
    found.set(node.id, { x: x + COLUMN / 2, y: TOP + ROW * (row + 0.5) });
  }
  const rows = lanes.mlp + lanes.residual + lanes.attention;
  return { found, layers, offsets, lanes, width: LEFT + COLUMN * (layers.length + 0.6), height: TOP + ROW * rows + 16 };
}

function drawGraph() {
  const kept = connected(), nodes = state.graph.nodes.filter((node) => kept.has(node.id));
  const edges = state.graph.edges.filter((edge) => shown(edge) && kept.has(edge.source) && kept.has(edge.target));
  const at = places(nodes), label = `Flow graph of ${state.graph.seed}: ${nodes.length} latents, ${edges.length} edges`;
  const svg = el("svg", { width: at.width, height: at.height, viewBox: `0 0 ${at.width} ${at.height}`, role: "group", "aria-label": label });
  svg.append(...rules(at), ...edges.flatMap((edge) => drawnEdge(edge, at.found)), ...nodes.map((node) => drawnNode(node, at.found.get(node.id))));
  const scrolled = find("graph").scrollLeft;
  find("graph").replaceChildren(svg);
  find("graph").scrollLeft = scrolled;
  find("said").textContent = `${label}.${state.graph.truncated ? " Stopped at the largest size; its ends stay open." : ""}`;
  mark();
}

function rules(at) {
  const columns = at.layers.map((layer, i) => el("text", { class: "rank", x: LEFT + COLUMN * (i + 1), y: 26 }, layer === 0 ? "embeddings" : `layer ${layer - 1}`));
  const kinds = Object.entries(at.offsets).filter(([kind]) => at.lanes[kind]);
  const lanes = kinds.map(([kind, row]) => el("text", { class: "lane", x: 14, y: TOP + ROW * (row + 0.5) + 4 }, PARTS[kind]));
  return [el("line", { class: "rule", x1: 0, x2: at.width, y1: 40, y2: 40 }), ...columns, ...lanes];
}

function drawnEdge(edge, places) {
  const a = places.get(edge.source), b = places.get(edge.target), x = (a.x + b.x) / 2, y = (a.y + b.y) / 2;
  const wide = 0.8 + 3.2 * Math.max(0, edge.cosine) ** 2;
  const line = el("path", { class: "edge", d: `M${a.x} ${a.y}L${b.x} ${b.y}`, "stroke-width": wide, "data-from": edge.source, "data-to": edge.target });
  return [line, el("text", { class: "edge-score", x, y: y - 6, "data-from": edge.source, "data-to": edge.target }, digits(edge.cosine, "cosine"))];
}

function drawnNode(node, { x, y }) {
  const seed = node.id === state.graph.seed, classes = ["node", node.label ?? "", seed ? "seed" : ""].filter(Boolean).join(" ");
  const show = () => tip(node, group);
  const group = el("g", {
    class: classes, transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "data-id": node.id, "aria-label": said(node), "aria-pressed": "false",
    onclick: () => follow(node.id), onmouseenter: show, onfocus: show, onmouseleave: untip, onblur: untip,
  });
  if (seed) group.append(el("circle", { class: "ring", r: RADIUS + 6 }));
  group.append(el("path", { class: "shape", d: SHAPES[kindOf(node)] }), el("text", { class: "name", y: -20 }, String(node.latent)));
  if (node.tokens.length) group.append(el("text", { class: "word", y: 34 }, short(visible(node.tokens[0]))));
  return group;
}

const short = (text) => (text.length > 14 ? `${text.slice(0, 13)}…` : text);
const said = (node) => [`Latent ${node.id}`, node.label, node.explanation, node.tokens.length ? `fires on ${node.tokens.slice(0, 4).map(visible).join(" ")}` : null].filter(Boolean).join(", ");

// Highlights the path of the followed latent.
function mark() {
  const svg = find("graph").firstElementChild, { nodes, edges } = state.chosen ? reach(state.chosen) : { nodes: new Set(), edges: new Set() };
  const on = new Set([...edges].map((edge) => `${edge.source} ${edge.target}`));
  svg.classList.toggle("following", state.chosen !== null);
  for (const node of svg.querySelectorAll(".node")) {
    node.classList.toggle("on", nodes.has(node.dataset.id));
    node.classList.toggle("chosen", node.dataset.id === state.chosen);
    node.setAttribute("aria-pressed", String(node.dataset.id === state.chosen));
  }
  for (const edge of svg.querySelectorAll("[data-from]")) edge.classList.toggle("on", on.has(`${edge.dataset.from} ${edge.dataset.to}`));
}

function tip(node, group) {
  const area = find("tip"), box = group.querySelector(".shape").getBoundingClientRect();
  area.replaceChildren(el("strong", {}, node.id), node.label ? ` · ${node.label}` : "");
  if (node.explanation) area.append(el("div", {}, node.explanation));
  if (node.tokens.length) area.append(el("div", {}, node.tokens.map(visible).join("  ")));
  area.hidden = false;
  area.style.left = `${Math.max(8, Math.min(box.left, innerWidth - area.offsetWidth - 8))}px`;
  area.style.top = `${box.top - area.offsetHeight - 10 > 0 ? box.top - area.offsetHeight - 10 : box.bottom + 10}px`;
}

function untip() {
  find("tip").hidden = true;
}
