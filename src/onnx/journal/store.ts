// Where the packed weights of a run are between their making and their writing: in memory, or in a log on disk from
// which a later run goes on (a journal) or another machine's run takes them (a shard). A weight is known by its layer
// and by the content that it was made of.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { fromBytes, toBytes } from "../../tensor/container.ts";
import { nodeCrypto } from "../../files/calls.ts";
import type { OnnxModel } from "../file/model.ts";
import { forValues } from "../bands.ts";
import type { Layer } from "../layers.ts";
import type { LayerReport } from "../options.ts";
import type { Log, LogRecord } from "./log.ts";

/** A weight quantized: [rows, k], k contracted (Conv: [out channels, the rest]). */
export interface DecidedWeight {
  readonly packed: PackedTensor;
  /** Sums of w^2 and of (w - w')^2. */
  readonly signal: number;
  readonly noise: number;
  /**
   * 10 log10 of signal over error of the layer's output, on batches held out (without any, on all); absent without
   * data.
   */
  readonly outputSqnr?: number;
  /** Sequential: what to add to the bias of each output, so that its mean is that of the float model. */
  readonly biasShift?: Float64Array<ArrayBuffer>;
}

export interface WeightStore {
  /** Keep also what is only rounded (a journal, a shard), or just what an algorithm made. */
  readonly keepsAll: boolean;
  /** The weights are all that is made: a shard. */
  readonly partial: boolean;
  /** Told once, before the first weight, which layers will be asked for and which of them belong together. */
  begin(model: OnnxModel, layers: readonly Layer[], unitOf: (layer: Layer) => unknown): void;
  /** Does this run make the layer? Not those of other shards. */
  takes(layer: Layer): boolean;
  has(layer: Layer): boolean;
  /** @throws LowbitError E_EXISTS, E_CONTAINER where it was made of another weight */
  get(layer: Layer): DecidedWeight | undefined;
  put(layer: Layer, weight: DecidedWeight): void;
}

/** Weights in memory, as long as the run lasts. */
export function memoryStore(): WeightStore {
  const weights = new Map<Layer, DecidedWeight>();
  return {
    keepsAll: false,
    partial: false,
    begin: () => undefined,
    takes: () => true,
    has: (layer) => weights.has(layer),
    get: (layer) => weights.get(layer),
    put: (layer, weight) => void weights.set(layer, weight),
  };
}

/** Thrown by a run that makes a shard once its weights are made: nothing is written into the model. */
export class ShardMade extends Error {
  readonly layers: readonly LayerReport[];
  constructor(layers: readonly LayerReport[]) {
    super("shard made");
    this.layers = layers;
  }
}

export interface LogStoreOptions {
  /** Default true. */
  readonly keepsAll?: boolean;
  /** Read alone: a weight that is missing is an error. */
  readonly complete?: boolean;
  /** This run's share of the units, of how many; default all. */
  readonly shard?: { readonly index: number; readonly count: number };
  /** What to do where a weight was made of other content. */
  readonly remedy: string;
}

/** SHA-256 of a weight's values. */
function contentOf(model: OnnxModel, layer: Layer): string {
  const hash = nodeCrypto().createHash("sha256");
  forValues(model, layer.weight!, ({ buffer, byteOffset, byteLength }) => hash.update(new Uint8Array(buffer, byteOffset, byteLength)));
  return hash.digest("hex");
}

/** Weights in logs: found in any, added to the first. */
export function logStore(logs: readonly Log[], options: LogStoreOptions): WeightStore & { readonly taken: () => number } {
  const { shard, complete = false, remedy } = options;
  const known = new Map<string, { log: Log; record: LogRecord }>();
  for (const log of logs)
    for (const record of log.records) if (record.meta.kind === "weight") known.set(String(record.meta.layer), { log, record });
  const ids = new Map<Layer, string>();
  let own: ReadonlySet<Layer> | undefined;
  let at: OnnxModel;
  const before = new Set(known.keys());
  const taken = new Set<string>();
  const idOf = (layer: Layer): string => ids.get(layer)!;
  return {
    keepsAll: options.keepsAll ?? true,
    partial: shard !== undefined,
    taken: () => taken.size,
    begin(model, layers, unitOf) {
      at = model;
      // a name may stand for several layers
      layers.forEach((layer, i) => ids.set(layer, `${i} ${layer.name}`));
      if (shard !== undefined) own = new Set(balance(layers, unitOf, shard.count)[shard.index - 1]);
    },
    takes: (layer) => own?.has(layer) ?? true,
    has: (layer) => known.has(idOf(layer)),
    get(layer) {
      const found = known.get(idOf(layer));
      if (found === undefined) {
        if (!complete) return undefined;
        throw new LowbitError("E_CONTAINER", `layer ${layer.name}: expected its weight in a shard, got none. ${remedy}`);
      }
      const { log, record } = found;
      if (record.meta.content !== contentOf(at, layer))
        throw new LowbitError(
          complete ? "E_CONTAINER" : "E_EXISTS",
          `${log.path}: expected the weights of this model, got others for layer ${layer.name}. ${remedy}`,
        );
      if (before.has(idOf(layer))) taken.add(idOf(layer));
      return decode(log.data(record));
    },
    put(layer, weight) {
      const [log] = logs;
      const record = log.add({ kind: "weight", layer: idOf(layer), content: contentOf(at, layer) }, encode(weight));
      known.set(idOf(layer), { log, record });
    },
  };
}

/** Figures (NaN: absent), the length of the shift, the shift, the packed tensor as safetensors. */
function encode({ packed, signal, noise, outputSqnr, biasShift }: DecidedWeight): Uint8Array[] {
  const figures = Float64Array.of(signal, noise, outputSqnr ?? NaN, biasShift?.length ?? -1, ...(biasShift ?? []));
  return [new Uint8Array(figures.buffer), toBytes(packed)];
}

function decode(bytes: Uint8Array<ArrayBuffer>): DecidedWeight {
  const [signal, noise, outputSqnr, length] = new Float64Array(bytes.buffer, bytes.byteOffset, 4);
  const shift = length < 0 ? undefined : new Float64Array(bytes.buffer, bytes.byteOffset + 32, length).slice();
  return {
    packed: fromBytes(bytes.subarray(32 + 8 * Math.max(0, length))),
    signal,
    noise,
    ...(Number.isNaN(outputSqnr) ? {} : { outputSqnr }),
    ...(shift === undefined ? {} : { biasShift: shift }),
  };
}

/**
 * Divides layers among shards by bytes: the largest unit first, each to the shard that has least; the same everywhere.
 * Layers of one unit (of one weight, or of one input that is calibrated) stay together.
 */
export function balance(layers: readonly Layer[], unitOf: (layer: Layer) => unknown, count: number): Layer[][] {
  const units = new Map<unknown, { layers: Layer[]; bytes: number; at: number }>();
  layers.forEach((layer, at) => {
    const unit = units.get(unitOf(layer)) ?? { layers: [], bytes: 0, at };
    units.set(unitOf(layer), unit);
    unit.layers.push(layer);
    unit.bytes += layer.bytes;
  });
  const shards = Array.from({ length: count }, () => ({ layers: [] as Layer[], bytes: 0 }));
  for (const unit of [...units.values()].sort((a, b) => b.bytes - a.bytes || a.at - b.at)) {
    const least = shards.reduce((best, shard) => (shard.bytes < best.bytes ? shard : best));
    least.layers.push(...unit.layers);
    least.bytes += unit.bytes;
  }
  return shards.map((shard) => shard.layers);
}
