// What is shown: one seed's graph, the latent that is followed, and the least cosine of an edge.

const data = read("data");
const DECIMALS = { fraction: 3, cosine: 2 };
const state = { graph: null, chosen: null, least: 0 };

const PARTS = { residual: "residual", mlp: "MLP", attention: "attention" };
const LABELS = {
  translated: "Translated: from the residual stream before",
  processed: "Processed: from the residual stream and from the block",
  newborn: "Newborn: written by the block",
  unexplained: "Unexplained: no predecessor is near",
};

const nodeOf = (id) => state.graph.byId.get(id);
const edgesInto = (id) => state.graph.edges.filter((edge) => edge.target === id && shown(edge));
const edgesFrom = (id) => state.graph.edges.filter((edge) => edge.source === id && shown(edge));
const shown = (edge) => edge.cosine >= state.least;
const strongest = (edges) => edges.reduce((best, edge) => (!best || edge.cosine > best.cosine ? edge : best), null);

function choose(number) {
  const graph = data.graphs[number];
  state.graph = { ...graph, byId: new Map(graph.nodes.map((node) => [node.id, node])) };
  state.chosen = null;
}

// Everything that leads to a latent, and everything that follows from it.
function reach(id) {
  const nodes = new Set([id]), edges = new Set();
  for (const [next, end] of [[edgesInto, "source"], [edgesFrom, "target"]]) {
    const open = [id];
    while (open.length) {
      for (const edge of next(open.pop())) {
        edges.add(edge);
        if (!nodes.has(edge[end])) open.push(edge[end]);
        nodes.add(edge[end]);
      }
    }
  }
  return { nodes, edges };
}

// Latents that an edge strong enough still connects to the seed.
function connected() {
  return reach(state.graph.seed).nodes.size < state.graph.nodes.length ? undirected(state.graph.seed) : new Set(state.graph.byId.keys());
}

function undirected(start) {
  const nodes = new Set([start]), open = [start];
  while (open.length) {
    const id = open.pop();
    for (const other of [...edgesInto(id).map((edge) => edge.source), ...edgesFrom(id).map((edge) => edge.target)]) {
      if (!nodes.has(other)) open.push(other);
      nodes.add(other);
    }
  }
  return nodes;
}

const kindOf = (node) => (node.site.endsWith("mlp_out") ? "mlp" : node.site.endsWith("attn_out") ? "attention" : "residual");
const percent = (x) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(1)} %`);

function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍").replaceAll(" ", "·");
}
