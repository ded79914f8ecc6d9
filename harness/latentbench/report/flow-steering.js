// What steering did: how many texts moved at which price, schedule by schedule, and the texts of one setting.

const LEAST_LOSS = 0.01; // a logarithmic scale has no zero
const WAYS = { single: "single layer", constant: "path, constant", linear: "path, linear", exponential: "path, exponential" };
const wayName = (way) => (way === "random" ? "random latents" : way.startsWith("random_") ? `random ${WAYS[way.slice(7)]}` : WAYS[way]);

function drawSteering() {
  const found = data.steering;
  if (!found) return;
  const into = found.action === "activate" ? "into" : "out of";
  const said = `Texts begun like documents of ${found.start}; ${percent(found.base.rate.value)} are classified as ${found.target} without steering.${found.accuracy === null ? "" : ` The classifier is right on ${percent(found.accuracy)} of held-out texts.`}`;
  find("steering").replaceChildren(
    el("h2", {}, `Steering ${into} ${found.target}`), el("p", { class: "muted" }, said),
    el("div", { class: "figures" }, priceFigure(found), el("section", { id: "texts", class: "card", "aria-live": "polite" })), ...costTable(found));
  showTexts(null);
}

function priceFigure(found) {
  const caption = `Share of texts in ${found.target} against the rise of the loss`, ways = [...new Set(found.settings.map((s) => s.schedule))];
  const points = found.settings.filter((s) => s.rate?.value != null && s.loss_increase?.value != null)
    .map((s) => ({ s, x: Math.max(LEAST_LOSS, s.loss_increase.value), y: s.rate.value }));
  if (!points.length) return el("figure", {}, el("figcaption", {}, caption), el("p", { class: "muted" }, "No setting has both numbers."));
  const sx = scale(points.map((p) => p.x), SIZE.left, SIZE.width - SIZE.right, true), sy = scale([0, 1], SIZE.height - SIZE.bottom, SIZE.top, false);
  const lines = ways.flatMap((way, i) => line(points.filter((p) => p.s.schedule === way), i, sx, sy));
  const svg = el("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "group", "aria-label": caption },
    ...axis(sx, sy, { label: "Rise of the loss", unit: `nats/token, ${LEAST_LOSS} and less at the left` }, { label: "Texts there", unit: "share" }), ...lines);
  const legend = el("div", { class: "shapes" }, ...ways.map((way, i) => el("span", {}, el("span", { class: `swatch line-${i % 8}` }), wayName(way))));
  return el("figure", {}, el("figcaption", {}, caption), svg, legend);
}

function line(points, i, sx, sy) {
  const ordered = [...points].sort((a, b) => a.x - b.x), at = ordered.map((p) => `${sx(p.x)},${sy(p.y)}`).join(" ");
  return [el("polyline", { class: `trace line-${i % 8}`, points: at }), ...ordered.map((p) => el("circle", {
    class: `setting line-${i % 8}`, cx: sx(p.x), cy: sy(p.y), r: 4.5, tabindex: 0, "aria-label": settingSaid(p.s), ...pressed(() => showTexts(p.s)),
  }, el("title", {}, settingSaid(p.s))))];
}

const between = ({ value, low, high }) => `${digits(value, "fraction")}${low === null ? "" : ` [${digits(low, "fraction")}, ${digits(high, "fraction")}]`}`;
const settingSaid = (s) => `${wayName(s.schedule)}, strength ${s.strength}: ${between(s.rate)} of the texts, loss +${digits(s.loss_increase.value, "fraction")}`;

function showTexts(setting) {
  const { texts } = setting ?? data.steering.base, heading = setting ? settingSaid(setting) : "Without steering. Choose a point to read its texts.";
  const loss = setting?.text_loss?.value == null ? null : el("p", { class: "muted" }, `The unsteered model gives these texts ${digits(setting.text_loss.value, "fraction")} nats per token.`);
  const shown = texts.length ? el("ol", { class: "texts" }, ...texts.map((text) => el("li", {}, text))) : el("p", { class: "muted" }, "The texts are not in the store.");
  find("texts").replaceChildren(...[el("h3", {}, heading), loss, shown].filter(Boolean));
}

function costTable({ costs, target }) {
  if (!costs.length) return [];
  const prices = [...new Set(costs.map((c) => c.cost))], ways = [...new Set(costs.map((c) => c.schedule))];
  const cell = (way, cost) => {
    const { rate_at_cost: rate, gain_at_cost: gain } = costs.find((c) => c.schedule === way && c.cost === cost) ?? {};
    const more = gain?.value == null ? null : el("div", { class: "gain muted" }, `${gain.value < 0 ? "" : "+"}${between(gain)} against the single layer`);
    return el("td", { title: rate?.reason }, rate?.value == null ? "–" : between(rate), more);
  };
  const rows = ways.map((way) => el("tr", {}, el("th", { scope: "row" }, wayName(way)), ...prices.map((cost) => cell(way, cost))));
  const head = ["Schedule", ...prices.map((cost) => `at +${cost} nats/token`)].map((name) => el("th", { scope: "col" }, name));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  return [el("h3", {}, `Share of texts in ${target} at one price`), el("div", { class: "layer-table prices" }, table)];
}
