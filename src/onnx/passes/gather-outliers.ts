// gather-outliers: COMET's fine-grained mixed precision (arXiv 2410.12168). Channels of activations with outliers are
// gathered at the front of what a product reads, and with them the columns of its weights, so that lowbit/runtime can
// keep 8 bits for their blocks and fewer for the others (`activations: "int4"`). The order is a Gather before the
// product; how many channels are wide is in the model's metadata (outliers.ts).
import { outlierSplit, permuteColumns, type ChannelSplit, type SplitOptions } from "../../quantize/mixed.ts";
import { tensor } from "../../tensor/tensor.ts";
import { addInitializer, freshName, insertBefore } from "../edit.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { opsetVersion } from "../graph/nodes.ts";
import { readMatrix, writeWeight, type ModelLayer } from "../primitives.ts";
import { recordOutliers } from "../outliers.ts";
import { isProduct } from "./norms.ts";
import type { Pass, PassContext, PassSettings } from "./types.ts";

interface Settings {
  readonly block: number;
  readonly threshold: number;
  readonly share: number | undefined;
}

function settingsOf({ block = 32, threshold = 4, share }: PassSettings): Settings {
  if (typeof block !== "number" || !Number.isSafeInteger(block) || block < 1)
    throw new RangeError(`pass gather-outliers, block: expected a positive integer, got ${JSON.stringify(block)}.`);
  if (!(typeof threshold === "number" && threshold >= 1))
    throw new RangeError(`pass gather-outliers, threshold: expected a number from 1 on, got ${JSON.stringify(threshold)}.`);
  if (share !== undefined && !(typeof share === "number" && share >= 0 && share <= 1))
    throw new RangeError(`pass gather-outliers, share: expected a number in 0..1, got ${JSON.stringify(share)}.`);
  return { block, threshold, share };
}

/** Products by the value that they read, where nothing else of their node depends on its order. */
function readersOf(context: PassContext): ModelLayer[][] {
  const groups = new Map<string, ModelLayer[]>();
  for (const layer of context.layers) {
    if (!isProduct(layer)) continue;
    const key = `${context.scopes.indexOf(layer.scope)} ${layer.k} ${layer.activation}`;
    groups.set(key, [...(groups.get(key) ?? []), layer]);
  }
  return [...groups.values()];
}

/** Puts the order before the products of one value. @returns the value that they read now */
function reorder(context: PassContext, products: readonly ModelLayer[], { order }: ChannelSplit): string {
  const { model } = context;
  const [{ scope, activation, k, node }] = products;
  const indices = makeTensor(model, `${activation}_order`, T.INT64, [k], new Uint8Array(BigInt64Array.from(order, BigInt).buffer));
  const ordered = freshName(model, `${activation}_ordered`);
  const input = [activation, addInitializer(scope, indices, model)];
  insertBefore(scope, node, [makeNode("Gather", input, [ordered], { name: ordered, attributes: [intAttribute("axis", -1)] })]);
  for (const layer of products) {
    const moved = permuteColumns(tensor(readMatrix(model, layer), [layer.rows, k]), order);
    writeWeight(model, layer, moved.data);
    layer.node.input[0] = ordered;
  }
  return ordered;
}

export const gatherOutliersPass: Pass = {
  name: "gather-outliers",
  options: ["block", "threshold", "share"],
  check: (settings) => void settingsOf(settings),
  async run(context, given) {
    const { block, threshold, share } = settingsOf(given);
    if (opsetVersion(context.model) < 11) {
      context.note(`expected opset 11 (Gather along the last axis), got ${opsetVersion(context.model)}; nothing changed`);
      return 0;
    }
    const groups = readersOf(context).filter(([{ k }]) => k % block === 0);
    const first = groups.map(([{ name }]) => name);
    const statistics = groups.length === 0 ? new Map<string, never>() : await context.statistics(first, { hessian: false });
    const wide = new Map<string, number>();
    let [blocks, wideBlocks] = [0, 0];
    for (const [i, products] of groups.entries()) {
      const own = statistics.get(first[i]);
      const { k } = products[0];
      if (own?.k !== k) continue;
      const options: SplitOptions = share === undefined ? { block, threshold } : { block, wideBlocks: Math.floor((share * k) / block) };
      const split = outlierSplit(own, options);
      blocks += k / block;
      wideBlocks += split.wideBlocks;
      if (split.wide === 0) continue;
      wide.set(split.wide === k ? products[0].activation : reorder(context, products, split), split.wide);
    }
    if (wide.size === 0) {
      context.note(`no product reads channels in blocks of ${block} with outliers among them; nothing changed`);
      return 0;
    }
    recordOutliers(context.model, wide);
    context.note(
      `outliers of ${wide.size} inputs of products gathered: ${wideBlocks} of ${blocks} blocks of ${block} channels keep 8 bits`,
    );
    return wide.size;
  },
};
