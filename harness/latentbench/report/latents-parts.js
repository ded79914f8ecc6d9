// Pieces that the table and the drawer both show: tokens, coloured examples, small histograms.

// A token as text; what cannot be seen gets a sign.
function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

function token(text) {
  const shown = visible(text), lead = shown.match(/^ +/)?.[0] ?? "";
  return el("code", { class: "token" }, lead ? el("span", { class: "space" }, "·".repeat(lead.length)) : null, shown.slice(lead.length));
}

const LEVELS = 8;

// One example as text, each active token coloured by its share of `strongest`; neighbours of one level share a node.
function coloured([, , texts, active], strongest, from = 0, to = texts.length) {
  const levels = new Map();
  for (let i = 0; i < active.length; i += 2) levels.set(active[i], active[i + 1]);
  const parts = [];
  let plain = "";
  for (let place = from; place < to; place += 1) {
    const value = levels.get(place), full = visible(data.texts[texts[place]]);
    const whole = place === from ? full.trimStart() || full : full;
    if (value === undefined) {
      plain += whole;
      continue;
    }
    // The space in front of a word is not coloured: it would hang over where a line breaks.
    const text = whole.trimStart() || whole;
    plain += whole.slice(0, whole.length - text.length);
    if (plain) parts.push(plain);
    plain = "";
    const level = Math.min(LEVELS, Math.max(1, Math.ceil((LEVELS * Math.abs(value)) / strongest)));
    parts.push(el("span", { class: `fire a${level}`, title: `${digits(value)}` }, text));
  }
  if (plain) parts.push(plain);
  return parts;
}

function peakOf([, , , active]) {
  let best = 0, place = 0;
  for (let i = 0; i < active.length; i += 2) if (Math.abs(active[i + 1]) > best) [place, best] = [active[i], Math.abs(active[i + 1])];
  return { place, value: best };
}

const examplesOf = (latent, domain) => latent.v.filter((example) => example[0] === domain);
const strongestOf = (latent) => Math.max(...latent.v.map((example) => peakOf(example).value), 1e-30);

// The strongest example of the chosen domain, or of any, cut around its peak.
function snippet(latent) {
  const example = examplesOf(latent, state.domain)[0] ?? latent.v[0];
  if (!example) return null;
  const { place } = peakOf(example), from = Math.max(0, place - 12), to = Math.min(example[2].length, place + 10);
  return el("span", { class: "snippet" }, from ? "…" : null, ...coloured(example, strongestOf(latent), from, to), to < example[2].length ? "…" : null);
}

// Bars over [label, count]; `marks` are written below the first and last bar.
function bars(counts, title, labels, marks) {
  const width = 260, height = 56, step = width / counts.length, most = Math.max(...counts, 1);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height + 15}`, class: "bars", role: "img", "aria-label": title });
  counts.forEach((count, i) => {
    const tall = count ? Math.max(1.5, (height * count) / most) : 0;
    const path = `M${(i * step).toFixed(2)} ${height}v${-tall.toFixed(2)}h${Math.max(0.5, step - 1).toFixed(2)}v${tall.toFixed(2)}z`;
    svg.append(el("path", { d: path, class: "bar" }, el("title", {}, `${labels(i)}: ${count}`)));
  });
  svg.append(el("line", { x1: 0, x2: width, y1: height, y2: height, class: "grid" }),
    el("text", { x: 0, y: height + 12, class: "tick" }, marks[0]), el("text", { x: width, y: height + 12, class: "tick end" }, marks[1]));
  return svg;
}
