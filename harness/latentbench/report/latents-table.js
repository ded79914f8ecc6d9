// One page of latents, and the overview above it.

function draw() {
  const pages = Math.max(1, Math.ceil(state.rows.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const slice = state.rows.slice(state.page * PAGE, (state.page + 1) * PAGE), table = find("table");
  table.tHead.replaceChildren(el("tr", {}, heading(SORTS[0], "Latent"), el("th", { scope: "col", class: "about" }, "What it fires on"), ...COLUMNS.map((column) => heading(column, column.label))));
  table.tBodies[0].replaceChildren(...slice.map(drawRow));
  if (!slice.length) table.tBodies[0].append(el("tr", {}, el("td", { class: "none", colspan: COLUMNS.length + 2 }, "No latent matches.")));
  find("count").textContent = countText();
  drawPager(find("pager"), pages);
  drawPager(find("pager-below"), pages);
  find("sort").value = state.sort.by;
  find("direction").textContent = state.sort.descending ? "↓" : "↑";
  find("direction").setAttribute("aria-label", state.sort.descending ? "Largest first" : "Smallest first");
}

function heading(column, label) {
  const on = state.sort.by === column.by;
  const button = el("button", { type: "button", title: column.hint, "data-sort": column.by, onclick: () => { sortBy(column); document.querySelector(`[data-sort="${column.by}"]`).focus(); } },
    label, el("span", { class: "arrow", "aria-hidden": "true" }, on ? (state.sort.descending ? "↓" : "↑") : ""));
  return el("th", { scope: "col", class: column.by === "number" ? "name" : null, "aria-sort": on ? (state.sort.descending ? "descending" : "ascending") : "none" }, button);
}

function sortBy(column) {
  const again = state.sort.by === column.by;
  state.sort = { by: column.by, descending: again ? !state.sort.descending : column.descending ?? false };
  state.rows = ordered(state.rows);
  state.page = 0;
  draw();
}

function drawRow(latent) {
  const name = el("button", { type: "button", class: "row-name", "data-latent": latent.n, onclick: () => openDrawer(latent) }, String(latent.n));
  return el("tr", { onclick: (event) => { if (!event.target.closest("button")) openDrawer(latent); } },
    el("th", { scope: "row", class: "name" }, name),
    el("td", { class: "about" }, aboutOf(latent), snippet(latent)),
    ...COLUMNS.map((column) => el("td", { class: column.by, "data-label": column.label }, column.text(column.of(latent)))));
}

// The explanation where there is one, else the tokens it fires on most.
function aboutOf(latent) {
  if (latent.a?.x) return el("span", { class: "explanation" }, latent.a.x);
  const use = useOf(latent) ?? Object.values(latent.u).find(Boolean);
  return use ? el("span", { class: "tokens" }, ...use.t.slice(0, 6).map(([text]) => token(data.texts[text]))) : null;
}

function countText() {
  const n = state.rows.length, all = data.latents.length, from = state.page * PAGE + 1;
  const filtered = n === all ? `${all} latents` : `${n} of ${all} latents`;
  return n > PAGE ? `${from}–${Math.min(n, from + PAGE - 1)} of ${filtered}` : filtered;
}

function drawPager(place, pages) {
  const turn = (by, label, text) => el("button", {
    type: "button", class: "quiet", "aria-label": label, disabled: state.page + by < 0 || state.page + by >= pages,
    onclick: () => { state.page += by; draw(); find("count").scrollIntoView({ block: "nearest" }); },
  }, text);
  place.replaceChildren(...(pages < 2 ? [] : [
    turn(-1, "Previous page", "‹"), el("span", { class: "muted" }, `page ${state.page + 1} of ${pages}`), turn(1, "Next page", "›")]));
}

function drawOverview() {
  const name = data.domains[state.domain], histogram = data.histograms[name];
  const card = (title, ...parts) => el("div", { class: "card" }, el("h3", {}, title), ...parts);
  const lead = (number, text) => el("p", { class: "lead" }, el("span", { class: "number" }, number), el("span", { class: "muted" }, text));
  const cards = [card("Latents", lead(String(data.alive ?? "–"), `of ${data.width} fire`), el("p", { class: "muted" }, data.latents.length < (data.alive ?? 0) ? `${data.latents.length} of them are shown here.` : "All of them are shown here."))];
  const typical = SORTS.slice(1).map((column) => [column, median(data.latents.map(column.of).filter((x) => x !== null))]).filter(([, x]) => x !== null);
  if (typical.length) cards.push(card("Median of the latents shown", el("dl", { class: "measures" }, ...typical.map(([column, x]) => el("div", {}, el("dt", {}, column.label), el("dd", {}, column.text(x)))))));
  if (histogram) {
    const first = histogram.counts.findIndex(Boolean), last = histogram.counts.findLastIndex(Boolean);
    const label = (i) => `${share(10 ** histogram.edges[first + i])} to ${share(10 ** histogram.edges[first + i + 1])} of tokens`;
    const marks = [share(10 ** histogram.edges[first]), share(10 ** histogram.edges[last + 1])];
    cards.push(card(`Latents by density on ${name}`, first < 0 ? null : bars(histogram.counts.slice(first, last + 1), "Latents by density", label, marks)));
  }
  const scores = data.latents.map(scoreOf).filter((x) => x !== null);
  if (data.autointerp) cards.push(card(`Autointerp on ${data.autointerp.domain}`, ...scoreParts(scores, lead)));
  find("overview").replaceChildren(...cards);
}

function median(numbers) {
  if (!numbers.length) return null;
  const sorted = numbers.sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function scoreParts(scores, lead) {
  const judge = el("p", { class: "muted" }, `Judge: ${data.autointerp.judge}. ${scores.length} of ${data.autointerp.sampled} sampled latents have a score.`);
  if (!scores.length) return [judge];
  const mean = scores.reduce((a, b) => a + b, 0) / scores.length, low = Math.min(0.4, ...scores), bins = 24;
  const counts = new Array(bins).fill(0);
  scores.forEach((x) => { counts[Math.min(bins - 1, Math.floor((bins * (x - low)) / (1 - low)))] += 1; });
  const label = (i) => `score ${digits(low + (i * (1 - low)) / bins, "score")} to ${digits(low + ((i + 1) * (1 - low)) / bins, "score")}`;
  return [lead(digits(mean, "score"), "mean score"), bars(counts, "Latents by score", label, [digits(low, "score"), "1"]), judge];
}
