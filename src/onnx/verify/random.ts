// Random inputs that a model runs with and that tell something: sizes of symbolic dims are tried until the reference
// runs; switches (bools of one element) take both values over the samples; another distribution is taken where no
// output moves on the usual one.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Feeds, InputHint, InputMetadata, SampleStyle } from "./feeds.ts";
import { inputDims, isFlag, randomSource, randomTensor } from "./feeds.ts";
import { numbers } from "./numbers.ts";
import type { OutputTensor } from "./runtimes.ts";

export interface RandomOptions {
  readonly samples: number;
  readonly seed: number;
  readonly dims: Readonly<Record<string, number>>;
}

/** What random inputs are made from. */
export interface RandomContext {
  readonly inputs: readonly InputMetadata[];
  readonly hints: ReadonlyMap<string, InputHint>;
  /** Runs the reference. */
  readonly run: (feeds: Feeds) => Promise<ReadonlyMap<string, OutputTensor | null>>;
}

export interface RandomFeeds {
  readonly feeds: readonly Feeds[];
  /** What the inputs are and what could not be run, in words. */
  readonly notes: readonly string[];
}

/**
 * Sizes that a symbolic dimension is tried with, until the first model runs: sequences and audio frames; images first
 * where the first input has four dimensions or more (a strip of 16 pixels would leave a convolutional model two
 * positions to differ in).
 */
const SIZES = [16, 64, 320, 224, 128, 512, 576, 256, 32, 8, 1];
const IMAGE_SIZES = [320, 224, 256, 512, 64, 128, 32, 16, 8, 1];

/** A past of a cache that is switched on, or where an empty one leaves nothing to compare. */
const PAST = 8;

/** Distributions of floats in the order in which they are tried. */
const STYLES: readonly { readonly name: string; readonly style: SampleStyle }[] = [
  { name: "standard normal", style: {} },
  { name: "uniform in [0, 1)", style: { distribution: "uniform" } },
  { name: "normal of deviation 0.1", style: { scale: 0.1 } },
  { name: "normal of deviation 10", style: { scale: 10 } },
  { name: "uniform in [0, 255)", style: { distribution: "uniform", scale: 255 } },
];

interface Sizes {
  readonly first: number;
  /** Of the other inputs: states and the like have a batch there, not a length. */
  readonly others: number;
  readonly past: number;
}

/** Whether an output says something of the inputs: a finite value, and not the same one everywhere. */
function moves(output: OutputTensor | null): boolean {
  if (output === null || output.type === "string") return output !== null && output.data.length > 0;
  const values = numbers(output);
  let least = Infinity;
  let most = -Infinity;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (!Number.isFinite(value)) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  // A score at 0 or 1 is asleep, whatever its last digits do.
  if (least >= 0 && most <= 1 && most - least <= 1e-6) return false;
  // Steps below float32's own of the largest magnitude are noise.
  return most - least > 1e-6 * Math.max(Math.abs(most), Math.abs(least));
}

/** Outputs of one element cannot move within a sample: they move when they differ between two. */
function tells(first: ReadonlyMap<string, OutputTensor | null>, second: ReadonlyMap<string, OutputTensor | null> | undefined): boolean {
  return [...first].some(([name, output]) => {
    if (output === null || output.data.length === 0) return false;
    if (output.data.length > 1) return moves(output);
    const other = second?.get(name);
    if (other === undefined || other === null) return Number.isFinite(Number(output.data[0]));
    return Number.isFinite(Number(output.data[0])) && output.data[0] !== other.data[0];
  });
}

/** Random inputs of which all are known to run. @throws LowbitError E_RUNTIME: the first failure, where no size runs */
export async function randomFeeds(context: RandomContext, options: RandomOptions): Promise<RandomFeeds> {
  const { inputs, run } = context;
  const symbolic = inputs.some((input) => input.shape.some((dim) => typeof dim !== "number" || dim < 0));
  const make = (sizes: Sizes, style: SampleStyle): Feeds[] => drawSamples(context, options, sizes, style);
  let failure: unknown;
  let found: { sizes: Sizes; outputs: ReadonlyMap<string, OutputTensor | null> } | undefined;
  for (const sizes of candidateSizes(inputs, symbolic)) {
    try {
      const outputs = await run(make(sizes, {})[0]);
      found ??= { sizes, outputs };
      const empty = [...outputs.values()].every((output) => output !== null && output.data.length === 0);
      if (!empty) {
        found = { sizes, outputs };
        break;
      }
    } catch (error) {
      failure ??= error;
      if (isCrash(error)) break;
    }
  }
  if (found === undefined) throw failure;
  const { feeds, notes } = await runnable(context, make(found.sizes, {}), options);
  if (inputs.every((input) => !input.type.startsWith("float"))) return { feeds, notes: [`random inputs (seed ${options.seed})`, ...notes] };
  for (const { name, style } of STYLES) {
    const drawn = style === STYLES[0].style ? feeds : make(found.sizes, style).slice(0, feeds.length);
    try {
      const first = style === STYLES[0].style ? found.outputs : await run(drawn[0]);
      if (tells(first, drawn.length > 1 ? await run(drawn[1]) : undefined))
        return { feeds: drawn, notes: [`random inputs, ${name} (seed ${options.seed})`, ...notes] };
    } catch {
      // Values that the model refuses: the next distribution.
    }
  }
  return { feeds, notes: [`random inputs, ${STYLES[0].name} (seed ${options.seed}): no output depends on them`, ...notes] };
}

