/* The viewer: one state, drawn by `render`; controls, keys and mouse change it. */

const find = (selector) => document.querySelector(selector);
const panes = [...document.querySelectorAll(".pane")].map((figure) => ({
  figure,
  chosen: null,
  menu: figure.querySelector("select"),
  canvas: figure.querySelector("canvas"),
  readout: figure.querySelector("output"),
  cross: figure.querySelector(".cross"),
  bars: figure.querySelector(".bars"),
  values: null,
}));
const start = () => ({ centre: facts.largest / 2, width: facts.largest, range: 1, opacity: 0, zoom: 1,
  middle: [facts.columns / 2, facts.rows / 2] });
const state = { ...start(), slice: Math.floor(facts.slices / 2), sample: 0, active: 1, roi: null };
const sliders = Object.fromEntries([...document.querySelectorAll("input[type=range]")].map((input) => [input.id, input]));
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
let ticket = 0;

/** What a slider's value means. */
const said = {
  slice: (v) => `${facts.first + v} (${v + 1} of ${facts.slices})`,
  sample: (v) => (sampled(state.slice) ? `${v + 1} of ${facts.samples.count}` : "none kept of this slice"),
  centre: (v) => `${readable(v)} ${facts.unit.label}`,
  width: (v) => `${readable(v)} ${facts.unit.label}`,
  range: (v) => `${Math.round(100 * v)} %`,
  opacity: (v) => (v === 0 ? "off" : `${Math.round(100 * v)} %`),
  zoom: (v) => `${v} ×`,
};

/** Take over changes, within their limits, and draw. */
function set(changes) {
  Object.assign(state, changes);
  state.slice = clamp(state.slice, 0, facts.slices - 1);
  state.width = clamp(state.width, facts.largest / 100, 2 * facts.largest);
  state.centre = clamp(state.centre, 0, 2 * facts.largest);
  state.zoom = clamp(state.zoom, 1, 8);
  render();
}

/** Show an image in a pane; `id` is one of facts.layers. */
function choose(pane, id) {
  panes[pane].chosen = id;
  state.active = pane;
  render();
}

async function render() {
  const mine = ++ticket;
  find("#viewer").setAttribute("aria-busy", "true");
  const { slice, sample } = state;
  const [std, region, ...images] = await Promise.all([
    state.opacity > 0 ? imageOf("std", slice) : null,
    state.roi ? roiTable(state.roi, slice, sample) : null,
    ...panes.map((pane) => imageOf(pane.chosen, slice, sample)),
  ]);
  if (mine !== ticket) return; // a later change is being drawn
  panes.forEach((pane, i) => drawPane(pane, i, images[i], std));
  drawControls();
  find("#roi-result").replaceChildren(region ?? "");
  find("#roi-hint").hidden = region !== null;
  find("#viewer").setAttribute("aria-busy", "false");
}

function drawPane(pane, i, values, std) {
  const layer = layerOf(pane.chosen);
  const scale = scaleOf(layer, state);
  const spread = std && !layer.map ? layerOf("std") : null;
  pane.values = values;
  pane.menu.value = pane.chosen;
  pane.figure.classList.toggle("active", i === state.active);
  const picture = values && paint(values, scale, spread && std, spread && scaleOf(spread, state), state.opacity);
  show(pane.canvas, picture, state);
  pane.canvas.setAttribute("aria-label", `${nameOf(layer)}, slice ${facts.first + state.slice}`);
  pane.bars.replaceChildren(barOf(nameOf(layer), scale));
  if (spread) pane.bars.append(barOf(nameOf(spread), scaleOf(spread, state)));
  const shown = `slice ${facts.first + state.slice} · ${nameOf(layer)}`;
  pane.figure.dataset.text = values ? shown : "no samples kept of this slice";
}

const nameOf = (layer) => (layer.id === "sample" ? `sample ${state.sample + 1} of ${facts.samples.count}` : layer.label);

