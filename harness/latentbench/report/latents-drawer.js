// One latent in full.

function openDrawer(latent) {
  const drawer = find("drawer");
  state.open = latent;
  drawer.replaceChildren(el("div", { class: "sheet" }, ...drawerParts(latent)));
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
  remember(`#${latent.n}`);
}

// Browsers may refuse to write the address of a local file; the page works without.
function remember(hash) {
  try {
    history.replaceState(null, "", hash || location.pathname);
  } catch { /* the address stays as it is */ }
}

function step(by) {
  const next = state.rows[state.rows.indexOf(state.open) + by];
  if (!next) return;
  const at = Math.floor(state.rows.indexOf(next) / PAGE);
  if (at !== state.page) {
    state.page = at;
    draw();
  }
  openDrawer(next);
}

function drawerParts(latent) {
  const at = state.rows.indexOf(latent);
  const move = (by, label, text) => el("button", { type: "button", class: "quiet", "aria-label": label, disabled: at < 0 || !state.rows[at + by], onclick: () => step(by) }, text);
  const close = el("button", { type: "button", class: "quiet", autofocus: true, onclick: () => find("drawer").close() }, "Close");
  return [
    el("header", {}, el("div", {}, el("h2", { id: "drawer-title" }, `Latent ${latent.n}`)), el("div", { class: "moves" }, move(-1, "Previous latent", "←"), move(1, "Next latent", "→"), close)),
    ...interpretation(latent.a),
    ...onDomains(latent).filter(Boolean),
    ...lens(latent),
    ...neighbours(latent),
  ];
}

function interpretation(a) {
  if (!a) return [];
  const said = a.x ? el("p", { class: "explained" }, a.x) : null;
  const why = a.e ? el("p", { class: "muted" }, `No score: ${a.e}`) : null;
  const line = (name, test) => test && el("tr", {}, el("th", { scope: "row" }, name), ...[test.balanced_accuracy, test.true_positive_rate, test.true_negative_rate, test.auroc].map((x) => el("td", {}, digits(x, "score"))), el("td", {}, `${test.positives} + ${test.negatives}`));
  const head = ["Test", "Balanced accuracy", "True positives", "True negatives", "AUROC", "Examples"].map((text) => el("th", { scope: "col" }, text));
  const table = a.d || a.f ? el("div", { class: "wide" }, el("table", { class: "numbers scores" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...[line("Detection", a.d), line("Fuzzing", a.f)].filter(Boolean)))) : null;
  return [said, why, table].filter(Boolean);
}

// How it is used on one domain, and its strongest examples there; the chosen domain comes first.
function onDomains(latent) {
  const order = [state.domain, ...data.domains.keys()].filter((domain, i, all) => all.indexOf(domain) === i);
  return order.flatMap((domain) => {
    const name = data.domains[domain], use = useOf(latent, domain), found = examplesOf(latent, domain);
    if (use === null && !found.length && !data.histograms[name]) return [];
    const parts = use === null && !found.length ? [el("p", { class: "muted" }, "Never fires.")] : [...usage(use), examples(latent, found)];
    return [el("h3", {}, `On ${name}`), ...parts];
  });
}

function usage(use) {
  if (use === null) return [];
  const fact = (label, text) => el("div", {}, el("dt", {}, label), el("dd", {}, text));
  const [first, counts] = use.g, size = (i) => String(Number((2 ** (data.bins.lowest + (first + i) / data.bins.perOctave)).toPrecision(2)));
  const measures = el("dl", { class: "measures" }, fact("density", share(use.d)), fact("max", digits(use.m)), fact("token entropy", `${digits(use.h, "bits")} bits`), fact("fires again in a document", share(use.r)));
  const sizes = bars(counts, "Activations by size", (i) => `${size(i)} to ${size(i + 1)}`, [size(0), size(counts.length)]);
  return [
    el("div", { class: "use" }, measures, el("div", {}, el("h4", {}, "Activations by size"), sizes)),
    el("p", { class: "tokens" }, ...use.t.map(([text, part]) => el("span", { class: "counted" }, token(data.texts[text]), el("span", { class: "muted" }, share(part))))),
  ];
}

function examples(latent, found) {
  const strongest = strongestOf(latent);
  const entry = (example) => el("li", {}, el("p", { class: "example" }, ...coloured(example, strongest)),
    el("p", { class: "muted" }, [`peak ${digits(peakOf(example).value)}`, `document ${example[1]}`, example[4]].filter(Boolean).join(" · ")));
  return found.length ? el("ol", { class: "examples" }, ...found.map(entry)) : null;
}

function lens(latent) {
  if (!latent.p.length) return [];
  const list = (title, pairs) => el("div", {}, el("h4", {}, title), el("ol", { class: "lens" }, ...pairs.map(([text, logit]) => el("li", {}, token(data.texts[text]), el("span", { class: "muted" }, logit.toFixed(2).replace("-", "−"))))));
  return [el("h3", {}, "Tokens its decoder promotes and suppresses"), el("div", { class: "columns" }, list("Promotes", latent.p), list("Suppresses", latent.q))];
}

function neighbours(latent) {
  if (!latent.k.length) return [];
  const about = (other) => el("span", { class: "near-about" }, other ? aboutOf(other) : el("span", { class: "muted" }, "not shown on this page"));
  const entry = ([number, cosine]) => {
    const other = byNumber.get(number);
    const name = other ? el("button", { type: "button", class: "link", onclick: () => openDrawer(other) }, String(number)) : el("span", {}, String(number));
    return el("li", {}, name, el("span", { class: "muted" }, digits(cosine, "cosine")), about(other));
  };
  return [el("h3", {}, "Nearest latents by decoder cosine"), el("ol", { class: "near" }, ...latent.k.map(entry))];
}
