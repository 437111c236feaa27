// How much each layer's quantization costs at the outputs of the model, and which layers to leave out, or raise to a
// better format, so that the outputs reach a signal-to-noise ratio. Node only (onnxruntime-node runs the models). It
// does not know how a model is quantized: it is given a function that quantizes by rules.
import { LowbitError } from "../../formats/core/errors.ts";
import { checkAborted, type RunOptions } from "../quantize/steps.ts";
import type { OnnxModel } from "./file/model.ts";
import type { LayerRule } from "./options.ts";
import { openRun, type RunValue } from "./run.ts";
import type { Feeds } from "./verify/feeds.ts";

/** A rule for one layer: its pattern is a string, so that the rules are JSON. */
export type SingleRule = LayerRule & { readonly match: string };

/** Quantizes the model with these rules before its own settings; gives its bytes or a path. */
export type QuantizeWith = (rules: readonly SingleRule[]) => Promise<Uint8Array | string>;

/** Layers and inputs that sensitivity is measured on. */
export interface SensitivityOptions extends RunOptions {
  /** Names of the layers that quantization takes. */
  readonly layers: readonly string[];
  /** Inputs on which outputs are compared: held out of calibration. */
  readonly feeds: readonly Feeds[];
  /** Outputs that count; default: all. */
  readonly outputs?: readonly string[];
  /**
   * Most quantized models that are made and run; default 64. With more layers than that, layers that cost little are
   * measured together.
   */
  readonly maxRuns?: number;
}

/** What quantizing one layer does to the outputs of the model. */
export interface LayerSensitivity {
  readonly name: string;
  /**
   * SQNR of the worst output with this layer quantized alone, in dB; of layers that were measured together an equal
   * share of their noise.
   */
  readonly sqnrDb: number;
  /** How many layers were measured together. */
  readonly together: number;
}

/** Layers by how much the outputs of the model lose to each. */
export interface SensitivityReport {
  /** Worst first. */
  readonly layers: readonly LayerSensitivity[];
  /** With all layers quantized. */
  readonly sqnrDb: number;
  readonly runs: number;
}

/** A pattern that matches one name and nothing else. */
export const exactPattern = (name: string): string =>
  /[*?]/.test(name) || /^\/.+\/[a-z]*$/s.test(name) ? `/^${name.replace(/[\\^$.|?*+()[\]{}/]/g, "\\$&")}$/` : name;

const decibels = (noise: number): number => (noise === 0 ? Infinity : -10 * Math.log10(noise));

/** Runs of quantized models, counted, compared with the float model. */
interface Bench {
  /** Noise over signal of the worst output. */
  noise(rules: readonly SingleRule[]): Promise<number>;
  readonly runs: () => number;
  readonly left: () => number;
}

async function openBench(model: string | Uint8Array | OnnxModel, quantizeWith: QuantizeWith, options: SensitivityOptions): Promise<Bench> {
  const { feeds, layers, outputs, maxRuns = 64 } = options;
  if (feeds.length === 0) throw new TypeError("sensitivity, feeds: expected at least one input, got none.");
  if (layers.length === 0)
    throw new LowbitError("E_ONNX", "sensitivity: expected layers to quantize, got none. The model has no weight that fits.");
  if (!(Number.isSafeInteger(maxRuns) && maxRuns >= 4))
    throw new RangeError(`sensitivity, maxRuns: expected an integer of at least 4, got ${maxRuns}.`);
  const session = await openRun(model);
  const reference: ReadonlyMap<string, RunValue>[] = [];
  try {
    for (const feed of feeds) reference.push(await session.run(feed, outputs));
  } finally {
    await session.release();
  }
  let runs = 0;
  return {
    runs: () => runs,
    left: () => maxRuns - runs,
    async noise(rules) {
      checkAborted(options.signal, "sensitivity");
      options.onProgress?.({ stage: "sensitivity", done: runs, total: maxRuns });
      runs++;
      const quantized = await openRun(await quantizeWith(rules));
      try {
        const sums = new Map<string, [signal: number, noise: number]>();
        for (const [i, feed] of feeds.entries()) {
          const got = await quantized.run(feed, outputs);
          for (const [name, want] of reference[i]) addNoise(sums, name, want.data, got.get(name)!.data);
        }
        return Math.max(...[...sums.values()].map(([signal, noise]) => (noise === 0 ? 0 : noise / signal)));
      } finally {
        await quantized.release();
      }
    },
  };
}

function addNoise(sums: Map<string, [number, number]>, name: string, a: ArrayLike<number>, b: ArrayLike<number>): void {
  let [signal, noise] = sums.get(name) ?? [0, 0];
  if (a.length !== b.length) noise = Infinity;
  for (let i = 0; i < a.length; i++) {
    if (!Number.isFinite(a[i])) continue; // masks
    signal += a[i] * a[i];
    noise += Number.isFinite(b[i]) ? (a[i] - b[i]) ** 2 : Infinity;
  }
  sums.set(name, [signal, noise]);
}

