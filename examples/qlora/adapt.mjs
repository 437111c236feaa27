// QLoRA: the same low-rank adapters over float32 weights and over the same weights in NF4 with double quantization
// (Dettmers et al., arXiv 2305.14314), in Node and in browsers.
import * as tf from "@tensorflow/tfjs-core";
import { gatherRows, quantize, tensor } from "lowbit";
import { format } from "lowbit/formats";
import { packedMatMul } from "lowbit/tfjs";
import { matricesOf } from "./llama.mjs";
import { evaluate, lora, noise, normalVariable, train } from "./train.mjs";

const bytesOf = (w) => [w.codes, w.scales, w.superScales, w.offsets].reduce((n, part) => n + (part?.byteLength ?? 0), 0);

/**
 * A base model from nothing: trained on `tokens` until it writes like them.
 * @returns weights by name (`embedding` and those of matricesOf), plain arrays
 */
export async function trainBase(config, tokens, steps) {
  const rng = noise(1);
  const variables = new Map([["embedding", normalVariable(rng, [config.vocabulary, config.width], 1)]]);
  for (const { name, rows, k } of matricesOf(config)) variables.set(name, normalVariable(rng, [rows, k], 0.7 / Math.sqrt(k)));
  const model = {
    embed: (ids) => tf.matMul(tf.oneHot(tf.tensor1d(ids, "int32"), config.vocabulary), variables.get("embedding")),
    linear: (name, x) => tf.matMul(x, variables.get(name), false, true),
  };
  await train(config, model, [...variables.values()], { tokens, steps, rate: 3e-3, seed: 2 });
  const weights = new Map([...variables].map(([name, v]) => [name, v.dataSync().slice()]));
  tf.dispose([...variables.values()]);
  return weights;
}

/** Frozen weights in float32: tensors of the backend. */
function float32Weights(config, weights) {
  const tensors = new Map(matricesOf(config).map(({ name, rows, k }) => [name, tf.tensor2d(weights.get(name), [rows, k])]));
  const table = tf.tensor2d(weights.get("embedding"), [config.vocabulary, config.width]);
  return {
    embed: (ids) => tf.gather(table, tf.tensor1d(ids, "int32")),
    linear: (name, x) => tf.matMul(x, tensors.get(name), false, true),
    bytes: [...weights.values()].reduce((n, w) => n + w.byteLength, 0),
    dispose: () => tf.dispose([table, ...tensors.values()]),
  };
}

/** Frozen weights in NF4. `prepared: false`: nothing lies beside the codes, each product decodes panel after panel. */
function nf4Weights(config, weights) {
  const nf4 = format("nf4_b64_dq");
  const packed = new Map(matricesOf(config).map(({ name, rows, k }) => [name, quantize(tensor(weights.get(name), [rows, k]), nf4)]));
  const table = quantize(tensor(weights.get("embedding"), [config.vocabulary, config.width]), nf4);
  return {
    embed: (ids) => tf.tensor2d(gatherRows(table, ids).data, [ids.length, config.width]),
    linear: (name, x) => packedMatMul(x, packed.get(name), { prepared: false }),
    bytes: [table, ...packed.values()].reduce((n, w) => n + bytesOf(w), 0),
    dispose() {},
  };
}

/**
 * Both adaptations of a base model to another text: loss before and after on its last tenth, and what the frozen
 * weights take. `config`: width, hidden, heads, layers, vocabulary, context, batch, rank; `windows`: batches that a
 * loss is the mean of.
 */
export async function adapt({ config, weights, tokens, steps, rate = 3e-3, windows = 8, log = () => {} }) {
  const cut = Math.floor(tokens.length * 0.9);
  const [seen, unseen] = [tokens.subarray(0, cut), tokens.subarray(cut)];
  const result = {};
  for (const [kind, freeze] of Object.entries({ float32: float32Weights, nf4: nf4Weights })) {
    const { embed, linear, bytes, dispose } = freeze(config, weights);
    const adapters = lora(
      matricesOf(config).filter(({ name }) => name !== "logits"),
      config.rank,
      7,
    );
    const model = { embed, linear: (name, x) => adapters.add(name, x, linear(name, x)) };
    const before = evaluate(config, model, unseen, windows);
    await train(config, model, adapters.variables, { tokens: seen, steps, rate, seed: 4 });
    const after = evaluate(config, model, unseen, windows);
    const tensorBytes = tf.memory().numBytes;
    result[kind] = { before, after, bytes, tensorBytes };
    log(
      `${kind.padEnd(8)} loss ${before.toFixed(3)} -> ${after.toFixed(3)}, weights ${(bytes / 1024).toFixed(0)} KiB, ` +
        `tensors of the backend ${(tensorBytes / 1024).toFixed(0)} KiB`,
    );
    dispose();
    tf.dispose(adapters.variables);
  }
  const { float32, nf4 } = result;
  log(`nf4 / float32: loss ${(nf4.after / float32.after).toFixed(4)}, weights ${(nf4.bytes / float32.bytes).toFixed(3)}`);
  return result;
}

/** The example of both places: a small model of letters, trained on one text, adapted to another. */
export async function letters({ texts, baseSteps = 120, steps = 40, windows = 8, log = () => {} }) {
  const codes = new Map([...new Set(texts.join(""))].map((letter, i) => [letter, i]));
  const [known, other] = texts.map((text) => Int32Array.from(text, (letter) => codes.get(letter)));
  const config = { width: 128, hidden: 384, heads: 4, layers: 2, vocabulary: codes.size, context: 32, batch: 4, rank: 4 };
  const weights = await trainBase(config, known, baseSteps);
  log(`base     ${baseSteps} steps from nothing, ${codes.size} letters, adapters of rank ${config.rank}, ${steps} steps`);
  return adapt({ config, weights, tokens: other, steps, windows, log });
}
