// session.decoder(): a model with key and value caches as a decoder. The caches are the inputs that GroupQueryAttention reads as past; they lie in the backend's memory, keys and values
// are written where they stay, and a step repeats a recorded list of kernels: nothing is copied but the token in and, if they are asked for, the logits out.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Region } from "../backends/wasm/memory.ts";
import { operatorName } from "../onnx/graph/scopes.ts";
import { attributeInt } from "../onnx/graph/nodes.ts";
import type { Plan } from "./compile/plan.ts";
import type { Step } from "./compile/step.ts";
import { greedy, type Sampler } from "./sample.ts";
import { cacheBytes, decodeAttention, type LayerCache } from "./machine/attention.ts";
import { runStep, turn } from "./machine/execute.ts";
import { emitProduct, emitTurn } from "./machine/kernels.ts";
import type { Machine, Recording } from "./machine/machine.ts";
import type { Value } from "./value.ts";
import { integers } from "./value.ts";
import { find, isRotary, lifetimes, proveLengths, tableRows, unsupported, type Found } from "./decoder-model.ts";

export interface DecoderOptions {
  /** What keys and values are kept as. Default "float32". */
  readonly cache?: "float32";
  /** Most tokens of a sequence. Default 4096, or what the model's rotary tables hold if that is less. */
  readonly capacity?: number;
}

export interface DecoderPart {
  readonly operator: string;
  readonly kernels: number;
  readonly ms?: number;
}

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

export interface Decoder {
  /** Tokens in the cache. */
  readonly length: number;
  readonly capacity: number;
  /** Bytes of keys and values. */
  readonly cacheBytes: number;
  /**
   * Runs tokens and appends them. @returns the logits after the last one: a view that the next call ends, copy what is to stay
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
  /** Kernels of a step by operator, after one was made; with `profile` of the session the milliseconds of the fastest step. */
  explain(): readonly DecoderPart[];
  /** Frees the caches. Safe to call twice. */
  dispose(): void;
}

/** Tokens of a prompt at once: bounded activations. */
const CHUNK = 256;

const CAPACITY = 4096;

interface DecoderInit {
  readonly machine: Machine;
  readonly plan: Plan;
  readonly inputs: readonly { name: string; type: string; shape: readonly unknown[] }[];
  readonly outputNames: readonly string[];
  readonly options: DecoderOptions;
  readonly check: () => void;
  readonly profile: boolean;
}

/** @throws LowbitError E_UNSUPPORTED where the model is no decoder, E_DEVICE; RangeError */
export function createDecoder({ machine, plan, inputs, outputNames, options, check, profile }: DecoderInit): Decoder {
  const found = find(plan, inputs, outputNames);
  try {
    proveLengths(plan, found, inputs);
  } catch (error) {
    if (error instanceof LowbitError && error.code === "E_UNSUPPORTED") throw error;
    throw unsupported("lengths made of the attention mask", (error as Error).message);
  }
  const { cache = "float32" } = options;
  if (cache !== "float32") throw new TypeError(`decoder cache: expected "float32", got ${String(cache)}.`);
  const limit = tableRows(plan, found.steps);
  const capacity = options.capacity ?? Math.min(CAPACITY, limit);
  if (!Number.isSafeInteger(capacity) || capacity < 1 || capacity > limit)
    throw new RangeError(`decoder capacity: expected 1 to ${limit} tokens, got ${capacity}.`);
  const regions: Region[] = [];
  const caches = new Map<Step, LayerCache>();
  const shapes = new Map(inputs.map(({ name, shape }) => [name, shape]));
  try {
    for (const step of found.attention) {
      const shape = shapes.get(step.node.input[3])!;
      const kvHeads = attributeInt(step.node, "kv_num_heads", 0);
      const size = shape[3];
      if (typeof size !== "number") throw unsupported("caches of known head size", JSON.stringify(shape));
      const bytes = cacheBytes(kvHeads, size, capacity);
      const pair = [0, 1].map(() => machine.memory.allocate(bytes));
      regions.push(...pair);
      caches.set(step, { k: pair[0].address, v: pair[1].address, capacity });
    }
  } catch (error) {
    for (const region of regions) region.free();
    throw error;
  }
  return run({ machine, plan, found, caches, regions, capacity, check, profile });
}

