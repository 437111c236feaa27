// Training in tfjs: seeded batches, steps of Adam, low-rank adapters.
import * as tf from "@tensorflow/tfjs-core";
import { crossEntropy, forward } from "./llama.mjs";

/** Seeded numbers: uniform in [0, 1), and roughly normal. */
export function noise(seed) {
  let s = seed >>> 0;
  const next = () => (s = (Math.imul(s, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return { next, normal: () => (next() + next() + next() + next() - 2) * Math.sqrt(3) };
}

export function normalVariable(rng, shape, deviation) {
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => rng.normal() * deviation);
  return tf.tidy(() => tf.variable(tf.tensor(values, shape)));
}

/** Windows of a text of tokens at seeded places: ids and the tokens behind them, [batch * context]. */
export function batches(tokens, { batch, context }, seed) {
  const rng = noise(seed);
  return () => {
    const starts = Array.from({ length: batch }, () => Math.floor(rng.next() * (tokens.length - context - 1)));
    const windows = (shift) => Int32Array.from(starts.flatMap((at) => Array.from(tokens.subarray(at + shift, at + shift + context))));
    return [windows(0), windows(1)];
  };
}

/** Steps of Adam on `variables`. Between steps the page or process may do other things. */
export async function train(config, model, variables, { tokens, steps, rate, seed }) {
  const next = batches(tokens, config, seed);
  const adam = tf.train.adam(rate, 0.9, 0.99);
  for (let step = 0; step < steps; step++) {
    tf.tidy(() => {
      const [ids, targets] = next();
      const { grads } = tf.variableGrads(() => crossEntropy(forward(config, ids, model), targets), variables);
      adam.applyGradients(grads);
    });
    await tf.nextFrame();
  }
  adam.dispose();
}

/** Loss over seeded windows of a text that training does not see. */
export function evaluate(config, model, tokens, count) {
  const next = batches(tokens, config, 99);
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const [ids, targets] = next();
    sum += tf.tidy(() => crossEntropy(forward(config, ids, model), targets).dataSync()[0]);
  }
  return sum / count;
}

/** Low-rank adapters x A B of matrices by name: A [k, rank] normal, B [rank, rows] zero, so that nothing changes at first. */
export function lora(matrices, rank, seed) {
  const rng = noise(seed);
  const pairs = new Map(
    matrices.map(({ name, rows, k }) => [name, [normalVariable(rng, [k, rank], 1 / Math.sqrt(k)), tf.variable(tf.zeros([rank, rows]))]]),
  );
  return {
    variables: [...pairs.values()].flat(),
    add(name, x, y) {
      const pair = pairs.get(name);
      return pair === undefined ? y : tf.add(y, tf.matMul(tf.matMul(x, pair[0]), pair[1]));
    },
  };
}
