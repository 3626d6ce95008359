/* What the mouse does in a pane. */

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
