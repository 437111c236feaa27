// Statistics of the inputs of layers, by running the model on calibration data: Hessians, channel sums and ranges. Sums
// only: activations are looked at batch by batch and dropped. Layers go in groups whose sums fit a stated bound, front
// to back; a part of the batches is held out, for choices and figures.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import { driftStatistics, type DriftAccumulator, type DriftStatistics } from "../../quantize/refit.ts";
import type { AlgebraOptions } from "../../quantize/simd.ts";
import { layerStatistics, type LayerStatistics, type StatisticsAccumulator } from "../../quantize/statistics.ts";
import { observer, type Observer, type ObserverOptions } from "../../quantize/observers.ts";
import { payloadBytes } from "../file/encode.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Layer } from "../layers.ts";
import type { Feeds } from "../verify/feeds.ts";
import { floatValues } from "../session.ts";
import { openProducts, type Products } from "./products.ts";
import { isMainValue, modelRunner, type BatchValues, type Runner } from "./taps.ts";
import { withExperts } from "./experts.ts";
import { activationOf, sourcesOf, vectorView, type VectorView } from "./vectors.ts";

/** How much of the data counts, and what running the model may cost. */
export interface CollectOptions extends AlgebraOptions {
  /** Vectors of a layer that count, at most, spread evenly over the batches; default 65536. */
  readonly maxTokens?: number;
  /** Every n-th vector only; default 1. */
  readonly every?: number;
  /** Share of the batches that is held out; default 1 / 8, none of a single batch. */
  readonly holdOut?: number;
  /**
   * Bytes for Hessians at a time; more layers go in further passes. Default 2 GiB; for models above 32 MiB 128 MiB,
   * or what the largest layer needs.
   */
  readonly memory?: number;
  /** Collect sum x x^T (8 k^2 bytes a layer); default true. */
  readonly hessian?: boolean;
  /** Collect ranges of the inputs with this observer. */
  readonly observer?: ObserverOptions;
  /** Threads of the runtime inside an operator. */
  readonly threads?: number;
  /**
   * The batches are some of a larger number: how many that is, and which one a batch is. Held-out batches and quotas
   * follow from these.
   */
  readonly share?: { readonly total: number; readonly index: (batch: number) => number };
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: {
    readonly stage: string;
    readonly done: number;
    readonly total: number;
    readonly layer?: string;
  }) => void;
}

/** What calibration knows of the input of some layers. */
export interface InputStatistics {
  /** The value that they multiply. */
  readonly input: string;
  /** One for each group of the layer (grouped and depthwise convolutions); batches held out are not in it. */
  readonly statistics: readonly LayerStatistics[];
  /** The same over the batches held out; null where there are none. */
  readonly heldOut: readonly LayerStatistics[] | null;
  /** Least and largest value of the input, over all batches. */
  readonly range: { readonly min: number; readonly max: number };
  readonly observer: Observer | null;
  /** Against the inputs of the float model, where a runner of it was given. */
  readonly drift: readonly DriftStatistics[] | null;
  /** The same over the batches held out. */
  readonly heldOutDrift: readonly DriftStatistics[] | null;
}

/** Layers that read the same vectors: they share statistics. */
export interface InputGroup {
  readonly input: string;
  readonly view: VectorView;
  readonly layers: readonly Layer[];
}

const MEMORY = 2 ** 31;
const MAX_TOKENS = 65536;

/**
 * Groups of layers by what they read, in the order of the graph, and those that cannot be calibrated, with the reason.
 */
