// A small CNN trained in float32, with int8 quantization-aware training, in MXFP4 (Quartet) and in 16-bit integers
// (DFP16): the same start, the same batches, the same steps. After `npm run build`:
//   node examples/train-cnn.mjs                     on images made here
//   node examples/train-cnn.mjs --steps 400 --seeds 3
//   node examples/train-cnn.mjs --data DIR          on test-images.u8 and test-labels.u8 of DIR (28 x 28 bytes each)
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-layers"; // registers the gradients of tfjs
import { setWasmPaths } from "@tensorflow/tfjs-backend-wasm";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { format } from "lowbit/formats";
import { gaussian, seededRandom } from "lowbit/quantize";
import { dfp16MatMul, fakeQuantize, movingRange, quartetMatMul } from "lowbit/tfjs";

const SIZE = 14;
const BATCH = 32;

/**
 * Images [count, 14, 14] of ten kinds, drawn with changing place, size, brightness and noise: garments as outlines of
 * body, sleeves, legs and soles would have them, each a union of rectangles.
 */
function drawn(count, seed) {
  const random = seededRandom(seed);
  const normal = gaussian(random);
  // rectangles [left, top, right, bottom] of a unit square
  const KINDS = [
    [[0.25, 0.1, 0.75, 0.9], [0.05, 0.1, 0.95, 0.35]], // shirt with short sleeves
    [[0.25, 0.1, 0.45, 0.95], [0.55, 0.1, 0.75, 0.95], [0.25, 0.1, 0.75, 0.3]], // trousers
    [[0.25, 0.1, 0.75, 0.9], [0.05, 0.1, 0.2, 0.85], [0.8, 0.1, 0.95, 0.85], [0.05, 0.1, 0.95, 0.25]], // pullover
    [[0.35, 0.05, 0.65, 0.95], [0.25, 0.6, 0.75, 0.95]], // dress
    [[0.2, 0.1, 0.47, 0.9], [0.53, 0.1, 0.8, 0.9], [0.05, 0.1, 0.95, 0.3]], // coat, open
    [[0.05, 0.65, 0.95, 0.75], [0.5, 0.5, 0.6, 0.7], [0.8, 0.4, 0.9, 0.7]], // sandal
    [[0.25, 0.1, 0.75, 0.9], [0.05, 0.1, 0.95, 0.55]], // shirt with wide sleeves
    [[0.05, 0.5, 0.95, 0.8], [0.05, 0.4, 0.35, 0.6]], // sneaker
    [[0.1, 0.35, 0.9, 0.9], [0.3, 0.1, 0.4, 0.4], [0.6, 0.1, 0.7, 0.4]], // bag
    [[0.1, 0.1, 0.45, 0.85], [0.1, 0.6, 0.95, 0.85]], // boot
  ]; // prettier-ignore
  const images = new Float32Array(count * SIZE * SIZE);
  const labels = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    labels[i] = Math.floor(random() * 10);
    const [width, height] = [0.75 + 0.35 * random(), 0.75 + 0.35 * random()];
    const [left, top] = [(1 - width) * random(), (1 - height) * random()];
    const [bright, ground] = [0.35 + 0.65 * random(), 0.2 * random()];
    const edge = () => 0.05 * normal();
    const parts = KINDS[labels[i]].map(([l, t, r, b]) => [l + edge(), t + edge(), r + edge(), b + edge()]);
    for (let y = 0; y < SIZE; y++)
      for (let x = 0; x < SIZE; x++) {
        const [u, v] = [((x + 0.5) / SIZE - left) / width, ((y + 0.5) / SIZE - top) / height];
        const inside = parts.some(([l, t, r, b]) => u > l && u < r && v > t && v < b);
        images[(i * SIZE + y) * SIZE + x] = Math.min(1, Math.max(0, (inside ? bright : ground) + 0.15 * normal()));
      }
  }
  return { images, labels };
}

