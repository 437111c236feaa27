// A decoder of the Llama kind in tfjs: RMSNorm, rotary positions, causal attention, SwiGLU. Where its weights lie is
// the caller's: `embed(ids)` and `linear(name, x)`.
import * as tf from "@tensorflow/tfjs-core";

/** The matrices of a decoder [outputs, inputs], by name. Gains of norms are part of the matrices behind them. */
export function matricesOf({ width, hidden, layers, vocabulary }) {
  const block = [
    ["q_proj", width, width],
    ["k_proj", width, width],
    ["v_proj", width, width],
    ["o_proj", width, width],
    ["gate_proj", hidden, width],
    ["up_proj", hidden, width],
    ["down_proj", width, hidden],
  ];
  const blocks = Array.from({ length: layers }, (_, i) => block.map(([name, rows, k]) => ({ name: `layers.${i}.${name}`, rows, k })));
  return [...blocks.flat(), { name: "logits", rows: vocabulary, k: width }];
}

const rmsNorm = (x) => tf.div(x, tf.sqrt(tf.add(tf.mean(tf.square(x), -1, true), 1e-5)));
const silu = (x) => tf.mul(x, tf.sigmoid(x));

/** cos and sin [context, size], the angles of both halves equal, and the causal mask [context, context]. */
function tables(context, size) {
  const angles = Float32Array.from({ length: context * size }, (_, i) => {
    const pair = (i % size) % (size / 2);
    return Math.floor(i / size) / 10000 ** ((2 * pair) / size);
  });
  const mask = Float32Array.from({ length: context * context }, (_, i) => (i % context > Math.floor(i / context) ? -1e9 : 0));
  return {
    cos: tf.tensor2d(angles.map(Math.cos), [context, size]),
    sin: tf.tensor2d(angles.map(Math.sin), [context, size]),
    mask: tf.tensor2d(mask, [context, context]),
  };
}

function rotate(x, { cos, sin }) {
  const [a, b] = tf.split(x, 2, -1);
  return tf.add(tf.mul(x, cos), tf.mul(tf.concat([tf.neg(b), a], -1), sin));
}

/** Logits [batch * context, vocabulary] of ids [batch * context]. To be called inside tf.tidy. */
export function forward({ width, heads, layers, context }, ids, { embed, linear }) {
  const batch = ids.length / context;
  const size = width / heads;
  const table = tables(context, size);
  const split = (x) => tf.transpose(tf.reshape(x, [batch, context, heads, size]), [0, 2, 1, 3]);
  let x = embed(ids);
  for (let i = 0; i < layers; i++) {
    const named = (name, input) => linear(`layers.${i}.${name}`, input);
    const normed = rmsNorm(x);
    const q = rotate(split(named("q_proj", normed)), table);
    const k = rotate(split(named("k_proj", normed)), table);
    const v = split(named("v_proj", normed));
    const scores = tf.softmax(tf.add(tf.mul(tf.matMul(q, k, false, true), 1 / Math.sqrt(size)), table.mask));
    const mixed = tf.reshape(tf.transpose(tf.matMul(scores, v), [0, 2, 1, 3]), [batch * context, width]);
    x = tf.add(x, named("o_proj", mixed));
    const inner = rmsNorm(x);
    x = tf.add(x, named("down_proj", tf.mul(silu(named("gate_proj", inner)), named("up_proj", inner))));
  }
  return linear("logits", rmsNorm(x));
}

/** Mean negative log likelihood of the next tokens. */
export function crossEntropy(logits, targets) {
  const wanted = tf.oneHot(tf.tensor1d(targets, "int32"), logits.shape[1]);
  return tf.neg(tf.mean(tf.sum(tf.mul(tf.logSoftmax(logits), wanted), -1)));
}
