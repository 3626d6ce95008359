/* What the page holds: facts, and images that are unpacked when they are first shown (mrgen/review/pack.py). */

/** @type {{rows: number, columns: number, slices: number, first: number, spacing: number[] | null, area: number | null,
 *   edges: {left: string, right: string, top: string, bottom: string} | null, unit: {factor: number, label: string},
 *   layers: {id: string, label: string, map: boolean, step?: number, top: number}[], largest: number,
 *   samples: {count: number, step: number, ratio: number} | null,
 *   interval: {coverage: number, factor: number} | null, fit: number[] | null}} */
const facts = JSON.parse(document.getElementById("facts").textContent);
const pixels = facts.rows * facts.columns;
const cache = new Map();
const KEPT = 200; // unpacked images

/** The bytes of a packed block.
 *  @param {string} id @returns {Promise<Uint8Array>} */
async function unpack(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Whole steps, image after image: from differences to the pixel before, or to `base`.
 *  @param {Uint8Array} bytes @param {Uint16Array} [base] @returns {Uint16Array} */
function undo(bytes, base) {
  const count = bytes.length / 2;
  const steps = new Uint16Array(count);
  for (let i = 0, before = 0; i < count; i++) {
    const z = bytes[i] | (bytes[i + count] << 8);
    steps[i] = (base ? base[i % pixels] : before) + ((z >>> 1) ^ -(z & 1)); // modulo 2^16
    before = steps[i];
  }
  return steps;
}

/** A promise of what `make` gives, which is kept under `key`. */
function remember(key, make) {
  if (!cache.has(key)) cache.set(key, make());
  if (cache.size > KEPT) cache.delete(cache.keys().next().value);
  return cache.get(key);
}

const scaled = (steps, step) => Float32Array.from(steps, (k) => k * step);
const stepsOf = (id, slice) => remember(`${id}-${slice}`, async () => undo(await unpack(`${id}-${slice}`)));
const layerOf = (id) => facts.layers.find((layer) => layer.id === id);

/** Whether the page holds a kind of image, or all samples, of a slice. */
const held = (id, slice) => document.getElementById(`${id}-${slice}`) !== null;
const sampled = (slice) => held("samples", slice);

/** All samples of a slice, Float32Array each. */
function samplesOf(slice) {
  return remember(`samples-${slice}`, async () => {
    const { count, step, ratio } = facts.samples;
    const mean = (await stepsOf("reconstruction", slice)).map((k) => Math.floor(k / ratio));
    const steps = undo(await unpack(`samples-${slice}`), mean);
    return Array.from({ length: count }, (_, n) => scaled(steps.subarray(n * pixels, (n + 1) * pixels), step));
  });
}

/** An image (y, x) in the units of the raw data; null for one that the page does not hold.
 *  @param {string} id @param {number} slice @param {number} [sample] @returns {Promise<Float32Array | null>} */
async function imageOf(id, slice, sample) {
  if (id === "sample") return sampled(slice) ? (await samplesOf(slice))[sample] : null;
  if (id === "error") {
    const [mean, reference] = await Promise.all([imageOf("reconstruction", slice), imageOf("reference", slice)]);
    return mean && reference && mean.map((value, i) => Math.abs(facts.fit[slice] * value - reference[i]));
  }
  if (!held(id, slice)) return null;
  return remember(`${id}-${slice} scaled`, async () => scaled(await stepsOf(id, slice), layerOf(id).step));
}