/** Fashion-MNIST bytes 28 x 28, halved: means of 2 x 2. The last quarter is for testing. */
function stored(dir) {
  const [bytes, labels] = ["test-images.u8", "test-labels.u8"].map((name) => readFileSync(join(dir, name)));
  const images = new Float32Array(labels.length * SIZE * SIZE);
  for (let i = 0; i < images.length; i++) {
    const [image, y, x] = [Math.floor(i / SIZE / SIZE), Math.floor(i / SIZE) % SIZE, i % SIZE];
    const at = image * 784 + 56 * y + 2 * x;
    images[i] = (bytes[at] + bytes[at + 1] + bytes[at + 28] + bytes[at + 29]) / 4 / 255;
  }
  const cut = Math.floor(labels.length * 0.75);
  const part = (from, to) => ({
    images: images.subarray(from * SIZE * SIZE, to * SIZE * SIZE),
    labels: Int32Array.from(labels.subarray(from, to)),
  });
  return { training: part(0, cut), test: part(cut, labels.length) };
}

const LAYERS = [
  { name: "conv1", rows: 16, k: 9 },
  { name: "conv2", rows: 32, k: 9 * 16 },
  { name: "dense", rows: 64, k: 3 * 3 * 32 },
  { name: "logits", rows: 10, k: 64 },
];

/** Windows of 3 x 3 with a border of zeros: [batch, height, width, 9 * channels], so that a convolution is a product. */
function windows(x) {
  const [batch, height, width, channels] = x.shape;
  const wide = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]); // prettier-ignore
  const at = (i) => tf.slice(wide, [0, Math.floor(i / 3), i % 3, 0], [batch, height, width, channels]);
  return tf.concat(Array.from({ length: 9 }, (_, i) => at(i)), 3); // prettier-ignore
}

/** Logits of images [batch, 14, 14, 1]; `linear(name, x)` is x W^T. */
function forward(images, linear, biases) {
  const layer = (name, x) => tf.add(linear(name, x), biases.get(name));
  const a = tf.maxPool(tf.relu(layer("conv1", windows(images))), 2, 2, "valid");
  const b = tf.maxPool(tf.relu(layer("conv2", windows(a))), 2, 2, "valid");
  const c = tf.relu(layer("dense", tf.reshape(b, [images.shape[0], -1])));
  return layer("logits", c);
}

/** How products are computed while training, and afterwards. */
const PRECISIONS = {
  float32: (weights) => (name, x) => product(x, weights.get(name)),
  // weights int8 by output channel, activations uint8 by a moving range that stays as it is after training
  "int8 QAT": (weights) => {
    const ranges = new Map(LAYERS.map(({ name }) => [name, movingRange({ decay: 0.95 })]));
    return (name, x, training) => {
      const seen = ranges.get(name);
      const range = training ? seen.observe(x) : seen.current;
      return product(fakeQuantize(x, format("uint8_tensor_zp"), { range }), fakeQuantize(weights.get(name), format("int8_row")));
    };
  },
  "MXFP4 (Quartet)": (weights, seed) => {
    const random = seededRandom(seed);
    return (name, x) => quartetMatMul(x, weights.get(name), { random });
  },
  // as published recipes of training in 4 bits have it: the first and the last layer stay
  "MXFP4, inner layers": (weights, seed) => {
    const random = seededRandom(seed);
    const isEdge = (name) => name === LAYERS[0].name || name === LAYERS.at(-1).name;
    return (name, x) => (isEdge(name) ? product(x, weights.get(name)) : quartetMatMul(x, weights.get(name), { random }));
  },
  DFP16: (weights) => (name, x) => dfp16MatMul(x, weights.get(name)),
};

function product(x, w) {
  const rows = tf.reshape(x, [-1, w.shape[1]]);
  return tf.reshape(tf.matMul(rows, w, false, true), [...x.shape.slice(0, -1), w.shape[0]]);
}

