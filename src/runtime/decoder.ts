// session.decoder(): a model with key and value caches as a decoder. Where its attention is GroupQueryAttention over
// them, they lie in the backend's memory and a step repeats a recorded list of kernels (decoder-kernels.ts); other
// models carry their caches from run to run (decoder-carried.ts).
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { turn } from "../backends/turn.ts";
import { carriedCore } from "./decoder-carried.ts";
import { kernelCore, kernelModel, type CacheKinds } from "./decoder-kernels.ts";
import type { Core, DecoderModel, DecoderPart } from "./decoder-model.ts";
import type { Machine } from "./machine/machine.ts";
import { greedy, type Sampler } from "./sample.ts";

/** Length and precision of a decoder's cache. */
export interface DecoderOptions {
  /**
   * What keys and values are kept as, a scale for each head of a token. Default "float32". "int8" has a quarter of the
   * bytes and is the fastest; "k8v4" (keys int8, values int4) and "int4" are smaller. Models whose attention is spelled
   * out have float32 only.
   */
  readonly cache?: "float32" | "float16" | "int8" | "k8v4" | "int4";
  /** Most tokens of a sequence. Default 4096, or what the model's rotary tables hold if that is less. */
  readonly capacity?: number;
  /** Sequences side by side, each with a cache of its own. Default 1. */
  readonly sequences?: number;
}

/** What to continue, how far, and how tokens are chosen. */
export interface GenerateOptions {
  /** Tokens to continue; default: the sequence so far. */
  readonly prompt?: ArrayLike<number | bigint>;
  /** Default: until the cache is full. */
  readonly maxTokens?: number;
  /** Default greedy. */
  readonly sampler?: Sampler;
  /** Tokens after which generation ends; they are given too. */
  readonly stop?: readonly number[];
  readonly signal?: AbortSignal;
  /** Default 0. */
  readonly sequence?: number;
}

/** A language model with its cache of keys and values: `prefill`, then `step` token by token. */
export interface Decoder {
  /** Tokens in the cache of the first sequence. */
  readonly length: number;
  /** Tokens of each sequence. */
  readonly lengths: readonly number[];
  readonly capacity: number;
  /** Bytes of keys and values. */
  readonly cacheBytes: number;
  /**
   * Runs tokens and appends them. @returns the logits after the last one: a view that the next call ends, copy what is
   * to stay
   * @param sequence default 0
   * @throws RangeError for no or strange tokens, a sequence that there is none; LowbitError E_SHAPE where they do not
   * fit, E_DISPOSED
   */
  prefill(ids: ArrayLike<number | bigint>, sequence?: number): Float32Array;
  /** `prefill` of one token. */
  step(id: number, sequence?: number): Float32Array;
  /**
   * A token for each sequence in one pass, which reads the weights once; null: the sequence rests. @returns the logits
   * of each, views that the next call ends; null for those that rest
   * @throws RangeError for another number of tokens, LowbitError E_SHAPE where one does not fit, E_DISPOSED
   */
  steps(ids: readonly (number | null)[]): (Float32Array | null)[];
  /** Forgets all tokens of a sequence but the first n. @throws RangeError */
  truncate(n: number, sequence?: number): void;
  /** Forgets all tokens of all sequences. */
  reset(): void;
  /** Tokens one by one, with a turn of the event loop between them. @throws the reason of `signal` */
  generate(options?: GenerateOptions): AsyncGenerator<number, void, undefined>;
  /**
   * Kernels of a step by operator, after one was made; with `profile` of the session the milliseconds of the fastest
   * step.
   */
  explain(): readonly DecoderPart[];
  /** Frees the caches. Safe to call twice. */
  dispose(): void;
}

const CACHES: ReadonlyMap<string, CacheKinds> = new Map([
  ["float32", ["float32", "float32"]],
  ["float16", ["float16", "float16"]],
  ["int8", ["int8", "int8"]],
  ["k8v4", ["int8", "int4"]],
  ["int4", ["int4_halves", "int4"]],
]);

const CAPACITY = 4096;
const SEQUENCES = 1024;

/** Where a model holds `limit` tokens. */
export const defaultCapacity = (limit: number): number => Math.min(CAPACITY, limit);

export const disposedDecoder = (): LowbitError =>
  new LowbitError("E_DISPOSED", "decoder: expected one in use, got a disposed one. Make another.");

