// fold-norm: gains and biases of normalizations move into the products that read them; the norm keeps ones and zeros,
// so that runtimes still recognise it. Sources: SliceGPT (arXiv 2401.15024), QuaRot (2404.00456). RMSNorm and
// LayerNorm, as operators and spelled out.
import { foldNorm } from "../../quantize/equalize.ts";
import { writeConstant } from "../edit.ts";
import { readFloats } from "../file/values.ts";
import { nodeName, resolveConstant } from "../graph/graph.ts";
import { readBias, readMatrix, takesBias, writeBias, writeWeight, type ModelLayer } from "../primitives.ts";
import { destinations, findNorms, type Norm, type VectorInput } from "./norms.ts";
import type { Pass, PassContext } from "./types.ts";

/** Values of a gain or bias. */
export const vectorOf = (context: PassContext, scope: Norm["scope"], vector: VectorInput): Float64Array<ArrayBuffer> =>
  Float64Array.from(readFloats(context.model, resolveConstant(scope, vector.node.input[vector.input])!.tensor));

/** A layer with gain and bias of a norm folded in. */
export function foldInto(context: PassContext, layer: ModelLayer, gain: Float64Array, bias: Float64Array | null): void {
  const { model } = context;
  const { rows, k } = layer;
  const folded = foldNorm({ weight: readMatrix(model, layer), rows, k, bias: readBias(model, layer) }, gain, bias);
  writeWeight(model, layer, folded.weight);
  if (bias !== null) writeBias(model, layer, folded.bias!);
}

/** Why the gain of a norm stays where it is; undefined: its products can take it over. */
export function foldObstacle(context: PassContext, norm: Norm): string | undefined {
  if (norm.gain === null) return "it has no gain";
  const { products, others } = destinations(context, norm.scope, norm.output, norm.size);
  const [other] = others;
  if (other !== undefined)
    return other.node === null ? "its output is an output of the graph" : `${nodeName(other.node)} (${other.node.opType}) reads it too`;
  if (products.length === 0) return "nothing reads it";
  const bias = norm.bias === null ? [] : vectorOf(context, norm.scope, norm.bias);
  const unable = bias.some((value) => value !== 0) ? products.find((layer) => !takesBias(layer)) : undefined;
  return unable === undefined ? undefined : `${unable.name} takes no bias`;
}

/** Folds one norm whose products can take it over. Returns whether there was anything to fold. */
function fold(context: PassContext, norm: Norm): boolean {
  const { scope, size } = norm;
  const gain = vectorOf(context, scope, norm.gain!);
  const bias = norm.bias === null ? null : vectorOf(context, scope, norm.bias);
  const shifted = bias !== null && bias.some((value) => value !== 0);
  if (gain.every((value) => value === 1) && !shifted) return false;
  for (const layer of destinations(context, scope, norm.output, size).products) foldInto(context, layer, gain, shifted ? bias : null);
  writeConstant(context.model, scope, norm.gain!.node, norm.gain!.input, new Float32Array(size).fill(1));
  if (shifted) writeConstant(context.model, scope, norm.bias!.node, norm.bias!.input, new Float32Array(size));
  return true;
}

export const foldNormPass: Pass = {
  name: "fold-norm",
  options: [],
  run(context) {
    const norms = findNorms(context);
    if (norms.length === 0) {
      context.note("no LayerNorm or RMSNorm over the last axis was found; nothing changed");
      return 0;
    }
    let folded = 0;
    const kept: string[] = [];
    for (const norm of norms) {
      const obstacle = foldObstacle(context, norm);
      if (obstacle !== undefined) kept.push(`${norm.output}: ${obstacle}`);
      else if (fold(context, norm)) {
        folded++;
        // A MatMul may have got an Add for its bias.
        context.refresh();
      } else kept.push(`${norm.output}: folded already`);
    }
    context.note(`${folded} of ${norms.length} norms folded into the products behind them`);
    for (const line of kept.slice(0, 5)) context.note(`kept ${line}`);
    if (kept.length > 5) context.note(`kept ${kept.length - 5} more`);
    return folded;
  },
};