function drawControls() {
  for (const [name, slider] of Object.entries(sliders)) {
    slider.value = state[name];
    const text = said[name](state[name]);
    find(`output[for=${name}]`).textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  for (const input of document.querySelectorAll("#roi input"))
    if (input !== document.activeElement) input.value = state.roi ? state.roi[input.id.slice(4)] : "";
  document.querySelectorAll("#strip button").forEach((button, i) => {
    button.setAttribute("aria-current", String(i === state.slice));
    if (i === state.slice) button.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

/** The pixel [x, y], with fractions, under the mouse. */
function pixelAt(pane, event) {
  const { sx, sy, left, top } = frameOf(pane.canvas, state);
  const box = pane.canvas.getBoundingClientRect();
  const [u, v] = [event.clientX - box.left, event.clientY - box.top].map((d) => (d * pane.canvas.width) / box.width);
  return [(u - left) / sx, (v - top) / sy];
}

/** Name the pixel and its values in both panes, and mark it. */
function point(x, y) {
  const [column, line] = [Math.floor(x), Math.floor(y)];
  const there = column >= 0 && line >= 0 && column < facts.columns && line < facts.rows;
  for (const pane of panes) {
    const value = there && pane.values ? readable(pane.values[line * facts.columns + column]) : null;
    pane.readout.textContent = value === null ? "" : `(${column}, ${line}): ${value} ${facts.unit.label}`;
    pane.cross.hidden = !there;
    const { sx, sy, left, top } = frameOf(pane.canvas, state);
    const ratio = pane.canvas.clientWidth / pane.canvas.width;
    pane.cross.style.transform = `translate(${(left + sx * x) * ratio}px, ${(top + sy * y) * ratio}px)`;
  }
}

/** The whole pixels between two points, both ends' included. */
function between([x0, y0], [x1, y1]) {
  const [left, right] = [Math.min(x0, x1), Math.max(x0, x1)].map(Math.floor);
  const [top, bottom] = [Math.min(y0, y1), Math.max(y0, y1)].map(Math.floor);
  return inside({ x: left, y: top, width: right - left + 1, height: bottom - top + 1 });
}

/** What a drag does, by button and keys: moves the view, the window, or a region of interest. */
function dragging(pane, event) {
  const from = pixelAt(pane, event);
  const before = { ...state, middle: [...state.middle] };
  const [u, v] = [event.clientX, event.clientY];
  if (event.button === 1 || event.ctrlKey)
    return (e) => {
      const { sx, sy } = frameOf(pane.canvas, state);
      const ratio = pane.canvas.width / pane.canvas.clientWidth;
      const [x, y] = before.middle;
      set({ middle: [x - ((e.clientX - u) * ratio) / sx, y - ((e.clientY - v) * ratio) / sy] });
    };
  if (event.button === 2 || event.shiftKey)
    return (e) => {
      const [factor, down] = [2 ** ((e.clientX - u) / 200), ((e.clientY - v) / 400) * facts.largest];
      if (layerOf(pane.chosen).map) set({ range: clamp(before.range * factor, 0.1, 2) });
      else set({ width: before.width * factor, centre: before.centre - down });
    };
  return (e) => {
    const far = Math.abs(e.clientX - u) + Math.abs(e.clientY - v) > 3; // less is a click
    if (far) set({ roi: between(from, pixelAt(pane, e)) });
  };
}

function zoomAt(pane, event, factor) {
  const before = pixelAt(pane, event);
  state.zoom = clamp(state.zoom * factor, 1, 8);
  const after = pixelAt(pane, event);
  set({ middle: state.zoom === 1 ? start().middle : state.middle.map((m, i) => m + before[i] - after[i]) });
}

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

function listenTo(pane, i) {
  const { canvas } = pane;
  let drag = null;
  pane.menu.addEventListener("change", () => choose(i, pane.menu.value));
  pane.figure.addEventListener("focusin", () => state.active !== i && set({ active: i }));
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.focus();
    canvas.setPointerCapture(event.pointerId);
    drag = dragging(pane, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    point(...pixelAt(pane, event));
    drag?.(event);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (drag = null));
  canvas.addEventListener("pointerleave", () => point(-1, -1));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    if (facts.slices === 1 && !event.ctrlKey) return; // the page's own
    event.preventDefault();
    if (event.ctrlKey) zoomAt(pane, event, event.deltaY < 0 ? 1.25 : 0.8);
    else set({ slice: state.slice + Math.sign(event.deltaY) });
  }, { passive: false });
  new ResizeObserver(() => {
    [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight].map((n) => Math.round(n * devicePixelRatio));
    render();
  }).observe(canvas);
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
  find("#problem").textContent = "This browser cannot unpack the images: it takes Chrome or Edge 80, Firefox 113, " +
    "Safari 16.4, or later. The small pictures and tables are complete.";
}
