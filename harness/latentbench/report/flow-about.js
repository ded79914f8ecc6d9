// The panel about one latent, and the table of layers.

function token(text) {
  const whole = visible(text), lead = whole.match(/^·+/)?.[0] ?? "";
  return el("code", { class: "token" }, lead ? el("span", { class: "space" }, lead) : null, whole.slice(lead.length));
}

function drawAbout() {
  const node = nodeOf(state.chosen ?? state.graph.seed);
  find("about").replaceChildren(
    el("h2", {}, node.id),
    el("p", { class: "muted" }, [PARTS[kindOf(node)], node.label ? LABELS[node.label] : null, node.id === state.graph.seed ? "seed" : null].filter(Boolean).join(" · ")),
    ...(node.explanation ? [el("p", { class: "explanation" }, node.explanation)] : []),
    ...section("Top tokens", node.tokens.length ? el("div", { class: "tokens" }, ...node.tokens.map(token)) : null),
    ...section("Best predecessors", scores(node)),
    ...section("Comes from", steps(edgesInto(node.id), "source")),
    ...section("Becomes", steps(edgesFrom(node.id), "target")),
  );
}

const section = (title, body) => (body ? [el("h3", {}, title), body] : []);

function scores(node) {
  const found = Object.entries(node.scores);
  if (!found.length) return null;
  return el("div", {}, ...found.map(([part, score]) => el("div", { class: "score" },
    el("span", {}, PARTS[part]), el("progress", { max: 1, value: Math.max(0, score), "aria-label": `cosine with ${PARTS[part]}` }), el("span", { class: "value" }, digits(score, "cosine")))));
}

function steps(edges, end) {
  if (!edges.length) return null;
  const sorted = [...edges].sort((a, b) => b.cosine - a.cosine);
  return el("ul", { class: "steps" }, ...sorted.map((edge) => el("li", {},
    el("button", { class: "link", type: "button", onclick: () => follow(edge[end], true) }, edge[end]), el("span", { class: "muted" }, digits(edge.cosine, "cosine")))));
}

function drawLayers() {
  if (!data.layers.length) return;
  const head = ["Residual stream", "Latents", "Origin", "Births", "Deaths", "Persistence", "Chance cosine", "Cut"];
  const rows = data.layers.map((layer) => el("tr", {},
    el("th", { scope: "row" }, layer.site), el("td", {}, layer.width.toLocaleString("en")), el("td", {}, shares(layer)), el("td", {}, percent(layer.births)),
    el("td", {}, percent(layer.deaths)), el("td", {}, layer.persistence.toFixed(2)), el("td", {}, layer.chance === null ? "–" : layer.chance.toFixed(2)),
    el("td", {}, layer.cut === null ? "–" : layer.cut.toFixed(2))));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, ...rows));
  const note = "Over whole dictionaries, dead latents included. Births have no predecessor at or above the cut, deaths no successor; persistence is the mean number of further layers; chance is the median best cosine of a random direction. The cut is the spec's, or higher where chance would reach it.";
  find("layers").replaceChildren(el("h2", {}, "Layers"), el("div", { class: "layer-table" }, table), el("p", { class: "legend muted" }, note));
}

function shares(layer) {
  const names = Object.keys(LABELS).filter((name) => layer.shares[name] > 0);
  if (!names.length) return "–";
  const text = names.map((name) => `${name} ${percent(layer.shares[name])}`).join(", ");
  const svg = el("svg", { class: "shares", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": text }, el("title", {}, text));
  let x = 0;
  for (const name of names) {
    const wide = 100 * layer.shares[name];
    svg.append(el("path", { class: name, d: `M${x} 0h${wide}v10h${-wide}Z` }));
    x += wide;
  }
  return svg;
}

function drawLegend() {
  const colours = Object.entries(LABELS).map(([name, text]) => el("span", {}, el("span", { class: `swatch ${name}` }), text));
  const signs = Object.entries(SHAPES).map(([kind, d]) => el("span", {}, el("svg", { class: "sign", viewBox: "-16 -16 32 32" }, el("path", { d })), PARTS[kind]));
  find("legend").replaceChildren(...signs, ...colours);
}
