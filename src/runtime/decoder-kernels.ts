// The core of a decoder on kernels: GroupQueryAttention over caches that lie in the backend's memory, keys and values
// written where they stay; a step of one token, and a whole part of a prompt, is recorded once and repeated: nothing is
// allocated then. Every step of a recording ends in the arena: what would run as loops on something that depends on the
// tokens is refused.
import { LowbitError } from "../../formats/core/errors.ts";
import type { CacheKind, ValueKind } from "../../kernels/wasm/nn/cache.ts";
import type { Region } from "../backends/wasm/memory.ts";
import { attributeInt } from "../onnx/graph/nodes.ts";
import { operatorName } from "../onnx/graph/scopes.ts";
import { biasOf, letGo, putResults, type Step } from "./compile/step.ts";
import {
  dependents,
  find,
  isHead,
  isRotary,
  lifetimes,
  proveLengths,
  tableRows,
  unsupported,
  type Core,
  type DecoderPart,
  type DecoderModel,
  type Found,
  type Input,
} from "./decoder-model.ts";
import { decodeAttention, sideBytes, type CacheSide, type Decoded, type LayerCache } from "./machine/attention.ts";
import { runStep } from "./machine/execute.ts";
import { emitProduct, emitTurn } from "./machine/kernels.ts";
import { isSlot, type Machine, type Recording } from "./machine/machine.ts";
import type { Value } from "./value.ts";
import { integers } from "./value.ts";

/** Tokens of a prompt at once: their activations stay in the processor's caches, and are little beside the weights. */
const CHUNK = 64;

/** What keys and values are kept as. */
export type CacheKinds = readonly [keys: CacheKind, values: ValueKind];

interface Recorded {
  readonly list: Recording;
  readonly ids: BigInt64Array;
  readonly at: Logits;
}

interface Logits {
  readonly address: number;
  readonly size: number;
}

export interface KernelCoreInit extends DecoderModel {
  readonly machine: Machine;
  readonly profile: boolean;
  readonly sequences: number;
}

/**
 * Tokens that the rotary tables of a model hold.
 * @throws LowbitError E_UNSUPPORTED where the model is no decoder for this core
 */
export function kernelModel(model: DecoderModel): { found: Found; limit: number } {
  const found = find(model);
  try {
    proveLengths(model, found);
  } catch (error) {
    if (error instanceof LowbitError && error.code === "E_UNSUPPORTED") throw error;
    throw unsupported("lengths made of the attention mask", (error as Error).message);
  }
  return { found, limit: tableRows(model.plan, found.steps) };
}

/** @throws LowbitError E_DEVICE, E_UNSUPPORTED */
export function kernelCore(
  { machine: m, plan, inputs, profile, sequences }: KernelCoreInit,
  found: Found,
  capacity: number,
  kinds: CacheKinds,
): Core {
  // of several sequences those that rest write behind their last token
  const { caches, regions } = makeCaches(m, inputs, found, sequences, capacity + (sequences > 1 ? 1 : 0), kinds);
  const lengths = new Array<number>(sequences).fill(0);
  const pasts = lengths.map((_, s) => (): number => lengths[s]);
  /** The step of one sequence, by its number, and of all, at the end. */
  const recorded: (Recorded | undefined)[] = [];
  /** Parts of a prompt that are whole, by sequence. */
  const parts: (Recorded | undefined)[] = [];
  let view: Float32Array = new Float32Array(0);
  const clock = fastest();
  const frees = lifetimes(found);
  const tokens = dependents(found);
  /**
   * The steps for tokens of `ids`, at once, a row for each of some sequences. @returns where the logits of the last one
   * lie, of one sequence or all
   */
  const pass = (ids: Value, of: readonly number[]): Logits => {
    const own = {
      caches: new Map([...caches].map(([step, all]) => [step, of.map((s) => ({ cache: all[s], past: pasts[s] }))])),
      pasts: of.map((s) => pasts[s]),
      tokens,
      head: of.length === 1 ? found.logits : undefined,
    };
    const values = new Map<string, Value>([[found.ids, ids]]);
    const read = (name: string): Value | undefined => values.get(name) ?? plan.constants.get(name);
    found.steps.forEach((step, i) => {
      m.name(step.operator);
      const results = decodeStep(m, step, read, own);
      m.settle();
      putResults(values, step.node, results, m.free);
      letGo(values, frees[i], m.free);
    });
    const y = values.get(found.logits);
    if (!isSlot(y)) throw unsupported("logits made by a kernel", "those of loops");
    const size = y.dims.at(-1)!;
    return { address: y.address + 4 * (y.data.length - of.length * size), size };
  };
  const logitsAt = ({ address, size }: Logits): Float32Array => {
    if (view.buffer !== m.memory.buffer || view.byteOffset !== address || view.length !== size) view = m.memory.floats(address, size);
    return view;
  };
  const chunk = (ids: BigInt64Array, of: readonly number[]): Logits => {
    const count = ids.length / of.length;
    const list: Recording = [];
    const isPart = count === CHUNK;
    m.reset();
    if (count === 1 || isPart) m.record(list);
    try {
      const at = pass({ type: "int64", dims: [of.length, count], data: ids }, of);
      if (count === 1) recorded[of.length === 1 ? of[0] : sequences] = { list, ids, at };
      else if (isPart) parts[of[0]] = { list, ids, at };
      return at;
    } finally {
      m.record(null);
      m.reset();
    }
  };
  const repeat = ({ list }: Recorded): void => {
    if (profile) clock.run(list);
    else for (const call of list) call.run();
  };
  return {
    step(id, before, s) {
      lengths[s] = before;
      const known = recorded[s];
      if (known === undefined) return logitsAt(chunk(BigInt64Array.of(BigInt(id)), [s]));
      known.ids[0] = BigInt(id);
      repeat(known);
      return logitsAt(known.at);
    },
    steps(ids, before) {
      before.forEach((n, s) => (lengths[s] = n));
      const known = recorded[sequences];
      let at: Logits;
      if (known === undefined) at = chunk(BigInt64Array.from(ids, BigInt), [...lengths.keys()]);
      else {
        ids.forEach((id, s) => (known.ids[s] = BigInt(id)));
        repeat(known);
        at = known.at;
      }
      return lengths.map((_, s) => m.memory.floats(at.address + 4 * s * at.size, at.size));
    },
    run(ids, before, s) {
      lengths[s] = before;
      let at: Logits = { address: 0, size: 0 };
      for (let from = 0; from < ids.length; from += CHUNK) {
        const part = ids.slice(from, from + CHUNK);
        const known = part.length === CHUNK ? parts[s] : undefined;
        if (known === undefined) at = chunk(BigInt64Array.from(part), [s]);
        else {
          known.ids.set(part);
          for (const call of known.list) call.run();
          at = known.at;
        }
        lengths[s] += part.length;
      }
      return logitsAt(at);
    },
    truncate: () => undefined,
    bytes: () => regions.reduce((sum, region) => sum + region.bytes, 0),
    explain() {
      const kernels = new Map<string, number>();
      for (const { operator } of (recorded.at(-1) ?? recorded[0])?.list ?? []) kernels.set(operator, (kernels.get(operator) ?? 0) + 1);
      return [...kernels].map(([operator, count]): DecoderPart => ({
        operator,
        kernels: count,
        ...(profile ? { ms: clock.ms(operator) } : {}),
      }));
    },
    dispose() {
      recorded.length = parts.length = 0;
      for (const region of regions) region.free();
    },
  };
}