/** @throws LowbitError E_SHAPE */
export function checkRoom(length: number, count: number, capacity: number): void {
  if (length + count > capacity)
    throw new LowbitError(
      "E_SHAPE",
      `decoder: expected at most ${capacity} tokens, got ${length} and ${count} more. Truncate it, or make one with more capacity.`,
    );
}

/** @throws RangeError */
export function checkToken(id: number): void {
  if (!Number.isSafeInteger(id) || id < 0) throw new RangeError(`decoder step: expected a token from 0, got ${id}.`);
}

/** Tokens of a prompt. @throws RangeError */
export function checkTokens(ids: ArrayLike<number | bigint>): bigint[] {
  if (ids.length === 0) throw new RangeError("decoder prefill: expected at least one token, got none.");
  for (let i = 0; i < ids.length; i++)
    if ((typeof ids[i] !== "bigint" && !Number.isSafeInteger(ids[i])) || ids[i] < 0)
      throw new RangeError(`decoder prefill ids[${i}]: expected an integer from 0, got ${String(ids[i])}.`);
  return Array.from(ids, BigInt);
}

/** @throws RangeError */
export function checkCut(n: number, length: number): void {
  if (!Number.isSafeInteger(n) || n < 0 || n > length) throw new RangeError(`decoder truncate: expected 0 to ${length} tokens, got ${n}.`);
}

/** @throws RangeError */
export function checkSequence(sequence: number, { length }: { readonly length: number }): void {
  if (!Number.isSafeInteger(sequence) || sequence < 0 || sequence >= length)
    throw new RangeError(`decoder sequence: expected 0 to ${length - 1}, got ${sequence}.`);
}

/** Tokens of all sequences. @throws RangeError */
export function checkSteps(ids: readonly (number | null)[], sequences: number): void {
  if (ids.length !== sequences) throw new RangeError(`decoder steps: expected ${sequences} tokens or null, got ${ids.length}.`);
  for (const id of ids) if (id !== null) checkToken(id);
}

export interface DecoderInit extends DecoderModel {
  readonly machine: Machine;
  readonly options: DecoderOptions;
  readonly check: () => void;
  readonly profile: boolean;
}

/** What keys and values are kept as, and for how many sequences. @throws RangeError, TypeError */
export function cacheOf({ cache = "float32", sequences = 1 }: DecoderOptions): { readonly kinds: CacheKinds; readonly sequences: number } {
  if (!Number.isSafeInteger(sequences) || sequences < 1 || sequences > SEQUENCES)
    throw new RangeError(`decoder sequences: expected 1 to ${SEQUENCES}, got ${sequences}.`);
  if (!CACHES.has(cache)) throw new TypeError(`decoder cache: expected ${[...CACHES.keys()].join(", ")}, got ${String(cache)}.`);
  return { kinds: CACHES.get(cache)!, sequences };
}

/** @throws LowbitError E_UNSUPPORTED where the model is no decoder, E_DEVICE; RangeError; TypeError */
export function createDecoder(init: DecoderInit): Decoder {
  cacheOf(init.options);
  const { core, limit } = chooseCore(init);
  return front(core, Math.min(init.options.capacity ?? CAPACITY, limit), init);
}

export function checkCapacity(capacity: number | undefined, limit: number): void {
  if (capacity === undefined || (Number.isSafeInteger(capacity) && capacity >= 1 && capacity <= limit)) return;
  throw new RangeError(`decoder capacity: expected 1 to ${limit} tokens, got ${capacity}.`);
}

/** Capacity where a model has no limit of its own. */
export const MOST = 2 ** 20;

function chooseCore(init: DecoderInit): { core: Core; limit: number } {
  const { options } = init;
  const { kinds, sequences } = cacheOf(options);
  try {
    const { found, limit } = kernelModel(init);
    checkCapacity(options.capacity, limit);
    const capacity = options.capacity ?? defaultCapacity(limit);
    const core = kernelCore({ ...init, sequences }, found, capacity, kinds);
    try {
      // what the kernels do not take shows in a first step
      core.step(0, 0, 0);
      return { core, limit };
    } catch (error) {
      core.dispose();
      throw error;
    }
  } catch (error) {
    if (!isLowbitError(error) || error.code !== "E_UNSUPPORTED") throw error;
    // caches of fewer bits are the kernel's
    if ((options.cache ?? "float32") !== "float32") throw error;
    checkCapacity(options.capacity, MOST);
    return { core: carriedCore(init, options.capacity ?? CAPACITY, sequences), limit: MOST };
  }
}