export function inputGroups(model: OnnxModel, layers: readonly Layer[]): { groups: InputGroup[]; refused: Map<Layer, string> } {
  const groups = new Map<string, { input: string; view: VectorView; layers: Layer[] }>();
  const refused = new Map<Layer, string>();
  const position = new Map(model.proto.graph!.node.map((node, i) => [node, i]));
  for (const layer of layers) {
    const input = activationOf(layer);
    const view = vectorView(layer);
    if (typeof view === "string") refused.set(layer, view);
    else if (layer.scope.parent !== null)
      refused.set(layer, `it lies in ${layer.scope.path}: values inside If, Loop and Scan cannot be looked at`);
    else if (!sourcesOf(layer).every((name) => isMainValue(model, name)))
      refused.set(layer, `its input ${JSON.stringify(input)} is a constant`);
    else {
      const key = JSON.stringify([input, view.key, view.k]);
      const group = groups.get(key) ?? { input, view, layers: [] };
      groups.set(key, group);
      group.layers.push(layer);
    }
  }
  const first = (group: InputGroup): number => Math.min(...group.layers.map((layer) => position.get(layer.node) ?? 0));
  return { groups: [...groups.values()].sort((a, b) => first(a) - first(b)), refused };
}

/** Bytes of the sums of a group. */
const groupBytes = ({ view }: InputGroup, copies: number): number => 8 * view.k * view.k * view.groups * copies;

/**
 * A model above `from` is not held in memory: it is run in stretches of `bytes` of weights (the runtime holds up to
 * twice that while it opens one), and its Hessians have a bound. Tests lower them.
 */
export const STRETCH = { from: 2 ** 25, bytes: 2 ** 24, hessians: 2 ** 27 };

/**
 * Bytes for Hessians where nobody says: less for large models, but always room for the largest one alone (up to 2 GiB).
 */
function hessianMemory(model: OnnxModel, groups: readonly InputGroup[], copies: number): number {
  if (payloadBytes(model) <= STRETCH.from) return MEMORY;
  return Math.min(
    MEMORY,
    groups.reduce((most, group) => Math.max(most, groupBytes(group, copies)), STRETCH.hessians),
  );
}

/** Bytes of the weights of a group. */
const weightBytes = ({ layers }: InputGroup): number => layers.reduce((sum, { bytes }) => sum + bytes, 0);

/**
 * Cuts a list of groups into passes whose sums fit the bound.
 * @param stretch bytes of weights in a pass, unless one group alone has more
 * @throws LowbitError E_CALIBRATION for a layer that does not fit alone, by name
 */
export function passesOf(groups: readonly InputGroup[], memory: number, copies: number, stretch = Infinity): InputGroup[][] {
  const passes: InputGroup[][] = [];
  let used = 0;
  let run = 0;
  for (const group of groups) {
    const bytes = groupBytes(group, copies);
    if (bytes > memory) {
      const mib = (n: number): string => `${Math.ceil(n / 2 ** 20)} MiB`;
      throw new LowbitError(
        "E_CALIBRATION",
        `layer ${group.layers[0].name}: expected room for its Hessian of ${group.view.k} inputs (${mib(bytes)}), got a bound of ${mib(memory)}. Raise memory, or give this layer an algorithm without data (rtn, mse, hqq) by a rule.`,
      );
    }
    if (passes.length === 0 || used + bytes > memory || run + weightBytes(group) > stretch) {
      passes.push([]);
      used = 0;
      run = 0;
    }
    passes.at(-1)!.push(group);
    used += bytes;
    run += weightBytes(group);
  }
  return passes;
}

/** Batches that are held out: spread evenly, the first one never. */
export function heldOutBatches(batches: number, share = 1 / 8): ReadonlySet<number> {
  if (!(share >= 0 && share < 1)) throw new RangeError(`holdOut: expected a share in [0, 1), got ${share}.`);
  const count = batches < 2 || share === 0 ? 0 : Math.min(batches - 1, Math.max(1, Math.round(batches * share)));
  return new Set(Array.from({ length: count }, (_, i) => Math.floor(((i + 1) * batches) / count) - 1));
}

interface Sums {
  readonly fit: StatisticsAccumulator[];
  readonly held: StatisticsAccumulator[];
  /** Instead of both, where a float model runs beside. */
  readonly drift: { readonly fit: DriftAccumulator[]; readonly held: DriftAccumulator[] } | null;
  readonly observer: Observer | null;
  readonly range: { min: number; max: number };
}

