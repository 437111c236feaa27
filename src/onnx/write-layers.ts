// The loop that writes a model's layers: each weight, as it is made, into its target's nodes, and what a report says of
// it. What layers become, and how their weights are made: convert.ts.
import type { PackedTensor } from "../../formats/core/types.ts";
import { checkAborted, pause } from "./file/files.ts";
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import { isExperts } from "./calibrate/experts.ts";
import { ShardMade, type DecidedWeight, type WeightStore } from "./journal/store.ts";
import type { Layer } from "./layers.ts";
import type { LayerReport, QuantizeOptions } from "./options.ts";
import type { Target, TargetContext } from "./targets/target.ts";
import { decibels } from "./weights.ts";

export interface Writing {
  readonly context: TargetContext;
  /** Bytes of all layers that are written, for progress. */
  readonly total: number;
  readonly store: WeightStore;
  /** Why a layer stays; undefined: it is written. */
  readonly reasonOf: (layer: Layer) => string | undefined;
  readonly targetOf: (layer: Layer) => Target;
  readonly weightOf: (layer: Layer) => Promise<DecidedWeight>;
}

export interface WrittenLayers {
  readonly reports: LayerReport[];
  /** Nodes by those that take their place. */
  readonly replaced: Map<NodeProto, NodeProto[]>;
  /** Names of values that may have lost their last reader. */
  readonly unused: Set<string>;
}

/** What a report says of any layer. */
export const baseReport = ({ name, node, weight, shape, bytes }: Layer) => ({
  name,
  opType: node.opType,
  weight: weight?.name ?? "",
  shape,
  bytesBefore: bytes,
});

/** What it says of one that stays. */
export const leftAlone = (layer: Layer, reason: string): LayerReport => ({
  ...baseReport(layer),
  format: null,
  bytesAfter: layer.bytes,
  sqnrDb: null,
  reason,
});

/** @throws ShardMade, once the weights of a shard are made; LowbitError E_ABORTED */
export async function writeLayers(found: readonly Layer[], writing: Writing): Promise<WrittenLayers> {
  const { context, store, reasonOf, targetOf, weightOf } = writing;
  const progress = startProgress(writing.total, context.options);
  const replaced = new Map<NodeProto, NodeProto[]>();
  const unused = new Set<string>();
  const owners = new Map<string, string>();
  const reports: LayerReport[] = [];
  for (const layer of found) {
    const reason = reasonOf(layer);
    if (reason !== undefined) {
      reports.push(leftAlone(layer, reason));
      continue;
    }
    const base = baseReport(layer);
    if (!store.takes(layer)) continue;
    await progress(layer);
    const target = targetOf(layer);
    const measured = await weightOf(layer);
    noteUnvarying(measured.packed, layer, context);
    if (store.partial) {
      reports.push({ ...base, ...reportOf(measured, target.name), bytesAfter: packedBytes(measured.packed) });
      continue;
    }
    const before = [...layer.node.input];
    const written = target.write(layer, measured.packed, context);
    if (written.nodes !== null) replaced.set(layer.node, written.nodes);
    for (const name of before) unused.add(name);
    unused.add(layer.weight!.name);
    const owner = owners.get(written.codes);
    if (owner === undefined) owners.set(written.codes, layer.name);
    reports.push({
      ...base,
      ...reportOf(measured, target.name),
      bytesAfter: written.bytes,
      ...(owner === undefined ? {} : { sharedWith: owner }),
    });
  }
  if (store.partial) throw new ShardMade(reports);
  return { reports, replaced, unused };
}

/** Where calibration had nothing to say of a weight, or of some of its groups (layer-weight.ts). */
function noteUnvarying({ recipe }: PackedTensor, layer: Layer, { notes }: TargetContext): void {
  const some = recipe.unvarying as { readonly groups: number; readonly of: number } | undefined;
  if (some === undefined) return;
  const which = some.of > 1 ? ` of ${some.groups} of ${some.of} groups` : "";
  const why = isExperts(layer) ? "the router sends hardly any token there" : "the inputs are the same in all calibration vectors";
  notes.push(`${layer.name}: scales${which} searched without data: ${why}`);
}

/** What a report says of a weight, wherever it is written. */
function reportOf({ packed, signal, noise, outputSqnr }: DecidedWeight, target: string) {
  return {
    format: packed.format.name,
    target,
    algorithm: String(packed.recipe.algorithm),
    sqnrDb: decibels(signal, noise),
    ...(outputSqnr === undefined ? {} : { outputSqnrDb: outputSqnr }),
  };
}

/** Bytes of codes, scales and zero points. */
const packedBytes = ({ codes, scales, superScales, offsets }: PackedTensor): number =>
  [codes, scales, superScales, offsets].reduce((sum, plane) => sum + (plane?.length ?? 0), 0);

/** To be called before each layer. */
function startProgress(total: number, options: QuantizeOptions): (layer: Layer) => Promise<void> {
  let done = 0;
  let seen = 0;
  let last = 0;
  return async (layer) => {
    done += last;
    last = layer.bytes;
    options.onProgress?.({ done, total, layer: layer.name });
    if (seen++ === 0 || layer.bytes > 1 << 16) await pause();
    checkAborted(options.signal);
  };
}
