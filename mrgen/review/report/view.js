/* The viewer: one state, drawn by `render`; controls (controls.js) and mouse (mouse.js) change it through `set`. */

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
  sample: (v) => (sampled(state.slice) ? `${v + 1} of ${facts.samples.count}` : "none of this slice in this file"),
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
  find("#roi").classList.toggle("empty", region === null); // and so not printed
  find("#viewer").setAttribute("aria-busy", "false");
}

function drawPane(pane, i, values, std) {
  const layer = layerOf(pane.chosen);
  const scale = scaleOf(layer, state);
  const spread = std && !layer.map ? layerOf("std") : null;
  pane.values = values;
  pane.menu.value = pane.chosen;
  pane.figure.classList.toggle("active", i === state.active);
  pane.figure.classList.toggle("missing", values === null);
  const picture = values && paint(values, scale, spread && std, spread && scaleOf(spread, state), state.opacity);
  show(pane.canvas, picture, state);
  pane.canvas.setAttribute("aria-label", `${nameOf(layer)}, slice ${facts.first + state.slice}`);
  pane.bars.replaceChildren(barOf(nameOf(layer), scale));
  if (spread) pane.bars.append(barOf(nameOf(spread), scaleOf(spread, state)));
  const shown = `slice ${facts.first + state.slice} · ${nameOf(layer)}`;
  pane.figure.dataset.text = values ? shown : `${shown}: not in this file`;
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
    if (i === state.slice && button.getAttribute("aria-current") !== "true") reveal(button);
    button.setAttribute("aria-current", String(i === state.slice));
  });
}

/** Scroll the strip, and nothing else, until it shows this button. */
function reveal(button) {
  const strip = find("#strip");
  strip.scrollTop = button.offsetTop - (strip.clientHeight - button.offsetHeight) / 2;
  strip.scrollLeft = button.offsetLeft - (strip.clientWidth - button.offsetWidth) / 2;
}