function makeCaches(
  m: Machine,
  inputs: readonly Input[],
  found: Found,
  sequences: number,
  capacity: number,
  kinds: CacheKinds,
): { caches: ReadonlyMap<Step, readonly LayerCache[]>; regions: readonly Region[] } {
  const regions: Region[] = [];
  const caches = new Map<Step, readonly LayerCache[]>();
  const shapes = new Map(inputs.map(({ name, shape }) => [name, shape]));
  try {
    for (const step of found.attention) {
      const shape = shapes.get(step.node.input[3])!;
      const size = shape[3];
      if (typeof size !== "number") throw unsupported("caches of known head size", JSON.stringify(shape));
      const kvHeads = attributeInt(step.node, "kv_num_heads", 0);
      const side = <K extends CacheKind>(kind: K): CacheSide<K> => {
        const bytes = sideBytes(kind, kvHeads, size, capacity);
        const [rows, words] = [bytes.rows, bytes.words].map((count) => (count === 0 ? undefined : m.memory.allocate(count)));
        regions.push(...[rows, words].filter((region) => region !== undefined));
        return { kind, address: rows!.address, words: words?.address ?? 0 };
      };
      const one = (): LayerCache => ({ k: side(kinds[0]), v: side(kinds[1]), capacity });
      caches.set(step, Array.from({ length: sequences }, one));
    }
  } catch (error) {
    for (const region of regions) region.free();
    throw error;
  }
  return { caches, regions };
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
  /** Of the sequences of this pass. */
  readonly caches: ReadonlyMap<Step, readonly Decoded[]>;
  readonly pasts: readonly (() => number)[];
  /** Values that the tokens decide. */
  readonly tokens: ReadonlySet<string>;
  /** The logits, where they are made of the last token only. */
  readonly head: string | undefined;
}

/**
 * One step as a decoder runs it. Every step must end in the arena, or not depend on the tokens: a recording repeats
 * kernels only.
 */
function decodeStep(
  m: Machine,
  step: Step,
  read: (name: string) => Value | undefined,
  { caches, pasts, tokens, head }: Context,
): readonly (Value | undefined)[] {
  const inputs = step.node.input.map((name) => (name === "" ? undefined : read(name)));
  const cache = caches.get(step);
  if (cache !== undefined) {
    const y = decodeAttention(m, inputs, step.node, cache);
    if (y === undefined)
      throw unsupported("attention as its kernel has it (no added bias, heads of whole vectors)", `node ${step.node.name}`);
    return [y];
  }
  if (head !== undefined && isHead(step, head)) {
    const y = emitProduct(m, step.layer, inputs[0], biasOf(step, inputs), true);
    if (y !== undefined) return [y];
  }
  if (isRotary(step)) {
    const y = emitTurn(m, inputs, step.node, pasts);
    if (y !== undefined) return [y];
  }
  const lookup = step.rows;
  const ids = lookup === undefined ? undefined : inputs[lookup.ids];
  if (lookup !== undefined && ids !== undefined) {
    const y = m.slot([...ids.dims, lookup.width]);
    m.call(() => lookup.read(integers(ids), m.memory.floats(y.address, ids.data.length * lookup.width)));
    return [y];
  }
  const { results, kernel } = runStep(m, step, read);
  if (!kernel && step.node.output.some((name) => tokens.has(name))) throw unsupported("operators with kernels", operatorName(step.node));
  return results;
}