function openSums(group: InputGroup, options: CollectOptions, drift: boolean): Sums {
  const { view } = group;
  const { name } = group.layers[0];
  const many = <A>(make: () => A): A[] => Array.from({ length: view.groups }, make);
  const backend = options.backend === undefined ? {} : { backend: options.backend };
  const statistics = () => layerStatistics(view.k, { name, hessian: options.hessian ?? true, ...backend });
  const drifts = () => driftStatistics(view.k, { name, ...backend });
  try {
    return {
      fit: drift ? [] : many(statistics),
      held: drift ? [] : many(statistics),
      drift: drift ? { fit: many(drifts), held: many(drifts) } : null,
      observer: options.observer === undefined ? null : observer(1, { name: group.input, ...options.observer }),
      range: { min: Infinity, max: -Infinity },
    };
  } catch (cause) {
    if (!(cause instanceof RangeError) || !/allocation|array length/i.test(cause.message)) throw cause;
    throw new LowbitError(
      "E_CALIBRATION",
      `layer ${name}: expected memory for a Hessian of ${view.k} inputs, got ${cause.message}. Close other programs, or give this layer an algorithm without data (rtn, mse, hqq) by a rule.`,
      { cause },
    );
  }
}

const positive = (what: string, value: number): void => {
  if (!Number.isSafeInteger(value) || value < 1) throw new RangeError(`${what}: expected a positive integer, got ${value}.`);
};

function extend(range: { min: number; max: number }, data: Float32Array): void {
  let { min, max } = range;
  for (let i = 0; i < data.length; i++) {
    if (data[i] < min) min = data[i];
    if (data[i] > max) max = data[i];
  }
  range.min = min;
  range.max = max;
}

/** One batch of one group. */
async function addBatch(
  group: InputGroup,
  sums: Sums,
  values: BatchValues,
  float: BatchValues | null,
  options: CollectOptions,
  { batches, held, products }: { batches: number; held: boolean; products: Products | null },
): Promise<void> {
  const { view, input, layers } = group;
  const vectors = (from: BatchValues) => {
    const value = from.get(input);
    const data = value === undefined ? null : floatValues(value);
    if (value === undefined || data === null)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `layer ${layers[0].name}: expected a float input, got ${value?.type ?? "none"}. Leave the layer out.`,
      );
    return { data, dims: value.dims };
  };
  const now = vectors(values);
  extend(sums.range, now.data);
  sums.observer?.observe(now.data);
  const quota = Math.ceil((options.maxTokens ?? MAX_TOKENS) / batches);
  const step = Math.max(options.every ?? 1, Math.ceil(view.tokens(now.dims) / quota));
  const every = step > 1 ? step | 1 : 1; // odd, so that it visits every column of a map
  const before = float === null ? null : vectors(float);
  for (let g = 0; g < view.groups; g++) {
    const rows = view.read(now.data, now.dims, g, every);
    const part = held ? "held" : "fit";
    const square = (await products?.of(rows, rows, view.k)) ?? null;
    if (sums.drift === null || before === null) {
      sums[part][g].add(rows, square === null ? {} : { products: square });
      continue;
    }
    const earlier = view.read(before.data, before.dims, g, every);
    const cross =
      square === null
        ? null
        : await products!.of(
            Float32Array.from(earlier, (v, i) => v - rows[i]),
            rows,
            view.k,
          );
    sums.drift[part][g].add(earlier, rows, square === null ? {} : { products: square, crossProducts: cross! });
  }
}

/**
 * Statistics of some groups in one pass of a runner.
 * @param float a runner of the float model at the same place: then the statistics hold the drift between the two
 * @param later values that later passes will ask for
 * @param wanted groups to collect; the others are only run, in the same way, so that the numbers are those of a run
 * that collects all
 */