interface RunInit {
  readonly machine: Machine;
  readonly plan: Plan;
  readonly found: Found;
  readonly caches: ReadonlyMap<Step, LayerCache>;
  readonly regions: readonly Region[];
  readonly capacity: number;
  readonly check: () => void;
  readonly profile: boolean;
}

function run({ machine: m, plan, found, caches, regions, capacity, check, profile }: RunInit): Decoder {
  let length = 0;
  let live = true;
  let recorded: { readonly list: Recording; readonly ids: BigInt64Array; readonly address: number; readonly size: number } | null = null;
  let view: Float32Array = new Float32Array(0);
  const clock = fastest();
  const past = (): number => length;
  const frees = lifetimes(found);
  /** The steps for tokens of `ids`, at once. @returns where the logits of the last one lie */
  const pass = (ids: Value): { address: number; size: number } => {
    const values = new Map<string, Value>([[found.ids, ids]]);
    const read = (name: string): Value | undefined => values.get(name) ?? plan.constants.get(name);
    found.steps.forEach((step, i) => {
      m.name(step.operator);
      const results = decodeStep(m, step, read, { caches, past, last: step.node.output[0] === found.logits });
      m.settle();
      step.node.output.forEach((name, o) => {
        const value = results[o];
        if (value !== undefined && name !== "") values.set(name, value);
      });
      for (const name of frees[i]) {
        const value = values.get(name);
        if (value !== undefined) m.free(value);
        values.delete(name);
      }
    });
    const y = values.get(found.logits) as Value & { address?: number };
    if (y?.address === undefined) throw unsupported("logits made by a kernel", "those of loops");
    const size = y.dims.at(-1)!;
    return { address: y.address + 4 * (y.data.length - size), size };
  };
  const checked = (): void => {
    check();
    if (!live) throw new LowbitError("E_DISPOSED", "decoder: expected one in use, got a disposed one. Make another.");
  };
  const room = (count: number): void => {
    if (length + count > capacity)
      throw new LowbitError(
        "E_SHAPE",
        `decoder: expected at most ${capacity} tokens, got ${length} and ${count} more. Truncate it, or make one with more capacity.`,
      );
  };
  const logitsAt = ({ address, size }: { address: number; size: number }): Float32Array => {
    if (view.buffer !== m.memory.buffer || view.byteOffset !== address || view.length !== size) view = m.memory.floats(address, size);
    return view;
  };
  const chunk = (ids: BigInt64Array): { address: number; size: number } => {
    const value: Value = { type: "int64", dims: [1, ids.length], data: ids };
    const list: Recording = [];
    m.reset();
    if (ids.length === 1) m.record(list);
    try {
      const at = pass(value);
      if (ids.length === 1) recorded = { list, ids, ...at };
      length += ids.length;
      return at;
    } finally {
      m.record(null);
      m.reset();
    }
  };
  const step = (id: number): Float32Array => {
    checked();
    if (!Number.isSafeInteger(id) || id < 0) throw new RangeError(`decoder step: expected a token from 0, got ${id}.`);
    room(1);
    if (recorded === null) return logitsAt(chunk(BigInt64Array.of(BigInt(id))));
    recorded.ids[0] = BigInt(id);
    if (profile) clock.run(recorded.list);
    else for (const call of recorded.list) call.run();
    length++;
    return logitsAt(recorded);
  };
  const prefill = (ids: ArrayLike<number | bigint>): Float32Array => {
    checked();
    if (ids.length === 0) throw new RangeError("decoder prefill: expected at least one token, got none.");
    for (let i = 0; i < ids.length; i++)
      if (typeof ids[i] !== "bigint" && !Number.isSafeInteger(ids[i]))
        throw new RangeError(`decoder prefill ids[${i}]: expected an integer, got ${String(ids[i])}.`);
    room(ids.length);
    if (ids.length === 1) return step(Number(ids[0]));
    const start = length;
    let at = { address: 0, size: 0 };
    try {
      for (let from = 0; from < ids.length; from += CHUNK)
        at = chunk(BigInt64Array.from({ length: Math.min(CHUNK, ids.length - from) }, (_, i) => BigInt(ids[from + i])));
    } catch (error) {
      // all of the tokens or none
      length = start;
      throw error;
    }
    return logitsAt(at);
  };
  const truncate = (n: number): void => {
    checked();
    if (!Number.isSafeInteger(n) || n < 0 || n > length)
      throw new RangeError(`decoder truncate: expected 0 to ${length} tokens, got ${n}.`);
    length = n;
  };
  return {
    get length() {
      return length;
    },
    capacity,
    cacheBytes: regions.reduce((sum, region) => sum + region.bytes, 0),
    prefill,
    step,
    truncate,
    explain() {
      const kernels = new Map<string, number>();
      for (const { operator } of recorded?.list ?? []) kernels.set(operator, (kernels.get(operator) ?? 0) + 1);
      return [...kernels].map(([operator, count]) => ({ operator, kernels: count, ...(profile ? { ms: clock.ms(operator) } : {}) }));
    },
    reset: () => truncate(0),
    async *generate({ prompt, maxTokens = Infinity, sampler = greedy, stop = [], signal } = {}) {
      signal?.throwIfAborted();
      if ((prompt === undefined || prompt.length === 0) && length === 0)
        throw new RangeError("decoder generate: expected a prompt or tokens before, got none.");
      if (prompt === undefined && view.length === 0)
        throw new RangeError("decoder generate: expected a prompt or logits of the last token, got none.");
      let logits = prompt === undefined ? view : prefill(prompt);
      for (let n = 0; n < maxTokens; n++) {
        const id = sampler(logits);
        yield id;
        if (stop.includes(id) || n + 1 >= maxTokens || length >= capacity) return;
        await turn();
        signal?.throwIfAborted();
        logits = step(id);
      }
    },
    dispose() {
      if (!live) return;
      live = false;
      recorded = null;
      for (const region of regions) region.free();
      m.dispose();
    },
  };
}

