// The data, what the reader chose, and what follows from both.

const data = read("data");
const PAGE = 50;
const DECIMALS = { score: 2, bits: 2, cosine: 2, fraction: 2 };

const state = { search: "", domain: 0, sort: { by: "number", descending: false }, scored: false, page: 0, rows: [], open: null };

const byNumber = new Map(data.latents.map((latent) => [latent.n, latent]));
const useOf = (latent, domain = state.domain) => latent.u[domain] ?? null;
const scoreOf = (latent) => latent.a?.s ?? null;
const nearestOf = (latent) => latent.k[0]?.[1] ?? null;

// Every column: what stands above it, what it sorts by, how it is written, and what it means.
const COLUMNS = [
  { by: "density", label: "Density", of: (l) => useOf(l)?.d ?? null, text: share, hint: "share of tokens on which it fires" },
  { by: "max", label: "Max", of: (l) => useOf(l)?.m ?? null, text: threeDigits, hint: "largest activation" },
  { by: "entropy", label: "Entropy", of: (l) => useOf(l)?.h ?? null, text: (x) => digits(x, "bits"), hint: "entropy of the tokens it fires on, in bits" },
  { by: "nearest", label: "Nearest", of: nearestOf, text: (x) => digits(x, "cosine"), hint: "largest decoder cosine to another latent" },
  { by: "score", label: "Score", of: scoreOf, text: (x) => digits(x, "score"), hint: "mean balanced accuracy of detection and fuzzing; chance is 0.5", descending: true },
].filter((column) => column.by !== "score" || data.autointerp);
const SORTS = [{ by: "number", label: "Number", of: (l) => l.n }, ...COLUMNS];

function threeDigits(x) {
  return x === null || Math.abs(x) >= 1000 ? digits(x) : x.toPrecision(3);
}

function share(x) {
  if (x === null) return "–";
  const percent = 100 * x;
  return `${percent >= 10 ? percent.toFixed(0) : percent >= 0.1 ? percent.toFixed(1) : percent.toPrecision(1)} %`;
}

// What a search looks through is put together once per latent, when it is first needed.
function textOf(latent) {
  if (latent.text === undefined) {
    const words = (pairs) => pairs.map(([text]) => data.texts[text]).join(" ");
    const used = Object.values(latent.u).map((use) => (use ? words(use.t) : ""));
    const examples = latent.v.map(([, , texts]) => texts.map((text) => data.texts[text]).join(""));
    latent.text = [latent.a?.x ?? "", ...used, words(latent.p), ...examples].join("\n").toLowerCase();
  }
  return latent.text;
}

function matching() {
  const numbers = state.search.match(/^\s*#(\d+)\s*$/);
  if (numbers) return data.latents.filter((latent) => latent.n === Number(numbers[1]));
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  return data.latents.filter((latent) => (!state.scored || scoreOf(latent) !== null) && words.every((word) => textOf(latent).includes(word)));
}

function ordered(latents) {
  const { by, descending } = state.sort, key = SORTS.find((sort) => sort.by === by).of;
  const keyed = latents.map((latent) => [key(latent), latent]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return descending ? b - a : a - b;
  });
  return keyed.map(([, latent]) => latent);
}

function update() {
  state.rows = ordered(matching());
  state.page = 0;
  draw();
}