export async function collect(
  runner: Runner,
  groups: readonly InputGroup[],
  options: CollectOptions,
  later: readonly string[] = [],
  float: Runner | null = null,
  wanted: readonly InputGroup[] = groups,
): Promise<Map<InputGroup, InputStatistics>> {
  positive("maxTokens", options.maxTokens ?? 1);
  positive("every", options.every ?? 1);
  const { total, index } = options.share ?? { total: runner.batches, index: (one: number) => one };
  const heldOut = heldOutBatches(total, options.holdOut);
  const sums = new Map(wanted.map((group) => [group, openSums(group, options, float !== null)]));
  const names = groups.map((group) => group.input);
  const other = float?.stage(names, later);
  // A backend that was given is asked for everything.
  const products = options.backend === undefined && options.hessian !== false ? openProducts() : null;
  let batch = 0;
  try {
    for await (const values of runner.stage(names, later)) {
      const before = (await other?.next())?.value ?? null;
      for (const [group, sum] of sums)
        await addBatch(group, sum, values, before, options, { batches: total, held: heldOut.has(index(batch)), products });
      batch++;
      options.onProgress?.({ stage: "calibrate", done: batch, total: runner.batches, layer: groups[0]?.layers[0].name ?? "" });
    }
    await other?.next(); // to its end
  } finally {
    await other?.return();
    await products?.close();
  }
  return new Map([...sums].map(([group, sum]) => [group, finish(group, sum, heldOut.size > 0, options.share !== undefined)]));
}

/** Sums over no vector. */
function emptyStatistics(k: number): LayerStatistics {
  const zeros = (n = k): Float64Array<ArrayBuffer> => new Float64Array(n);
  const [min, max] = [zeros().fill(Infinity), zeros().fill(-Infinity)];
  return { k, rows: 0, weight: 0, hessian: zeros(k * k), sum: zeros(), sumAbs: zeros(), sumSquares: zeros(), min, max };
}

/** @param share a part of the data may have no batch of one kind */
function finish(group: InputGroup, { fit, held, drift, observer: ranges, range }: Sums, hasHeld: boolean, share: boolean): InputStatistics {
  const mayBeEmpty = share || group.view.sparse === true;
  const whole = (sum: StatisticsAccumulator): LayerStatistics => {
    try {
      return sum.finish();
    } catch (error) {
      if (!mayBeEmpty || !isLowbitError(error) || error.code !== "E_CALIBRATION") throw error;
      return emptyStatistics(group.view.k);
    }
  };
  const drifts = drift?.fit.map((sum) => sum.finish()) ?? null;
  const heldDrifts = hasHeld ? (drift?.held.map((sum) => sum.finish()) ?? null) : null;
  return {
    input: group.input,
    statistics: drifts?.map((d) => d.inputs) ?? fit.map(whole),
    heldOut: heldDrifts?.map((d) => d.inputs) ?? (hasHeld ? held.map(whole) : null),
    range,
    observer: ranges,
    drift: drifts,
    heldOutDrift: heldDrifts,
  };
}

/**
 * Statistics of the float model, pass by pass: those of one pass may be dropped before the next. Groups that are not
 * `wanted` are run, not collected.
 */
export async function* collectPasses(
  model: OnnxModel,
  feeds: readonly Feeds[],
  groups: readonly InputGroup[],
  options: CollectOptions,
  wanted: (group: InputGroup) => boolean = () => true,
): AsyncGenerator<ReadonlyMap<InputGroup, InputStatistics>, void> {
  const { threads, signal } = options;
  const looked = withExperts(
    model,
    groups.flatMap((group) => group.layers),
  );
  const runner = modelRunner(looked, feeds, { threads, signal });
  const copies = options.hessian === false ? 0 : heldOutBatches(options.share?.total ?? feeds.length, options.holdOut).size > 0 ? 2 : 1;
  const stretch = payloadBytes(model) <= STRETCH.from ? Infinity : STRETCH.bytes;
  const passes = passesOf(groups, options.memory ?? hessianMemory(model, groups, copies), copies, stretch);
  try {
    for (const [i, pass] of passes.entries()) {
      if (!passes.slice(i).some((next) => next.some(wanted))) return;
      const later = passes.slice(i + 1).flatMap((next) => next.map((group) => group.input));
      yield await collect(runner, pass, options, later, null, pass.filter(wanted));
    }
  } finally {
    runner.close();
  }
}