const keep = (name: string): SingleRule => ({ match: exactPattern(name), keep: true });
/** All layers but these stay as they are. */
const onlyThese = (all: readonly string[], chosen: ReadonlySet<string>): SingleRule[] => all.filter((name) => !chosen.has(name)).map(keep);

/** Layers measured together, and the noise that they make. */
interface Group {
  readonly names: readonly string[];
  readonly noise: number;
}

/** Measures groups and splits the noisiest, until every layer stands alone or `budget` runs are spent. */
async function measureGroups(bench: Bench, layers: readonly string[], budget: number): Promise<Group[]> {
  const measure = async (names: readonly string[]): Promise<Group> => ({
    names,
    noise: await bench.noise(onlyThese(layers, new Set(names))),
  });
  const start = layers.length <= budget ? layers.length : Math.max(1, Math.floor(budget / 3));
  const size = Math.ceil(layers.length / start);
  const groups: Group[] = [];
  let spent = 0;
  for (let at = 0; at < layers.length; at += size, spent++) groups.push(await measure(layers.slice(at, at + size)));
  while (spent + 2 <= budget) {
    groups.sort((a, b) => b.noise - a.noise);
    const at = groups.findIndex(({ names }) => names.length > 1);
    if (at < 0) break;
    const { names } = groups[at];
    const half = names.length >> 1;
    groups.splice(at, 1, await measure(names.slice(0, half)), await measure(names.slice(half)));
    spent += 2;
  }
  return groups;
}

const bySensitivity = (groups: readonly Group[]): { name: string; noise: number; together: number }[] =>
  groups
    .flatMap(({ names, noise }) => names.map((name) => ({ name, noise: noise / names.length, together: names.length })))
    .sort((a, b) => b.noise - a.noise);

const asReport = (list: ReturnType<typeof bySensitivity>): LayerSensitivity[] =>
  list.map(({ name, noise, together }) => ({ name, sqnrDb: decibels(noise), together }));

/**
 * SQNR of the model's outputs with each layer quantized alone.
 * @param model the float model @param quantizeWith gives the model quantized by rules
 * @throws LowbitError E_RUNTIME, E_ONNX, E_ABORTED; TypeError, RangeError for options
 * @example
 * const quantizeWith: QuantizeWith = async (rules) => (await quantizeModelBytes(bytes, { dtype: "q8", rules })).bytes;
 * const { layers } = await measureSensitivity(bytes, quantizeWith, { layers: ["/12/Gemm", "/14/Gemm"], feeds });
 */
export async function measureSensitivity(
  model: string | Uint8Array | OnnxModel,
  quantizeWith: QuantizeWith,
  options: SensitivityOptions,
): Promise<SensitivityReport> {
  const bench = await openBench(model, quantizeWith, options);
  const all = await bench.noise([]);
  const groups = await measureGroups(bench, options.layers, bench.left());
  return { layers: asReport(bySensitivity(groups)), sqnrDb: decibels(all), runs: bench.runs() };
}

/** The quality that outputs must reach, and what may be done for it. */
export interface TargetOptions extends SensitivityOptions {
  /** SQNR in dB that the worst output must reach. */
  readonly targetSqnr: number;
  /** Settings of better forms, tried in this order instead of leaving a layer out, e.g. [{ format: "int8_b32" }]. */
  readonly raise?: readonly Omit<LayerRule, "match" | "keep">[];
}

/** The layers that were left out, or quantized better, to reach a target. */
export interface TargetReport {
  /** Rules that reach the target, for a recipe; empty where nothing had to change. */
  readonly rules: readonly SingleRule[];
  /** Reached, and with all layers quantized. */
  readonly sqnrDb: number;
  readonly before: number;
  readonly keptLayers: readonly string[];
  readonly raisedLayers: readonly string[];
  /** Worst first; empty where nothing had to be measured. */
  readonly layers: readonly LayerSensitivity[];
  readonly runs: number;
  readonly notes: readonly string[];
}

/** The smallest count in 1..most for which `ok` holds, by bisection; `guess` first. `most` is known to be ok. */
export async function smallest(most: number, guess: number, left: () => number, ok: (count: number) => Promise<boolean>): Promise<number> {
  let [low, high] = [0, most]; // low fails, high holds
  let next = Math.min(Math.max(guess, 1), most - 1);
  for (let step = 1; high - low > 1 && left() > 0; step *= 2) {
    const holds = await ok(next);
    if (holds) high = next;
    else low = next;
    // from one that failed and one that held on by halves, before that by growing steps away from the guess
    if (low > 0 && high < most) next = (low + high) >> 1;
    else next = holds ? Math.max(low + 1, high - step) : Math.min(high - 1, low + step);
  }
  return high;
}

