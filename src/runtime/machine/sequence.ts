// The caches of one sequence of a model that takes past keys and values and gives present ones, both kept in place: new
// tokens are appended, attention reads the rest where it lies.
import { attributeInt } from "../../onnx/graph/nodes.ts";
import type { Plan } from "../compile/plan.ts";
import type { Step } from "../compile/step.ts";
import { integers, type Value } from "../value.ts";
import { decodeAttention } from "./attention.ts";
import type { Execution } from "./execute.ts";
import { isKept, keptCache, type Kept, type KeptCache } from "./kept.ts";
import type { Machine } from "./machine.ts";

/** A cache of a model: the input that takes it and the output that gives it, [1, heads, tokens, size]. */
export interface CachePair {
  readonly input: string;
  readonly output: string;
  readonly heads: number;
  readonly size: number;
  /** Made by the first run and read by the others: keys and values of an encoder's result. */
  readonly fixed?: boolean;
  /** It leaves and comes as float16: what a run reads of earlier ones is rounded, as if it had left. */
  readonly half?: boolean;
}

const PAST = /^past_key_values?\.|^past_/;

/** The output that becomes an input: past_key_values.0.key from present.0.key or present_key_values.0.key. */
export const presentOf = (name: string, outputs: ReadonlySet<string>): string | undefined =>
  PAST.test(name)
    ? [name.replace("past_key_values", "present"), name.replace("past", "present"), name.replace(/^past_/, "present_")].find(
        (other) => other !== name && outputs.has(other),
      )
    : undefined;

export interface Sequence {
  /** Tokens in it. */
  readonly length: number;
  readonly bytes: number;
  /** Its caches as inputs. */
  past(): Map<string, Kept>;
  /** Runs the steps that join a cache with new tokens. */
  readonly instead: NonNullable<Execution["instead"]>;
  /** Whether a run made caches of this kind: float32 of the same heads, as many tokens in all. */
  fits(read: (name: string) => Value | undefined): boolean;
  /**
   * Takes what a run made of its caches, where it fits. The first run may make them anywhere: they are copied.
   * @returns false where a later one did
   */
  take(read: (name: string) => Value | undefined): boolean;
  truncate(tokens: number): void;
  /** Gives the memory back; values of its caches stay readable where `keep` says so. */
  free(keep?: boolean): void;
}

/** Joins the past of a cache with new tokens. */
export const isJoin = ({ operator, node }: Step, { input, output }: CachePair): boolean => {
  const axis = attributeInt(node, "axis", 0);
  return (
    operator === "Concat" && node.input.length === 2 && node.input[0] === input && node.output[0] === output && (axis === 2 || axis === -2)
  );
};

const GROUPED = "com.microsoft.GroupQueryAttention";

/** @param most tokens that it will ever hold */
export function createSequence(machine: Machine, plan: Plan, pairs: readonly CachePair[], most?: number): Sequence {
  const caches = pairs.map(({ heads, size }) => keptCache(machine.memory, heads, size, most));
  const byInput = new Map(pairs.map(({ input }, i) => [input, caches[i]]));
  const joins = new Map<Step, KeptCache>();
  for (const step of plan.steps) for (const [i, pair] of pairs.entries()) if (isJoin(step, pair)) joins.set(step, caches[i]);
  let length = 0;
  /** Tokens of caches that are made once. */
  const fixed = pairs.map(() => 0);
  const tokensOf = (i: number): number => (pairs[i].fixed === true ? fixed[i] : length);
  const join = (cache: KeptCache, given: Value | undefined): Kept[] | undefined => {
    if (given?.type !== "float32" || given.dims.length !== 4) return undefined;
    const [batch, heads, tokens, size] = given.dims;
    if (batch !== 1 || heads !== cache.heads || size !== cache.size) return undefined;
    cache.append(length, given);
    return [cache.value(length + tokens)];
  };
  const grouped = ({ node }: Step, read: (name: string) => Value | undefined): readonly Value[] | undefined => {
    const [k, v] = [byInput.get(node.input[3]), byInput.get(node.input[4])];
    const [lengths, total] = [read(node.input[5]), read(node.input[6])];
    // quantized caches (inputs of their scales) and positions of one's own are the plain run's
    const others = node.input.some((name, i) => name !== "" && (i === 9 || i > 11));
    if (k === undefined || v === undefined || lengths === undefined || total === undefined || others) return undefined;
    const inputs = node.input.map((name) => (name === "" ? undefined : read(name)));
    const count = inputs[0]?.dims[1] ?? 0;
    const all = length + count;
    if (count === 0 || integers(total)[0] !== all || integers(lengths).join() !== String(all - 1)) return undefined;
    const table = attributeInt(node, "do_rotary", 0) === 1 ? (inputs[7]?.dims[0] ?? 0) : Infinity;
    if (all > table) return undefined;
    for (const cache of [k, v]) cache.reserve(length, all);
    const side = ({ address }: KeptCache) => ({ kind: "float32" as const, address, words: 0 });
    const y = decodeAttention(machine, inputs, node, [{ cache: { k: side(k), v: side(v), capacity: k.room! }, past: () => length }]);
    return y && [y, k.value(all), v.value(all)];
  };
  return {
    get length() {
      return length;
    },
    get bytes() {
      return caches.reduce((sum, { bytes }) => sum + bytes, 0);
    },
    past: () => new Map(pairs.map(({ input }, i) => [input, caches[i].value(tokensOf(i))])),
    instead(step, read) {
      const cache = joins.get(step);
      if (cache !== undefined) return join(cache, read(step.node.input[1]));
      return step.operator === GROUPED ? grouped(step, read) : undefined;
    },
    fits(read) {
      const made = pairs.filter(({ fixed }) => fixed !== true || length === 0);
      const total = read(made.find(({ fixed }) => fixed !== true)?.output ?? "")?.dims[2];
      return made.every(({ output, heads, size, fixed }) => {
        const value = read(output);
        if (value?.type !== "float32" || value.dims.length !== 4) return false;
        return value.dims.join() === [1, heads, fixed === true ? value.dims[2] : total, size].join();
      });
    },
    take(read) {
      const first = length === 0;
      let total = length;
      let stayed = true;
      for (const [i, pair] of pairs.entries()) {
        if (pair.fixed === true && !first) continue;
        const value = read(pair.output)!;
        const tokens = value.dims[2];
        if (pair.fixed === true) fixed[i] = tokens;
        else total = tokens;
        const isOwn = isKept(value) && value.cache === caches[i];
        if (!isOwn) {
          stayed &&= first;
          caches[i].append(0, value);
        }
        if (pair.half === true) caches[i].round(isOwn ? length : 0, tokens);
      }
      length = total;
      return stayed;
    },
    truncate(tokens) {
      // what lies behind is overwritten
      length = Math.min(length, tokens);
    },
    free(keep = false) {
      for (const [i, cache] of caches.entries()) cache.free(keep ? tokensOf(i) : 0);
    },
  };
}