const isCrash = (error: unknown): boolean => (error as { cause?: { name?: string } }).cause?.name === "CrashError";

function* candidateSizes(inputs: readonly InputMetadata[], symbolic: boolean): Generator<Sizes> {
  const sizes = !symbolic ? [1] : (inputs[0]?.shape.length ?? 0) >= 4 ? IMAGE_SIZES : SIZES;
  for (const past of symbolic ? [0, PAST] : [0])
    for (const first of sizes) for (const others of symbolic && inputs.length > 1 ? [first, 1] : [first]) yield { first, others, past };
}

function drawSamples(context: RandomContext, options: RandomOptions, sizes: Sizes, style: SampleStyle): Feeds[] {
  const random = randomSource(options.seed);
  return Array.from({ length: options.samples }, (_, sample) => {
    const switched = flagsOf(context.inputs, options.dims).filter((_, flag) => (sample >> flag) & 1);
    const past = switched.some((name) => /cache|past/i.test(name)) ? Math.max(sizes.past, PAST) : sizes.past;
    return Object.fromEntries(
      context.inputs.map((input, i) => {
        const dims = inputDims(input, options.dims, i === 0 ? sizes.first : sizes.others, past);
        const own = { ...style, flag: switched.includes(input.name), holes: sample > 0 };
        return [input.name, randomTensor(input, dims, context.hints.get(input.name), random, own)];
      }),
    );
  });
}

const flagsOf = (inputs: readonly InputMetadata[], dims: Readonly<Record<string, number>>): string[] =>
  inputs.filter((input) => isFlag(input, inputDims(input, dims, 1))).map((input) => input.name);

/** Without the samples that the reference does not run with switches on, and a note of each kind. */
async function runnable(
  context: RandomContext,
  feeds: readonly Feeds[],
  options: RandomOptions,
): Promise<{ feeds: readonly Feeds[]; notes: readonly string[] }> {
  const flags = flagsOf(context.inputs, options.dims);
  if (flags.length === 0) return { feeds, notes: [] };
  const notes = new Set<string>();
  const kept: Feeds[] = [];
  const runs = new Map([["", true]]);
  for (const feed of feeds) {
    const on = flags.filter((name) => (feed[name].data as Uint8Array)[0] === 1).join(", ");
    if (!runs.has(on)) {
      try {
        await context.run(feed);
        runs.set(on, true);
      } catch (error) {
        if (isCrash(error)) throw error;
        runs.set(on, false);
        notes.add(`${on} = true was not run: ${(error as Error).message}`);
      }
    }
    if (runs.get(on)) kept.push(feed);
  }
  const values = (name: string): string => {
    const seen = new Set(kept.map((feed) => (feed[name].data as Uint8Array)[0] === 1));
    return seen.size === 2 ? "both values" : `${[...seen][0]} only`;
  };
  for (const name of flags) notes.add(`${name}: ${values(name)}${options.samples < 2 ? " (more samples run both)" : ""}`);
  return { feeds: kept, notes: [...notes] };
}

/** @throws LowbitError E_RUNTIME where a runtime does not describe its inputs and the model's file does not either */
export function describedInputs(
  described: readonly InputMetadata[] | undefined,
  fallback: readonly InputMetadata[],
  names: readonly string[],
): readonly InputMetadata[] {
  // Runtimes before 1.21 do not describe their inputs.
  const inputs = described ?? fallback;
  if (inputs.length !== names.length)
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected a description of the inputs ${names.join(", ")}, got none. Install a newer onnxruntime-node, or give inputs.`,
    );
  return inputs;
}