interface Generating {
  readonly checked: (sequence: number) => void;
  readonly logits: readonly (Float32Array | null)[];
  readonly lengths: readonly number[];
  readonly capacity: number;
  prefill(ids: ArrayLike<number | bigint>, sequence: number): Float32Array | Promise<Float32Array>;
  step(id: number, sequence: number): Float32Array | Promise<Float32Array>;
}

/** Tokens one by one, as `generate` gives them. */
export async function* generated(
  { prompt, maxTokens = Infinity, sampler = greedy, stop = [], signal, sequence = 0 }: GenerateOptions,
  { checked, logits, lengths, capacity, prefill, step }: Generating,
): AsyncGenerator<number, void, undefined> {
  signal?.throwIfAborted();
  checked(sequence);
  if (prompt === undefined && logits[sequence] === null)
    throw new RangeError("decoder generate: expected a prompt, or tokens before that were not truncated, got none.");
  let next = prompt === undefined ? logits[sequence]! : await prefill(prompt, sequence);
  for (let n = 0; n < maxTokens; n++) {
    const id = sampler(next);
    yield id;
    if (stop.includes(id) || n + 1 >= maxTokens || lengths[sequence] >= capacity) return;
    await turn();
    signal?.throwIfAborted();
    next = await step(id, sequence);
  }
}

function front(core: Core, capacity: number, { machine, check, options: { sequences = 1 } }: DecoderInit): Decoder {
  const lengths = new Array<number>(sequences).fill(0);
  let live = true;
  const logits = new Array<Float32Array | null>(sequences).fill(null);
  const checked = (sequence: number): void => {
    check();
    if (!live) throw disposedDecoder();
    checkSequence(sequence, lengths);
  };
  /** Of all sequences: views share memory. */
  const made = (sequence: number, of: Float32Array): Float32Array => {
    logits.fill(null);
    return (logits[sequence] = of);
  };
  const step = (id: number, sequence = 0): Float32Array => {
    checked(sequence);
    checkToken(id);
    checkRoom(lengths[sequence], 1, capacity);
    made(sequence, core.step(id, lengths[sequence], sequence));
    lengths[sequence]++;
    return logits[sequence]!;
  };
  const steps = (ids: readonly (number | null)[]): (Float32Array | null)[] => {
    checked(0);
    checkSteps(ids, sequences);
    ids.forEach((id, s) => {
      if (id !== null) checkRoom(lengths[s], 1, capacity);
    });
    if (sequences === 1) return ids.map((id) => (id === null ? null : step(id)));
    // one that rests runs as well: what it writes lies behind its last token
    const all = core.steps?.(ids.map((id) => id ?? 0), lengths); // prettier-ignore
    ids.forEach((id, s) => {
      logits[s] = id === null ? null : (all?.[s] ?? core.step(id, lengths[s], s));
      if (id !== null) lengths[s]++;
    });
    return [...logits];
  };
  const prefill = (ids: ArrayLike<number | bigint>, sequence = 0): Float32Array => {
    checked(sequence);
    const list = checkTokens(ids);
    checkRoom(lengths[sequence], list.length, capacity);
    if (list.length === 1) return step(Number(list[0]), sequence);
    made(sequence, core.run(list, lengths[sequence], sequence));
    lengths[sequence] += list.length;
    return logits[sequence]!;
  };
  const truncate = (n: number, sequence = 0): void => {
    checked(sequence);
    checkCut(n, lengths[sequence]);
    core.truncate(n, sequence);
    if (n < lengths[sequence]) logits[sequence] = null;
    lengths[sequence] = n;
  };
  return {
    get length() {
      return lengths[0];
    },
    get lengths() {
      return [...lengths];
    },
    capacity,
    get cacheBytes() {
      return core.bytes();
    },
    prefill,
    step,
    steps,
    truncate,
    reset: () => lengths.forEach((_, s) => truncate(0, s)),
    explain: () => core.explain(),
    generate: (of = {}) => generated(of, { checked, logits, lengths, capacity, prefill, step }),
    dispose() {
      if (!live) return;
      live = false;
      core.dispose();
      machine.dispose();
    },
  };
}