/** Runs a recording with a clock and keeps the times of the fastest run. */
function fastest(): { run(list: Recording): void; ms(operator: string): number } {
  let best = Infinity;
  let kept: ReadonlyMap<string, number> = new Map();
  return {
    run(list) {
      const times = new Map<string, number>();
      let last = performance.now();
      const begin = last;
      for (const { operator, run: call } of list) {
        call();
        const now = performance.now();
        times.set(operator, (times.get(operator) ?? 0) + now - last);
        last = now;
      }
      if (last - begin >= best) return;
      best = last - begin;
      kept = times;
    },
    ms: (operator) => kept.get(operator) ?? 0,
  };
}

interface Context {
  readonly caches: ReadonlyMap<Step, LayerCache>;
  readonly past: () => number;
  /** It makes the logits: of the last token only. */
  readonly last: boolean;
}

/** One step as a decoder runs it. Every step must end in the arena, or not depend on the tokens: a recording repeats kernels only. */
function decodeStep(
  m: Machine,
  step: Step,
  read: (name: string) => Value | undefined,
  { caches, past, last }: Context,
): readonly (Value | undefined)[] {
  const inputs = step.node.input.map((name) => (name === "" ? undefined : read(name)));
  const cache = caches.get(step);
  if (cache !== undefined) {
    const y = decodeAttention(m, inputs, step.node, cache, past);
    if (y === undefined)
      throw unsupported("attention as its kernel has it (no added bias, heads of whole vectors)", `node ${step.node.name}`);
    return [y];
  }
  if (last && step.layer !== undefined && step.operator !== "Gemm") {
    const y = emitProduct(m, step.layer, inputs[0], step.operator === "com.microsoft.MatMulNBits" ? inputs[5] : undefined, true);
    if (y !== undefined) return [y];
  }
  if (isRotary(step)) {
    const y = emitTurn(m, inputs, step.node, past);
    if (y !== undefined) return [y];
  }
  const lookup = step.rows;
  if (lookup !== undefined && inputs[lookup.ids] !== undefined) {
    const ids = inputs[lookup.ids]!;
    const y = m.slot([...ids.dims, lookup.width]);
    m.call(() => lookup.read(integers(ids), m.memory.floats(y.address, ids.data.length * lookup.width)));
    return [y];
  }
  const { results, kernel } = runStep(m, step, read);
  const dynamic = inputs.some((value) => (value as { address?: number } | undefined)?.address !== undefined);
  if (!kernel && dynamic) throw unsupported("operators with kernels", operatorName(step.node));
  return results;
}
