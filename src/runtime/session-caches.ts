// Keys and values that go from run to run of a session, as text generation feeds them: what a run gives as present and
// the next takes as past stays in the backend's memory (machine/sequence.ts). The tensors that leave copy their data
// when it is read; one that was read, or is older than the last run, is fed like any other. float16 caches are float32
// there, rounded at the end of a run: the numbers are those of caches that left and came back.
import type { Plan } from "./compile/plan.ts";
import { isKept, type Kept } from "./machine/kept.ts";
import type { Machine } from "./machine/machine.ts";
import { createSequence, presentOf, type CachePair, type Sequence } from "./machine/sequence.ts";
import { narrow, type RuntimeTensor, type Value, type ValueMetadata } from "./value.ts";

/** Sequences of a session that stay at once: more are copied out of the backend's memory, the oldest first. */
const MOST = 2;

const values = new WeakMap<object, Kept>();

/** Whether a tensor's data has not been read: it is in the backend's memory. */
export const isHeld = (tensor: object): boolean => values.has(tensor);

/** What a tensor of an earlier run is in the backend's memory; undefined for others. */
export const heldValue = (tensor: object): Value | undefined => values.get(tensor);

function tensorOf(value: Kept, half: boolean, owner: object): RuntimeTensor {
  let own: RuntimeTensor["data"] | undefined;
  const tensor: RuntimeTensor = {
    type: half ? "float16" : "float32",
    dims: [...value.dims],
    // the caller's own from the first look on: it may be written to
    get data() {
      if (own === undefined) {
        own = half ? narrow(value.data as Float32Array) : value.data;
        values.delete(tensor);
        owners.delete(tensor);
      }
      return own;
    },
  };
  values.set(tensor, value);
  owners.set(tensor, owner);
  return tensor;
}

/** Keeps an object for as long as any tensor of its sequence lives. */
const owners = new WeakMap<object, object>();

interface Held {
  readonly sequence: Sequence;
  /** Dead when no tensor of the sequence lives any more. */
  owner: WeakRef<object>;
}

export interface SessionCaches {
  /** The sequence that a run goes on with, or begins; null where its caches are others. */
  begin(fed: ReadonlyMap<string, Value>, fetches: readonly string[]): Sequence | null;
  /** The run's caches as tensors by name; null where they were not made in place. */
  end(sequence: Sequence, read: (name: string) => Value | undefined): ReadonlyMap<string, RuntimeTensor> | null;
  /** A run failed: a sequence that it began is given back. */
  failed(sequence: Sequence): void;
  release(): void;
}

function pairsOf(inputs: readonly ValueMetadata[], outputNames: readonly string[]): CachePair[] {
  const outputs = new Set(outputNames);
  const pairs: CachePair[] = [];
  for (const { name, type, shape } of inputs) {
    const output = presentOf(name, outputs);
    if (output === undefined) continue;
    const [, heads, , size] = shape;
    const half = type === "float16";
    if ((type !== "float32" && !half) || shape.length !== 4 || typeof heads !== "number" || typeof size !== "number") return [];
    pairs.push({ input: name, output, heads, size, fixed: /encoder|cross/.test(name), half });
  }
  return pairs;
}

/** @returns null for models without caches from run to run */
export function sessionCaches(
  machine: Machine,
  plan: Plan,
  inputs: readonly ValueMetadata[],
  outputNames: readonly string[],
): SessionCaches | null {
  const pairs = pairsOf(inputs, outputNames);
  if (pairs.length === 0) return null;
  const held: Held[] = [];
  /** Whether this model's steps keep caches in place, as far as is known. */
  let able = true;
  const give = (at: number): void => {
    const [{ sequence, owner }] = held.splice(at, 1);
    sequence.free(owner.deref() !== undefined);
  };
  return {
    begin(fed, fetches) {
      if (!able || !pairs.every(({ output }) => fetches.includes(output))) return null;
      const past = pairs.map(({ input }) => fed.get(input)!);
      const at = held.findIndex(({ sequence }) => {
        const own = sequence.past();
        return pairs.every(({ input }, i) => {
          const value = past[i];
          const mine = own.get(input)!;
          return isKept(value) && value.cache === mine.cache && value.dims[2] === mine.dims[2];
        });
      });
      if (at >= 0) {
        // the last used stays longest
        held.push(...held.splice(at, 1));
        return held.at(-1)!.sequence;
      }
      if (past.some(({ dims }) => dims[0] !== 1 || dims[2] !== 0)) return null;
      while (held.length >= MOST) give(0);
      const sequence = createSequence(machine, plan, pairs);
      held.push({ sequence, owner: new WeakRef({}) });
      return sequence;
    },
    end(sequence, read) {
      const at = held.findIndex((one) => one.sequence === sequence);
      const first = sequence.length === 0;
      if (!sequence.fits(read) || !sequence.take(read)) {
        able = false;
        give(at);
        return null;
      }
      const owner = held[at].owner.deref() ?? {};
      held[at].owner = new WeakRef(owner);
      const past = sequence.past();
      const isOwn = (value: Value | undefined, input: string): boolean => isKept(value) && value.cache === past.get(input)!.cache;
      const made = pairs.filter(({ fixed, input, output }) => first || fixed !== true || isOwn(read(output), input));
      return new Map(made.map(({ input, output, half }) => [output, tensorOf(past.get(input)!, half === true, owner)]));
    },
    failed(sequence) {
      if (sequence.length > 0) return;
      const at = held.findIndex((one) => one.sequence === sequence);
      if (at >= 0) give(at);
    },
    release() {
      while (held.length > 0) give(0);
    },
  };
}
