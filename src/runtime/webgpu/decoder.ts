// A decoder on a device: GroupQueryAttention over caches that lie there, keys and values written where they stay. A
// step of one token is recorded once and submitted again, one command buffer a token, with other numbers in its
// uniforms; what goes up is a row of the embedding, what comes back the logits.
import { hasScales } from "../../../kernels/wasm/nn/cache.ts";
import type { GpuBuffer } from "../../../kernels/wgsl/api.ts";
import { perWord } from "../../../kernels/wgsl/nn/cache.ts";
import { turn } from "../../backends/turn.ts";
import type { GpuRuntime } from "../../../kernels/wgsl/runtime.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import type { Plan } from "../compile/plan.ts";
import { runNode, type Step } from "../compile/step.ts";
import {
  cacheOf,
  checkCapacity,
  checkCut,
  checkRoom,
  checkSequence,
  checkSteps,
  checkToken,
  checkTokens,
  defaultCapacity,
  disposedDecoder,
  noPrompt,
  type Decoder,
  type DecoderOptions,
} from "../decoder.ts";
import { kernelModel } from "../decoder-kernels.ts";
import { isRotary, lifetimes, readsOf, unsupported, type DecoderPart, type Found, type Input } from "../decoder-model.ts";
import { greedy } from "../sample.ts";
import { integers, type Value } from "../value.ts";
import { decodeAttention, type DeviceCache } from "./attention.ts";
import { emitLayer } from "./emit.ts";
import { deviceEmit } from "./execute.ts";
import { deviceLayer } from "./layers.ts";
import { emitRotary } from "./moves.ts";
import { createRecorder, isTensor, type Held, type Recorder, type Recording, type Tensor } from "./recorder.ts";

/** `Decoder` on a device: results come when the device has made them, and stay. */
export interface DeviceDecoder extends Omit<Decoder, "prefill" | "step" | "steps"> {
  /**
   * Runs tokens and appends them; calls wait for each other. @returns the logits after the last one
   * @param sequence default 0
   * @throws (rejects) RangeError for no or strange tokens or another sequence; LowbitError E_SHAPE where they
   * do not fit, E_DISPOSED, E_DEVICE
   */
  prefill(ids: ArrayLike<number | bigint>, sequence?: number): Promise<Float32Array>;
  /** `prefill` of one token. */
  step(id: number, sequence?: number): Promise<Float32Array>;
  /**
   * A token for each sequence in one pass, which reads the weights once; null: the sequence rests. @returns the logits
   * of each, null for those that rest
   * @throws (rejects) as `prefill`
   */
  steps(ids: readonly (number | null)[]): Promise<(Float32Array | null)[]>;
}

export interface DeviceDecoderInit {
  readonly runtime: GpuRuntime;
  readonly plan: Plan;
  readonly inputs: readonly Input[];
  readonly outputNames: readonly string[];
  readonly options: DecoderOptions;
  readonly check: () => void;
}

/** Tokens of a prompt at once. */
const CHUNK = 64;

/** Values that the numbers of the tokens decide, not only how many there are. */
function dependents({ steps, ids }: Found): Set<string> {
  const names = new Set([ids]);
  for (const step of steps)
    if (step.operator !== "Shape" && step.operator !== "Size" && readsOf(step).some((name) => names.has(name)))
      for (const name of step.node.output) names.add(name);
  return names;
}

/** The caches of each step, one for each sequence, and their buffers. */
function makeCaches(
  { runtime, inputs }: DeviceDecoderInit,
  found: Found,
  capacity: number,
  { kinds, sequences }: ReturnType<typeof cacheOf>,
): { readonly caches: ReadonlyMap<Step, readonly DeviceCache[]>; readonly buffers: readonly GpuBuffer[] } {
  const shapes = new Map(inputs.map(({ name, shape }) => [name, shape]));
  const caches = new Map<Step, readonly DeviceCache[]>();
  const buffers: GpuBuffer[] = [];
  const words = (count: number, label: string): Tensor => {
    const buffer = runtime.allocate(4 * count, label);
    buffers.push(buffer);
    return { type: "float32", dims: [count], size: count, offset: 0, buffer };
  };
  try {
    for (const step of found.attention) {
      const size = shapes.get(step.node.input[3])![3];
      if (typeof size !== "number") throw unsupported("caches of known head size", String(size));
      const rows = attributeInt(step.node, "kv_num_heads", 0) * capacity;
      const one = (): DeviceCache => {
        const [k, v] = kinds.map((kind) => words(Math.ceil((rows * size) / perWord(kind)), "cache"));
        const scales = kinds.map((kind) => (hasScales(kind) ? words(rows, "cache scales") : undefined));
        return { k, v, capacity, kinds, words: [scales[0], scales[1]] };
      };
      caches.set(step, Array.from({ length: sequences }, one));
    }
  } catch (error) {
    for (const buffer of buffers) runtime.release(buffer);
    throw error;
  }
  return { caches, buffers };
}