const pick = ({ images, labels }, indices) => {
  const pixels = new Float32Array(indices.length * SIZE * SIZE);
  indices.forEach((from, i) => pixels.set(images.subarray(from * SIZE * SIZE, (from + 1) * SIZE * SIZE), i * SIZE * SIZE));
  return [tf.tensor4d(pixels, [indices.length, SIZE, SIZE, 1]), indices.map((i) => labels[i])];
};

/** Trains one network and gives its share of right answers on the test images. */
function run(precision, { training, test }, { steps, seed }) {
  const normal = gaussian(seededRandom(seed));
  const initial = (rows, k) => tf.tensor2d(Float32Array.from({ length: rows * k }, () => normal() * Math.sqrt(2 / k)), [rows, k]); // prettier-ignore
  const weights = new Map(LAYERS.map(({ name, rows, k }) => [name, tf.variable(initial(rows, k))]));
  const biases = new Map(LAYERS.map(({ name, rows }) => [name, tf.variable(tf.zeros([rows]))]));
  const linear = PRECISIONS[precision](weights, seed);
  const order = seededRandom(seed + 1);
  const rate = (step) => 2e-3 * Math.min(1, (2 * (steps - step)) / steps); // falls to zero over the second half
  const adam = tf.train.adam(rate(0));
  const variables = [...weights.values(), ...biases.values()];
  for (let step = 0; step < steps; step++)
    tf.tidy(() => {
      const indices = Array.from({ length: BATCH }, () => Math.floor(order() * training.labels.length));
      const [images, labels] = pick(training, indices);
      adam.learningRate = rate(step);
      const { grads } = tf.variableGrads(() => {
        const logits = forward(images, (name, x) => linear(name, x, true), biases);
        const wanted = tf.oneHot(tf.tensor1d(labels, "int32"), 10);
        return tf.neg(tf.mean(tf.sum(tf.mul(tf.logSoftmax(logits), wanted), -1)));
      }, variables);
      adam.applyGradients(grads);
    });
  let right = 0;
  for (let from = 0; from < test.labels.length; from += 500)
    tf.tidy(() => {
      const [images, labels] = pick(test, Array.from({ length: Math.min(500, test.labels.length - from) }, (_, i) => from + i)); // prettier-ignore
      const found = tf
        .argMax(
          forward(images, (name, x) => linear(name, x, false), biases),
          -1,
        )
        .dataSync();
      right += labels.filter((label, i) => label === found[i]).length;
    });
  adam.dispose();
  tf.dispose(variables);
  return right / test.labels.length;
}

const { values } = parseArgs({
  options: {
    steps: { type: "string", default: "300" },
    seeds: { type: "string", default: "2" },
    test: { type: "string", default: "4000" },
    only: { type: "string" },
    data: { type: "string" },
  },
});
setWasmPaths(fileURLToPath(new URL("../node_modules/@tensorflow/tfjs-backend-wasm/wasm-out/", import.meta.url)));
await tf.setBackend("wasm");
const data = values.data === undefined ? { training: drawn(6000, 100), test: drawn(Number(values.test), 200) } : stored(values.data);
console.log(
  `${data.training.labels.length} images to learn, ${data.test.labels.length} to test, ${values.steps} steps, ${values.seeds} seeds`,
);
let base;
for (const precision of Object.keys(PRECISIONS).filter(
  (name) => values.only === undefined || name === "float32" || name.startsWith(values.only),
)) {
  const shares = Array.from({ length: Number(values.seeds) }, (_, i) =>
    run(precision, data, { steps: Number(values.steps), seed: 10 * i + 1 }),
  );
  const mean = (100 * shares.reduce((a, b) => a + b, 0)) / shares.length;
  base ??= mean;
  const each = shares.map((s) => (100 * s).toFixed(2)).join(", ");
  console.log(`${precision.padEnd(19)} ${mean.toFixed(2)} % right (${each}), ${(mean - base).toFixed(2)} to float32`);
}
