// Wires the controls to the state.

function keys(event) {
  const typing = event.target.closest?.("input, select, textarea"), open = find("drawer").open;
  if (event.key === "/" && !typing && !open) {
    event.preventDefault();
    find("search").focus();
  }
  if (open && ["ArrowLeft", "ArrowRight"].includes(event.key)) step(event.key === "ArrowRight" ? 1 : -1);
  if (event.target.matches?.(".row-name") && ["ArrowDown", "ArrowUp"].includes(event.key)) {
    const names = [...document.querySelectorAll(".row-name")], at = names.indexOf(event.target);
    event.preventDefault();
    names[at + (event.key === "ArrowDown" ? 1 : -1)]?.focus();
  }
}

function fillControls() {
  const { facts } = data, tokens = Object.entries(facts.tokens).map(([name, n]) => `${n.toLocaleString("en")} tokens of ${name}`);
  find("facts").textContent = [facts.variant, facts.model, `layer ${facts.layer}`, ...tokens].join(" · ");
  find("domain").replaceChildren(...data.domains.map((name, i) => el("option", { value: i }, name)));
  find("domain-field").hidden = data.domains.length < 2;
  find("sort").replaceChildren(...SORTS.map((sort) => el("option", { value: sort.by }, sort.label)));
  find("scored-field").hidden = !data.autointerp;
  find("legend").textContent = [
    "Colours show a latent's activation at each token, relative to its strongest example.",
    ...COLUMNS.map((column) => `${column.label}: ${column.hint}.`),
    data.latents.some((latent) => latent.p.length) ? "Promoted and suppressed tokens: the decoder row through the model's final norm and unembedding, without that norm's bias, centred over the vocabulary; only order and ratios mean something." : "",
  ].join(" ");
}

function listen() {
  let pending = 0;
  find("search").addEventListener("input", (event) => { clearTimeout(pending); pending = setTimeout(() => { state.search = event.target.value; update(); }, 60); });
  find("domain").addEventListener("change", (event) => { state.domain = Number(event.target.value); drawOverview(); update(); });
  find("sort").addEventListener("change", (event) => sortBy(SORTS.find((sort) => sort.by === event.target.value)));
  find("direction").addEventListener("click", () => sortBy(SORTS.find((sort) => sort.by === state.sort.by)));
  find("scored").addEventListener("change", (event) => { state.scored = event.target.checked; update(); });
  find("drawer").addEventListener("click", (event) => { if (event.target === find("drawer")) find("drawer").close(); });
  find("drawer").addEventListener("close", () => { remember(""); document.querySelector(`[data-latent="${state.open?.n}"]`)?.focus(); });
  document.addEventListener("keydown", keys);
}

startTheme();
fillControls();
listen();
drawOverview();
if (data.autointerp) state.sort = { by: "score", descending: true };
update();
const asked = byNumber.get(Number(location.hash.slice(1)));
if (location.hash && asked) openDrawer(asked);