/**
 * Chooses layers, worst first, to leave out of quantization or to raise to a better form, until the outputs reach a
 * SQNR. As few as that takes: the number is found by running the models, not by the estimate that orders them.
 * @throws LowbitError E_CALIBRATION where even without any layer the target is not reached; as `measureSensitivity`
 * @example
 * const options = { dtype: "q4", allowUnchanged: true } as const; // all layers are left out once
 * const quantizeWith: QuantizeWith = async (rules) => (await quantizeModelBytes(bytes, { ...options, rules })).bytes;
 * const goal = { targetSqnr: 20, layers: ["/12/Gemm", "/14/Gemm"], feeds };
 * const { rules } = await reachSqnr(bytes, quantizeWith, goal); // which layers stay floats
 */
export async function reachSqnr(
  model: string | Uint8Array | OnnxModel,
  quantizeWith: QuantizeWith,
  options: TargetOptions,
): Promise<TargetReport> {
  const { targetSqnr, layers, raise = [] } = options;
  if (!Number.isFinite(targetSqnr)) throw new RangeError(`targetSqnr: expected a number of dB, got ${targetSqnr}.`);
  const bench = await openBench(model, quantizeWith, options);
  const allowed = 10 ** (-targetSqnr / 10);
  const before = await bench.noise([]);
  const nothing = { before: decibels(before), keptLayers: [], raisedLayers: [], rules: [] };
  if (before <= allowed)
    return {
      ...nothing,
      sqnrDb: decibels(before),
      layers: [],
      runs: bench.runs(),
      notes: [`reached ${decibels(before).toFixed(1)} dB with all layers quantized`],
    };
  // Most runs go to the table; the search needs some twelve.
  const groups = await measureGroups(bench, layers, Math.max(3, bench.left() - 4 - 2 * Math.ceil(Math.log2(layers.length + 1))));
  const order = bySensitivity(groups);
  const names = order.map(({ name }) => name);
  const noiseOf = new Map<string, number>();
  const noise = async (rules: readonly SingleRule[]): Promise<number> => {
    const key = JSON.stringify(rules);
    if (!noiseOf.has(key)) noiseOf.set(key, await bench.noise(rules));
    return noiseOf.get(key)!;
  };
  const keptRules = (count: number): SingleRule[] => names.slice(0, count).map(keep);
  const rest = order.reduceRight<number[]>((sums, { noise: n }) => [...sums, (sums.at(-1) ?? 0) + n], []).reverse();
  const guess = rest.findIndex((n) => n <= allowed);
  const all = (await noise(keptRules(names.length))) <= allowed;
  if (!all)
    throw new LowbitError(
      "E_CALIBRATION",
      `targetSqnr: expected to reach ${targetSqnr} dB, got ${decibels(noiseOf.get(JSON.stringify(keptRules(names.length)))!).toFixed(1)} dB with every layer left out. Lower the target.`,
    );
  const kept = await smallest(
    names.length,
    guess < 0 ? names.length : guess,
    bench.left,
    async (count) => (await noise(keptRules(count))) <= allowed,
  );
  const choice = await raised(names, kept, raise, bench, async (rules) => (await noise(rules)) <= allowed);
  const sqnrDb = decibels(await noise(choice.rules));
  return {
    rules: choice.rules,
    sqnrDb,
    before: decibels(before),
    keptLayers: choice.kept,
    raisedLayers: choice.raised,
    layers: asReport(order),
    runs: bench.runs(),
    notes: [
      `${decibels(before).toFixed(1)} dB with all ${names.length} layers quantized; ${sqnrDb.toFixed(1)} dB with ${choice.kept.length} left out${choice.raised.length > 0 ? ` and ${choice.raised.length} raised` : ""} (target ${targetSqnr} dB, ${bench.runs()} runs)`,
      ...choice.kept.map((name) => `left out: ${name}`),
      ...choice.raised.map((name) => `raised: ${name}`),
    ],
  };
}

/**
 * Of the layers that would be left out, as few as possible are; the others take the first better form with which the
 * target still holds.
 */
async function raised(
  names: readonly string[],
  kept: number,
  raise: readonly Omit<LayerRule, "match" | "keep">[],
  bench: Bench,
  ok: (rules: readonly SingleRule[]) => Promise<boolean>,
): Promise<{ rules: SingleRule[]; kept: readonly string[]; raised: readonly string[] }> {
  const rulesFor = (left: number, settings: Omit<LayerRule, "match" | "keep">): SingleRule[] =>
    names.slice(0, kept).map((name, i) => (i < left ? keep(name) : { match: exactPattern(name), ...settings }));
  for (const settings of raise) {
    if (bench.left() <= 0) break;
    // All kept is known to reach the target; with none kept it may too.
    const none = await ok(rulesFor(0, settings));
    const left = none ? 0 : await smallest(kept, 1, bench.left, (count) => ok(rulesFor(count, settings)));
    if (left < kept) return { rules: rulesFor(left, settings), kept: names.slice(0, left), raised: names.slice(left, kept) };
  }
  return { rules: names.slice(0, kept).map(keep), kept: names.slice(0, kept), raised: [] };
}
