/* From values to grey levels and colours, and where they lie in a pane. */

/** DICOM's Hot Iron palette (PS3.6 B.1.1), black - red - yellow - white. */
const HOT = Array.from({ length: 256 }, (_, i) =>
  [2 * i, 2 * (i - 128), 4 * (i - 192)].map((c) => Math.min(Math.max(c, 0), 255)));
const GREY = Array.from({ length: 256 }, (_, i) => [i, i, i]);

const level = (value, low, high) => Math.min(Math.max(Math.round((255 * (value - low)) / (high - low)), 0), 255);

/** What a layer is shown with: its palette, and the values that are black and white. */
function scaleOf(layer, view) {
  if (layer.map) return { palette: HOT, low: 0, high: layer.top * view.range };
  return { palette: GREY, low: view.centre - view.width / 2, high: view.centre + view.width / 2 };
}

/** An image (y, x), with the std map over it where that is given, as a canvas of one pixel a pixel. */
function paint(values, scale, over, overScale, opacity) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [facts.columns, facts.rows];
  const picture = new ImageData(facts.columns, facts.rows);
  for (let i = 0; i < pixels; i++) {
    const below = scale.palette[level(values[i], scale.low, scale.high)];
    const above = over ? overScale.palette[level(over[i], overScale.low, overScale.high)] : below;
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round((1 - opacity) * below[c] + opacity * above[c]);
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

/** From pixels to a canvas: u = left + sx x, v = top + sy y; pixels have the size that the raw data tell. */
function frameOf(canvas, view) {
  const [dy, dx] = facts.spacing ?? [1, 1];
  const fit = Math.min(canvas.width / (facts.columns * dx), canvas.height / (facts.rows * dy));
  const [sx, sy] = [fit * dx * view.zoom, fit * dy * view.zoom];
  return { sx, sy, left: canvas.width / 2 - sx * view.middle[0], top: canvas.height / 2 - sy * view.middle[1] };
}

/** Draw a painted image and the region of interest into a pane. */
function show(canvas, picture, view) {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (!picture) return;
  const { sx, sy, left, top } = frameOf(canvas, view);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, left, top, sx * facts.columns, sy * facts.rows);
  if (view.roi) {
    const { x, y, width, height } = view.roi;
    for (const [colour, wide] of [["#000", 3], ["#7df9ff", 1.5]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = wide * devicePixelRatio;
      pen.strokeRect(left + sx * x, top + sy * y, sx * width, sy * height);
    }
  }
}

/** A colour bar with its ends and unit, as an element. */
function barOf(name, scale) {
  const bar = document.createElement("div");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [256, 1];
  const picture = new ImageData(256, 1);
  scale.palette.forEach((colour, i) => picture.data.set([...colour, 255], 4 * i));
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const [low, high, unit] = [scale.low, scale.high, name].map((text, i) => {
    const label = document.createElement("span");
    label.textContent = i < 2 ? readable(text) : `${text}, ${facts.unit.label}`;
    return label;
  });
  bar.append(unit, low, canvas, high);
  return bar;
}

/** A value in the unit of the page, with three digits that count. */
function readable(value) {
  const number = value * facts.unit.factor;
  const digits = number === 0 ? 0 : 2 - Math.floor(Math.log10(Math.abs(number)));
  return number.toFixed(Math.min(Math.max(digits, 0), 6));
}