/** A lookup of a recording: the row of each next token goes where the first one's lay. */
interface Lookup {
  readonly rows: NonNullable<Step["rows"]>;
  readonly to: Tensor;
  readonly row: Float32Array;
}

interface Pass {
  /** Of the last token of each sequence. */
  readonly logits: readonly Tensor[];
  readonly lookups: readonly Lookup[];
}

/** Records the steps for tokens of some sequences, as many of each. */
function record(r: Recorder, { plan, found, caches, tokens, frees, pasts }: Core, ids: BigInt64Array, of: readonly number[]): Pass {
  const values = new Map<string, Held>([[found.ids, { type: "int64", dims: [of.length, ids.length / of.length], data: ids }]]);
  const own = of.map((s) => pasts[s]);
  const read = (name: string): Held | undefined => values.get(name) ?? plan.constants.get(name);
  const lookups: Lookup[] = [];
  const one = (step: Step): readonly (Held | undefined)[] => {
    const inputs = step.node.input.map((name) => (name === "" ? undefined : read(name)));
    const all = caches.get(step);
    if (all !== undefined) {
      const y = decodeAttention(r, inputs, step.node, of.map((s, i) => ({ cache: all[s], past: own[i] }))); // prettier-ignore
      if (y === null)
        throw unsupported(
          "attention as its kernel has it (no added bias, heads of at most 256, of whole words of a cache)",
          `node ${step.node.name}`,
        );
      return [y];
    }
    if (of.length === 1 && step.node.output[0] === found.logits && step.layer !== undefined && step.operator !== "Gemm") {
      const bias = step.operator === "com.microsoft.MatMulNBits" ? inputs[5] : undefined;
      const y = emitLayer(r, deviceLayer(step.layer), inputs[0], bias, true);
      if (y !== undefined) return [y];
    }
    if (isRotary(step)) {
      const y = emitRotary(r, inputs, step.node, own);
      if (y !== undefined) return [y];
    }
    const { rows } = step;
    const wanted = rows === undefined ? undefined : inputs[rows.ids];
    if (rows !== undefined && wanted !== undefined && !isTensor(wanted)) {
      const row = new Float32Array(wanted.data.length * rows.width);
      rows.read(integers(wanted), row);
      const to = r.upload(row, [...wanted.dims, rows.width]);
      lookups.push({ rows, to, row });
      return [to];
    }
    const made = deviceEmit(step)?.(r, inputs, step.node);
    if (made !== undefined) return made;
    if (inputs.some(isTensor) || step.node.input.some((name) => tokens.has(name)))
      throw unsupported("operators with kernels on the device", operatorName(step.node));
    return runNode(step.run, step.node, (name) => read(name) as Value | undefined);
  };
  found.steps.forEach((step, i) => {
    r.name(step.operator);
    const results = one(step);
    step.node.output.forEach((name, o) => {
      const value = results[o];
      if (value === undefined) return;
      if (name === "") r.free(value);
      else values.set(name, value);
    });
    for (const name of frees[i]) {
      const value = values.get(name);
      if (value !== undefined) r.free(value);
      values.delete(name);
    }
  });
  const logits = values.get(found.logits);
  if (!isTensor(logits)) throw unsupported("logits made by a kernel", "those of loops");
  const size = logits.dims.at(-1)!;
  const each = logits.size / of.length;
  return { logits: of.map((_, i) => r.view(logits, [size], (i + 1) * each - size)), lookups };
}

interface Core {
  readonly plan: Plan;
  readonly found: Found;
  readonly caches: ReadonlyMap<Step, readonly DeviceCache[]>;
  /** Tokens in each sequence. */
  readonly pasts: readonly (() => number)[];
  readonly tokens: ReadonlySet<string>;
  readonly frees: readonly (readonly string[])[];
}

