// loadTfjsModel: a model.json whose packed weights stay packed in memory.
import * as tf from "@tensorflow/tfjs-core";
import { isA } from "../../../formats/core/check.ts";
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import type { PackedOptions } from "../matmul.ts";
import type { StoredWeight } from "./manifest.ts";
import { sizeOf } from "./manifest.ts";
import { readTfjsModel } from "./read.ts";
import { standIn, takeProducts } from "./stand-in.ts";
import { packedWeight } from "./values.ts";

interface Packed {
  readonly name: string;
  readonly w: PackedTensor;
  readonly rows: 0 | 1;
}

/** What of GraphModel and LayersModel is used to put weights in. */
interface GraphLike {
  readonly executor?: { weightMap: Record<string, tf.Tensor[]> };
}
interface LayersLike {
  readonly weights?: readonly { readonly originalName?: string; readonly name: string; val: tf.Tensor }[];
}

/** The artifacts that tfjs reads: packed weights are zeros of their shape, one byte each, until they are put in. */
function artifacts(json: Readonly<Record<string, unknown>>, weights: readonly StoredWeight[]): tf.io.ModelArtifacts {
  const { weightsManifest: _, ...rest } = json;
  const parts = weights.map(({ entry, bytes }) => (entry.quantization?.dtype === "lowbit" ? new Uint8Array(sizeOf(entry.shape)) : bytes));
  const specs = weights.map(({ entry }) =>
    entry.quantization?.dtype === "lowbit" ? { ...entry, quantization: { dtype: "uint8", scale: 0, min: 0 } } : entry,
  );
  return {
    ...(rest as unknown as tf.io.ModelArtifacts),
    weightSpecs: specs as unknown as tf.io.WeightsManifestEntry[],
    // each weight a buffer of its own: tfjs reads a list of them as one
    weightData: parts.filter((part) => part.length > 0).map((part) => part.slice().buffer),
  };
}

function putIn(model: object, packed: readonly Packed[], options: PackedOptions): void {
  const { executor } = model as GraphLike;
  const { weights } = model as LayersLike;
  for (const { name, w, rows } of packed) {
    const missing = (): LowbitError =>
      new LowbitError(
        "E_CONTAINER",
        `weight ${name.slice(0, 60)}: expected it in the model, got none. Do topology and weights belong together?`,
      );
    if (executor !== undefined) {
      const old = executor.weightMap[name];
      if (!Object.hasOwn(executor.weightMap, name)) throw missing();
      tf.dispose(old);
      executor.weightMap = { ...executor.weightMap, [name]: [tf.keep(standIn(w, rows, options))] };
    } else {
      const variable = weights?.find((v) => (v.originalName ?? v.name) === name || v.name === name);
      if (variable === undefined) throw missing();
      variable.val.dispose();
      variable.val = tf.keep(standIn(w, rows, options));
    }
  }
}

/**
 * Loads a TensorFlow.js model by its own loader, and keeps the matrices that `quantizeTfjsModel` packed as they are in
 * memory: dense layers multiply by `packedMatMul`, embeddings decode the rows asked for. Any other operation on such a
 * weight decodes it once, and it is dense from then on. For inference: packed weights are constants. The backend must
 * be set before.
 * @param load `tf.loadGraphModel` or `tf.loadLayersModel`, or a function of a handler
 * @param source folder or path of model.json; in browsers its address
 * @throws LowbitError E_IO, E_CONTAINER; what the loader throws
 * @example
 * import { loadGraphModel } from "@tensorflow/tfjs-converter";
 * const model = await loadTfjsModel(loadGraphModel, "model_int4");
 */
export async function loadTfjsModel<Model extends object>(
  load: (handler: tf.io.IOHandler) => Promise<Model>,
  source: string,
  options: PackedOptions = {},
): Promise<Model> {
  if (typeof load !== "function")
    throw new TypeError(`loadTfjsModel load: expected tf.loadGraphModel or tf.loadLayersModel, got ${isA(load)}.`);
  if (typeof source !== "string") throw new TypeError(`loadTfjsModel source: expected the path of a folder, got ${isA(source)}.`);
  const { json, groups } = await readTfjsModel(source);
  const weights = groups.flat();
  const packed = weights
    .filter(({ entry }) => entry.quantization?.dtype === "lowbit")
    .map((weight) => ({ name: weight.entry.name, w: packedWeight(weight), rows: weight.entry.quantization!.rows as 0 | 1 }));
  const model = await load({ load: () => Promise.resolve(artifacts(json, weights)) });
  if (packed.length > 0) {
    takeProducts();
    putIn(model, packed, options);
  }
  return model;
}
