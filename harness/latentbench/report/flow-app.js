// Wires the controls to the state.

function follow(id, focus = false) {
  state.chosen = state.chosen === id && !focus ? null : id;
  find("clear").disabled = state.chosen === null;
  mark();
  drawAbout();
  if (focus) find("graph").querySelector(`[data-id="${CSS.escape(id)}"]`)?.focus();
}

function show(number) {
  choose(number);
  find("clear").disabled = true;
  drawGraph();
  drawAbout();
}

function keys(event) {
  const id = event.target.closest?.(".node")?.dataset.id;
  if (event.key === "Escape") {
    untip();
    if (state.chosen !== null) follow(state.chosen);
  }
  if (!id) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    follow(id);
  }
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    const back = event.key === "ArrowLeft", edge = strongest(back ? edgesInto(id) : edgesFrom(id));
    event.preventDefault();
    if (edge) follow(back ? edge.source : edge.target, true);
  }
}

function fillControls() {
  find("facts").textContent = data.facts.join(" · ");
  find("seed").replaceChildren(...data.graphs.map((graph, i) => el("option", { value: i }, graph.seed)));
  find("seed").addEventListener("change", (event) => show(Number(event.target.value)));
  find("least").addEventListener("input", (event) => {
    state.least = Number(event.target.value);
    state.chosen = null;
    find("clear").disabled = true;
    find("least-shown").textContent = state.least.toFixed(2);
    drawGraph();
    drawAbout();
  });
  find("least-shown").textContent = "0.00";
  find("clear").addEventListener("click", () => state.chosen !== null && follow(state.chosen));
  document.addEventListener("keydown", keys);
}

startTheme();
fillControls();
drawLegend();
fitSize();
drawSteering();
drawLayers();
show(0);
