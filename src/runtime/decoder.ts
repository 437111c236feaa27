// session.decoder(): a model with key and value caches as a decoder. Where its attention is GroupQueryAttention over
// them, they lie in the backend's memory and a step repeats a recorded list of kernels (decoder-kernels.ts); other
// models carry their caches from run to run (decoder-carried.ts).
import { LowbitError, isLowbitError } from "../../formats/core/errors.ts";
import { turn } from "../backends/turn.ts";
import type { Plan } from "./compile/plan.ts";
import { carriedCore } from "./decoder-carried.ts";
import { kernelCore, kernelModel, type CacheKinds } from "./decoder-kernels.ts";
import type { Core, DecoderPart, Input } from "./decoder-model.ts";
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
}

/** A language model with its cache of keys and values: `prefill`, then `step` token by token. */
export interface Decoder {
  /** Tokens in the cache. */
  readonly length: number;
  readonly capacity: number;
  /** Bytes of keys and values. */
  readonly cacheBytes: number;
  /**
   * Runs tokens and appends them. @returns the logits after the last one: a view that the next call ends, copy what is
   * to stay
   * @throws RangeError for no or strange tokens; LowbitError E_SHAPE where they do not fit, E_DISPOSED
   */
  prefill(ids: ArrayLike<number | bigint>): Float32Array;
  /** `prefill` of one token. */
  step(id: number): Float32Array;
  /** Forgets all tokens but the first n. @throws RangeError */
  truncate(n: number): void;
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
  ["int4", ["int4", "int4"]],
]);

const CAPACITY = 4096;

/** Where a model holds `limit` tokens. */
export const defaultCapacity = (limit: number): number => Math.min(CAPACITY, limit);

export const disposedDecoder = (): LowbitError =>
  new LowbitError("E_DISPOSED", "decoder: expected one in use, got a disposed one. Make another.");

export const noPrompt = (): RangeError =>
  new RangeError("decoder generate: expected a prompt, or tokens before that were not truncated, got none.");

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

export interface DecoderInit {
  readonly machine: Machine;
  readonly plan: Plan;
  readonly inputs: readonly Input[];
  readonly outputNames: readonly string[];
  readonly options: DecoderOptions;
  readonly check: () => void;
  readonly profile: boolean;
}

/** @throws LowbitError E_UNSUPPORTED where the model is no decoder, E_DEVICE; RangeError; TypeError */
export function createDecoder(init: DecoderInit): Decoder {
  const { cache = "float32", capacity } = init.options;
  if (!CACHES.has(cache)) throw new TypeError(`decoder cache: expected ${[...CACHES.keys()].join(", ")}, got ${String(cache)}.`);
  const { core, limit } = chooseCore(init);
  return front(core, Math.min(capacity ?? CAPACITY, limit), init);
}

export function checkCapacity(capacity: number | undefined, limit: number): void {
  if (capacity === undefined || (Number.isSafeInteger(capacity) && capacity >= 1 && capacity <= limit)) return;
  throw new RangeError(`decoder capacity: expected 1 to ${limit} tokens, got ${capacity}.`);
}

const MOST = 2 ** 20;

function chooseCore(init: DecoderInit): { core: Core; limit: number } {
  const { machine, plan, inputs, outputNames, options, profile } = init;
  try {
    const { found, limit } = kernelModel(plan, inputs, outputNames);
    checkCapacity(options.capacity, limit);
    const capacity = options.capacity ?? defaultCapacity(limit);
    const core = kernelCore({ machine, plan, inputs, outputNames, profile }, found, capacity, CACHES.get(options.cache ?? "float32")!);
    try {
      // what the kernels do not take shows in a first step
      core.step(0, 0);
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
    return { core: carriedCore(machine, plan, inputs, outputNames, options.capacity ?? CAPACITY), limit: MOST };
  }
}

function front(core: Core, capacity: number, { machine, check }: DecoderInit): Decoder {
  let length = 0;
  let live = true;
  let logits: Float32Array | null = null;
  const checked = (): void => {
    check();
    if (!live) throw disposedDecoder();
  };
  const step = (id: number): Float32Array => {
    checked();
    checkToken(id);
    checkRoom(length, 1, capacity);
    logits = core.step(id, length);
    length++;
    return logits;
  };
  const prefill = (ids: ArrayLike<number | bigint>): Float32Array => {
    checked();
    const list = checkTokens(ids);
    checkRoom(length, list.length, capacity);
    if (list.length === 1) return step(Number(list[0]));
    logits = core.run(list, length);
    length += list.length;
    return logits;
  };
  const truncate = (n: number): void => {
    checked();
    checkCut(n, length);
    core.truncate(n);
    if (n < length) logits = null;
    length = n;
  };
  return {
    get length() {
      return length;
    },
    capacity,
    get cacheBytes() {
      return core.bytes();
    },
    prefill,
    step,
    truncate,
    reset: () => truncate(0),
    explain: () => core.explain(),
    async *generate({ prompt, maxTokens = Infinity, sampler = greedy, stop = [], signal } = {}) {
      signal?.throwIfAborted();
      if (prompt === undefined && logits === null) throw noPrompt();
      let next = prompt === undefined ? logits! : prefill(prompt);
      for (let n = 0; n < maxTokens; n++) {
        const id = sampler(next);
        yield id;
        if (stop.includes(id) || n + 1 >= maxTokens || length >= capacity) return;
        await turn();
        signal?.throwIfAborted();
        next = step(id);
      }
    },
    dispose() {
      if (!live) return;
      live = false;
      core.dispose();
      machine.dispose();
    },
  };
}