/** @throws LowbitError E_UNSUPPORTED where the model is no decoder for a device, E_DEVICE; RangeError; TypeError */
export function createDeviceDecoder(init: DeviceDecoderInit): DeviceDecoder {
  const { runtime, plan, inputs, outputNames, options, check } = init;
  const kept = cacheOf(options);
  const { sequences } = kept;
  const { found, limit } = kernelModel(plan, inputs, outputNames);
  checkCapacity(options.capacity, limit);
  const capacity = options.capacity ?? defaultCapacity(limit);
  // of several sequences those that rest write behind their last token
  const { caches, buffers } = makeCaches(init, found, capacity + (sequences > 1 ? 1 : 0), kept);
  const r = createRecorder(runtime);
  for (const value of plan.constants.values()) r.constant(value);
  const lengths = new Array<number>(sequences).fill(0);
  const pasts = lengths.map((_, s) => (): number => lengths[s]);
  const core: Core = { plan, found, caches, pasts, tokens: dependents(found), frees: lifetimes(found) };
  /** The step of one sequence, by its number, and of all, at the end. */
  const recorded: ({ readonly recording: Recording; readonly pass: Pass } | undefined)[] = [];
  let live = true;
  const logits = new Array<Float32Array | null>(sequences).fill(null);
  let last: Promise<unknown> = Promise.resolve();
  const checked = (sequence: number): void => {
    check();
    if (!live) throw disposedDecoder();
    checkSequence(sequence, lengths);
  };
  /** A token of each of these sequences: one, or all. */
  const together = async (ids: readonly number[], of: readonly number[]): Promise<Float32Array[]> => {
    const at = of.length === 1 ? of[0] : sequences;
    if (recorded[at] === undefined) {
      try {
        const pass = record(r, core, BigInt64Array.from(ids, BigInt), of);
        recorded[at] = { pass, recording: r.keep() };
      } finally {
        r.reset();
      }
    }
    const { recording, pass } = recorded[at];
    for (const { rows, to, row } of pass.lookups) {
      rows.read(ids, row);
      r.rewrite(to, row);
    }
    return r.repeat(recording, pass.logits);
  };
  const several = async (ids: BigInt64Array, sequence: number): Promise<Float32Array> => {
    try {
      const pass = record(r, core, ids, [sequence]);
      return (await r.flush(pass.logits))[0];
    } finally {
      r.reset();
    }
  };
  const append = async (ids: readonly bigint[], sequence: number): Promise<Float32Array> => {
    checked(sequence);
    checkRoom(lengths[sequence], ids.length, capacity);
    const before = lengths[sequence];
    let made: Float32Array | null = null;
    try {
      for (let from = 0; from < ids.length; from += CHUNK) {
        const part = ids.slice(from, from + CHUNK);
        if (part.length === 1) [made] = await together([Number(part[0])], [sequence]);
        else made = await several(BigInt64Array.from(part), sequence);
        lengths[sequence] += part.length;
      }
    } catch (error) {
      lengths[sequence] = before;
      throw error;
    }
    return (logits[sequence] = made!);
  };
  /** One after the other. */
  const queued = <T>(work: () => Promise<T>): Promise<T> => {
    const next = last.then(work);
    last = next.catch(() => undefined);
    return next;
  };
  const prefill = async (ids: ArrayLike<number | bigint>, sequence = 0): Promise<Float32Array> => {
    checked(sequence);
    const list = checkTokens(ids);
    return queued(() => append(list, sequence));
  };
  const step = async (id: number, sequence = 0): Promise<Float32Array> => {
    checked(sequence);
    checkToken(id);
    return queued(() => append([BigInt(id)], sequence));
  };
  const stepAll = async (ids: readonly (number | null)[]): Promise<(Float32Array | null)[]> => {
    checked(0);
    ids.forEach((id, s) => {
      if (id !== null) checkRoom(lengths[s], 1, capacity);
    });
    if (sequences === 1) return ids[0] === null ? [null] : [await append([BigInt(ids[0])], 0)];
    // one that rests runs as well: what it writes lies behind its last token
    const made = await together(ids.map((id) => id ?? 0), [...lengths.keys()]); // prettier-ignore
    return ids.map((id, s) => {
      if (id !== null) lengths[s]++;
      return (logits[s] = id === null ? null : made[s]);
    });
  };
  const steps = async (ids: readonly (number | null)[]): Promise<(Float32Array | null)[]> => {
    checked(0);
    checkSteps(ids, sequences);
    return queued(() => stepAll([...ids]));
  };
  const truncate = (n: number, sequence = 0): void => {
    checked(sequence);
    checkCut(n, lengths[sequence]);
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
      return [...caches.values()]
        .flat()
        .reduce((sum, { k, v, words }) => sum + [k, v, ...words].reduce((a, b) => a + 4 * (b?.size ?? 0), 0), 0);
    },
    prefill,
    step,
    steps,
    truncate,
    reset: () => lengths.forEach((_, s) => truncate(0, s)),
    explain() {
      const kernels = new Map<string, number>();
      for (const { operator } of (recorded.at(-1) ?? recorded[0])?.recording ?? []) kernels.set(operator, (kernels.get(operator) ?? 0) + 1);
      return [...kernels].map(([operator, count]): DecoderPart => ({ operator, kernels: count }));
    },
    async *generate({ prompt, maxTokens = Infinity, sampler = greedy, stop = [], signal, sequence = 0 } = {}) {
      signal?.throwIfAborted();
      checked(sequence);
      if (prompt === undefined && logits[sequence] === null) throw noPrompt();
      let next = prompt === undefined ? logits[sequence]! : await prefill(prompt, sequence);
      for (let n = 0; n < maxTokens; n++) {
        const id = sampler(next);
        yield id;
        if (stop.includes(id) || n + 1 >= maxTokens || lengths[sequence] >= capacity) return;
        await turn();
        signal?.throwIfAborted();
        next = await step(id, sequence);
      }
    },
    dispose() {
      if (!live) return;
      live = false;
      // what was submitted keeps its buffers until it is done
      r.dispose();
      for (const buffer of buffers) runtime.release(buffer);
    },
  };
}
