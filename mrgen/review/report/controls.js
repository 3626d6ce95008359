/* Keys, sliders, fields and buttons; and the beginning of it all. */

/** Show the next sample, or the one before, in the chosen pane. */
function flip(by) {
  if (!facts.samples) return;
  const other = panes[state.active].chosen === "sample" ? state.sample + by : state.sample;
  state.sample = (other + facts.samples.count) % facts.samples.count;
  choose(state.active, "sample");
}

const keys = {
  ArrowLeft: () => set({ slice: state.slice - 1 }),
  ArrowUp: () => set({ slice: state.slice - 1 }),
  ArrowRight: () => set({ slice: state.slice + 1 }),
  ArrowDown: () => set({ slice: state.slice + 1 }),
  Home: () => set({ slice: 0 }),
  End: () => set({ slice: facts.slices - 1 }),
  " ": () => flip(1),
  s: () => flip(1),
  S: () => flip(-1),
  p: () => set({ active: 1 - state.active }),
  w: () => set({ width: state.width / 1.1 }),
  W: () => set({ width: state.width * 1.1 }),
  l: () => set({ centre: state.centre - facts.largest / 40 }),
  L: () => set({ centre: state.centre + facts.largest / 40 }),
  o: () => layerOf("std") && set({ opacity: state.opacity === 0 ? 0.5 : state.opacity < 1 ? 1 : 0 }),
  "+": () => set({ zoom: state.zoom * 1.25 }),
  "=": () => set({ zoom: state.zoom * 1.25 }),
  "-": () => set({ zoom: state.zoom / 1.25 }),
  c: () => set({ roi: null }),
  r: () => set(start()),
  "?": () => find("#help").showModal(),
};

/** Whether an element wants this key for itself. */
function takes(element, key) {
  if (element.matches("select, input[type=number], dialog *")) return true;
  if (element.matches("input[type=range]")) return key.startsWith("Arrow") || key === "Home" || key === "End";
  return element.matches("button, summary") && (key === " " || key === "Enter");
}

function listen() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || takes(event.target, event.key)) return;
    const layer = facts.layers[Number(event.key) - 1];
    const act = layer ? () => choose(state.active, layer.id) : keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  for (const [name, slider] of Object.entries(sliders)) {
    slider.addEventListener("input", () => {
      if (name === "sample" && !panes.some((pane) => pane.chosen === "sample")) panes[state.active].chosen = "sample";
      set({ [name]: slider.valueAsNumber });
    });
  }
  for (const input of document.querySelectorAll("#roi input")) {
    input.addEventListener("change", () => {
      const number = (name) => Math.trunc(find(`#roi-${name}`).valueAsNumber || 0);
      const [width, height] = [number("width"), number("height")].map((size) => Math.max(size, 1));
      const region = inside({ x: number("x"), y: number("y"), width, height });
      if (region) set({ roi: region });
    });
  }
  document.querySelectorAll("[data-slice]").forEach((button) =>
    button.addEventListener("click", () => {
      set({ slice: Number(button.dataset.slice) });
      if (!button.closest("#strip")) find("#viewer").scrollIntoView();
    }));
  find("#clear").addEventListener("click", () => set({ roi: null }));
  find("#reset").addEventListener("click", () => set(start()));
  find("#ask").addEventListener("click", () => find("#help").showModal());
  find("#controls").addEventListener("submit", (event) => event.preventDefault());
  panes.forEach((pane, i) => listenTo(pane, i));
}

/** Names and limits of the controls, from the facts. */
function prepare() {
  Object.assign(sliders.slice, { max: facts.slices - 1 });
  Object.assign(sliders.centre, { min: 0, max: 1.5 * facts.largest, step: facts.largest / 200 });
  Object.assign(sliders.width, { min: facts.largest / 100, max: 2 * facts.largest, step: facts.largest / 200 });
  if (facts.samples) sliders.sample.max = facts.samples.count - 1;
  for (const element of document.querySelectorAll("[data-needs=samples]")) element.hidden = !facts.samples;
  for (const element of document.querySelectorAll("[data-needs=std]")) element.hidden = !layerOf("std");
  const [dy, dx] = facts.spacing ?? [1, 1];
  document.body.style.setProperty("--aspect", (facts.columns * dx) / (facts.rows * dy)); // of the printed images
  panes.forEach((pane, i) => {
    facts.layers.forEach((layer, number) => pane.menu.append(new Option(`${number + 1}  ${layer.label}`, layer.id)));
    pane.chosen = i && layerOf("std") ? "std" : facts.layers[i].id;
    for (const [edge, text] of Object.entries(facts.edges ?? {})) {
      const label = document.createElement("b");
      [label.className, label.textContent] = [`edge ${edge}`, text];
      pane.canvas.after(label);
    }
  });
}

if ("DecompressionStream" in window) {
  prepare();
  listen();
} else {
  find("#problem").hidden = false;
  find("#problem").textContent = "This browser cannot unpack the images: it takes Chrome or Edge 88, Firefox 113, " +
    "Safari 16.4, or later. The small pictures and tables are complete.";
}
