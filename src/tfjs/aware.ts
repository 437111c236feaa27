// Quantization-aware training of models of the Layers API, structurally: @tensorflow/tfjs-layers is not imported.
import * as tf from "@tensorflow/tfjs-core";
import type { Format } from "../../formats/core/types.ts";
import { isA } from "../../formats/core/check.ts";
import { fakeQuantize, movingRange } from "./fake.ts";

/** Formats of weights and activations in training. */
export interface QuantizeAwareOptions {
  /** What kernels are quantized to: rows of a format are output channels. `format("int8_row")`. */
  readonly weights: Format;
  /**
   * What the inputs of those layers are quantized to, by the moving range of training batches: an integer format with
   * one scale a tensor, `format("uint8_tensor_zp")`. Default: left as they are.
   */
  readonly activations?: Format;
  /** Of the moving range; default 0.99. */
  readonly decay?: number;
  /** Layers that stay as they are, by name. */
  readonly skip?: readonly string[];
}

/** What of LayerVariable and Layer is used. */
interface VariableLike {
  read(): tf.Tensor;
}
interface LayerLike {
  readonly name: string;
  readonly kernel?: VariableLike;
  readonly depthwiseKernel?: VariableLike;
  readonly layers?: readonly LayerLike[];
  readonly layer?: LayerLike;
  call(inputs: tf.Tensor | tf.Tensor[], options: { readonly training?: boolean }): tf.Tensor | tf.Tensor[];
}

/** Layers that train in low precision, until `remove`. */
export interface QuantizeAware {
  /** Names of the layers whose kernels are quantized. */
  readonly layers: readonly string[];
  /** Makes the model what it was; its weights keep what training made of them. */
  remove(): void;
}

function* leaves(layers: readonly LayerLike[]): Generator<LayerLike> {
  const open = [...layers].reverse();
  for (let layer = open.pop(); layer !== undefined; layer = open.pop()) {
    const inner = layer.layers ?? (layer.layer === undefined ? undefined : [layer.layer]);
    if (inner === undefined) yield layer;
    else open.push(...[...inner].reverse());
  }
}

/** A kernel with its output channels last, quantized; a depthwise one has channels of its last two axes. */
function quantizedKernel(kernel: tf.Tensor, format: Format, depthwise: boolean): tf.Tensor {
  const { shape, size } = kernel;
  const channels = depthwise ? shape.at(-1)! * shape.at(-2)! : shape.at(-1)!;
  return tf.reshape(fakeQuantize(tf.reshape(kernel, [size / channels, channels]), format, { outputs: 1 }), shape);
}

/**
 * Makes a model of the Layers API compute with quantized kernels, and inputs, of its dense and convolution layers, in
 * `fit` and in `predict`. Gradients pass straight through to the float32 weights, which the optimizer steps and `save`
 * writes. Recurrent cells and embeddings stay as they are.
 * @throws TypeError for what is no such model
 * @example
 * import { layers, sequential } from "@tensorflow/tfjs-layers";
 * const net = sequential({ layers: [layers.dense({ units: 4, inputShape: [8] })] });
 * const aware = quantizeAware(net, { weights: format("int8_row"), activations: format("uint8_tensor_zp") });
 */
export function quantizeAware(model: object, options: QuantizeAwareOptions): QuantizeAware {
  const { weights, activations, decay, skip = [] } = options;
  const { layers } = model as { readonly layers?: readonly LayerLike[] };
  if (!Array.isArray(layers)) throw new TypeError(`quantizeAware model: expected a model with layers, got ${isA(model)}.`);
  const changed: { layer: LayerLike; call: LayerLike["call"] }[] = [];
  for (const layer of leaves(layers)) {
    const which = (["kernel", "depthwiseKernel"] as const).find((name) => layer[name] !== undefined && layer[name] !== null);
    if (which === undefined || skip.includes(layer.name) || changed.some((c) => c.layer === layer)) continue;
    const own = layer.call;
    const range = activations === undefined ? undefined : movingRange(decay === undefined ? {} : { decay });
    const input = (x: tf.Tensor, training: boolean): tf.Tensor => {
      if (activations === undefined || range === undefined) return x;
      const seen = training || range.current === undefined ? range.observe(x) : range.current;
      return fakeQuantize(x, activations, { range: seen });
    };
    layer.call = (inputs, given = {}) => {
      const variable = layer[which]!;
      const training = given.training === true;
      // only while the layer computes: the optimizer must read the variable itself
      const read = variable.read;
      variable.read = () => quantizedKernel(read.call(variable), weights, which === "depthwiseKernel");
      try {
        return own.call(layer, Array.isArray(inputs) ? inputs.map((x) => input(x, training)) : input(inputs, training), given);
      } finally {
        variable.read = read;
      }
    };
    changed.push({ layer, call: own });
  }
  return {
    layers: changed.map(({ layer }) => layer.name),
    remove: () => {
      for (const { layer, call } of changed) layer.call = call;
    },
  };
}
