/* Statistics of a region of interest: {x, y, width, height} in whole pixels, from column x and row y on. */

/** A region that lies in the image, null for one without a pixel. */
function inside({ x, y, width, height }) {
  const [left, top] = [Math.max(x, 0), Math.max(y, 0)];
  const [right, bottom] = [Math.min(x + width, facts.columns), Math.min(y + height, facts.rows)];
  return right > left && bottom > top ? { x: left, y: top, width: right - left, height: bottom - top } : null;
}

/** Estimated from independent values. */
function variance(values) {
  const mean = values.reduce((a, b) => a + b) / values.length;
  return values.reduce((a, b) => a + (b - mean) ** 2, 0) / (values.length - 1);
}

/** Estimated from values of antithetic pairs, 0 and 1, 2 and 3, ...: that of half their difference and of their mean. */
function varianceOfPairs(values) {
  const firsts = values.filter((_, i) => i % 2 === 0);
  const centres = firsts.map((value, j) => (value + values[2 * j + 1]) / 2);
  const odd = firsts.reduce((a, value, j) => a + ((value - values[2 * j + 1]) / 2) ** 2, 0) / firsts.length;
  return odd + (firsts.length > 1 ? variance(centres) : 0);
}

/** Mean and standard deviation over the region's pixels (divided by their number). */
function statistics(values, { x, y, width, height }) {
  let [sum, squares] = [0, 0];
  const each = (f) => {
    for (let row = y; row < y + height; row++)
      for (let column = x; column < x + width; column++) f(values[row * facts.columns + column]);
  };
  each((value) => (sum += value));
  const mean = sum / (width * height);
  each((value) => (squares += (value - mean) ** 2));
  return { mean, sd: Math.sqrt(squares / (width * height)) };
}

/** A row of cells of a table; numbers show their exact value when pointed at. */
function row(cell, ...entries) {
  const tr = document.createElement("tr");
  for (const entry of entries) {
    const td = document.createElement(tr.children.length ? "td" : "th");
    td.textContent = typeof entry === "number" ? readable(entry) : entry;
    if (typeof entry === "number") td.title = `${entry} in units of the raw data`;
    tr.append(td);
  }
  tr.dataset.row = cell;
  return tr;
}

/** What is known of a region, as a table: every image, the spread, and what the samples say of the region's mean. */
async function roiTable(region, slice, sample) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const text of [`${facts.unit.label}`, "mean", "SD in ROI"]) {
    const th = document.createElement("th");
    th.textContent = text;
    head.append(th);
  }
  const body = table.createTBody();
  for (const layer of facts.layers) {
    const values = await imageOf(layer.id, slice, sample);
    if (!values) continue;
    const { mean, sd } = statistics(values, region);
    const name = layer.id === "sample" ? `sample ${sample + 1}` : layer.map ? `mean ${layer.label}` : layer.label;
    body.append(row(layer.id, name, mean, sd));
    if (layer.id === "std" && facts.interval) {
      const { coverage, factor } = facts.interval;
      const text = `calibrated ${Math.round(100 * coverage)} % interval of a pixel, mean half-width ±`;
      body.append(row("interval", text, factor * mean, ""));
    }
  }
  if (sampled(slice)) {
    const means = (await samplesOf(slice)).map((values) => statistics(values, region).mean);
    const spread = Math.sqrt(facts.samples.antithetic ? varianceOfPairs(means) : variance(means));
    body.append(row("spread", `std of the ROI mean over ${means.length} samples`, spread, ""));
  }
  const note = document.createElement("p");
  const { x, y, width, height } = region;
  const area = facts.area ? `, ${(width * height * facts.area).toFixed(0)} mm²` : "";
  note.textContent = `From x = ${x}, y = ${y}, ${width} × ${height}: ${width * height} pixels${area}. ` +
    (facts.interval ? "The interval is that of a pixel, on average over scans like those of the calibration." : "");
  const result = document.createDocumentFragment();
  result.append(table, note);
  return result;
}
