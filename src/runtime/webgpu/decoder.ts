// A decoder on a device: GroupQueryAttention over caches that lie there, keys and values written where they stay. A
// step of one token is recorded once and submitted again, one command buffer a token, with other numbers in its
// uniforms; what goes up is a row of the embedding, what comes back the logits.
import { LowbitError } from "../../../formats/core/errors.ts";
import { turn } from "../../backends/turn.ts";
import type { GpuRuntime } from "../../../kernels/wgsl/runtime.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import type { Plan } from "../compile/plan.ts";
import { runNode, type Step } from "../compile/step.ts";
import {
  checkCapacity,
  checkCut,
  checkRoom,
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

/** `Decoder` on a device: results come when the device has made them. */
export interface DeviceDecoder extends Omit<Decoder, "prefill" | "step" | "steps" | "lengths" | "truncate"> {
  /**
   * Runs tokens and appends them; calls wait for each other. @returns the logits after the last one
   * @throws (rejects) RangeError for no or strange tokens; LowbitError E_SHAPE where they do not fit, E_DISPOSED,
   * E_DEVICE
   */
  prefill(ids: ArrayLike<number | bigint>): Promise<Float32Array>;
  /** `prefill` of one token. */
  step(id: number): Promise<Float32Array>;
  /** Forgets all tokens but the first n. @throws RangeError */
  truncate(n: number): void;
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

function makeCaches(runtime: GpuRuntime, inputs: readonly Input[], found: Found, capacity: number): ReadonlyMap<Step, DeviceCache> {
  const shapes = new Map(inputs.map(({ name, shape }) => [name, shape]));
  const caches = new Map<Step, DeviceCache>();
  const free = (): void => {
    for (const { k, v } of caches.values()) for (const { buffer } of [k, v]) runtime.release(buffer);
  };
  try {
    for (const step of found.attention) {
      const size = shapes.get(step.node.input[3])![3];
      if (typeof size !== "number") throw unsupported("caches of known head size", String(size));
      const dims = [1, attributeInt(step.node, "kv_num_heads", 0), capacity, size];
      const count = dims.reduce((a, b) => a * b, 1);
      const side = (label: string): Tensor => ({
        type: "float32",
        dims,
        size: count,
        offset: 0,
        buffer: runtime.allocate(4 * count, label),
      });
      caches.set(step, { k: side("keys"), v: side("values"), capacity });
    }
  } catch (error) {
    free();
    throw error;
  }
  return caches;
}

/** A lookup of a recording: the row of each next token goes where the first one's lay. */
interface Lookup {
  readonly rows: NonNullable<Step["rows"]>;
  readonly to: Tensor;
  readonly row: Float32Array;
}

interface Pass {
  readonly logits: Tensor;
  readonly lookups: readonly Lookup[];
}

/** Records the steps for tokens after `past()` others. */
function record(r: Recorder, { plan, found, caches, tokens, frees }: Core, ids: BigInt64Array, past: () => number): Pass {
  const values = new Map<string, Held>([[found.ids, { type: "int64", dims: [1, ids.length], data: ids }]]);
  const read = (name: string): Held | undefined => values.get(name) ?? plan.constants.get(name);
  const lookups: Lookup[] = [];
  const one = (step: Step): readonly (Held | undefined)[] => {
    const inputs = step.node.input.map((name) => (name === "" ? undefined : read(name)));
    const cache = caches.get(step);
    if (cache !== undefined) {
      const y = decodeAttention(r, inputs, step.node, cache, past);
      if (y === null) throw unsupported("attention as its kernel has it (no added bias, heads of at most 256)", `node ${step.node.name}`);
      return [y];
    }
    if (step.node.output[0] === found.logits && step.layer !== undefined && step.operator !== "Gemm") {
      const bias = step.operator === "com.microsoft.MatMulNBits" ? inputs[5] : undefined;
      const y = emitLayer(r, deviceLayer(step.layer), inputs[0], bias, true);
      if (y !== undefined) return [y];
    }
    if (isRotary(step)) {
      const y = emitRotary(r, inputs, step.node, past);
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
  return { logits: r.view(logits, [size], logits.size - size), lookups };
}

interface Core {
  readonly plan: Plan;
  readonly found: Found;
  readonly caches: ReadonlyMap<Step, DeviceCache>;
  readonly tokens: ReadonlySet<string>;
  readonly frees: readonly (readonly string[])[];
}

/** @throws LowbitError E_UNSUPPORTED where the model is no decoder for a device, E_DEVICE; RangeError; TypeError */
export function createDeviceDecoder({ runtime, plan, inputs, outputNames, options, check }: DeviceDecoderInit): DeviceDecoder {
  if (options.cache !== undefined && options.cache !== "float32")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `decoder cache: expected float32 on a WebGPU backend, got ${String(options.cache)}. Load the model with backend: await wasm() for smaller caches.`,
    );
  if (options.sequences !== undefined && options.sequences !== 1)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `decoder sequences: expected 1 on a WebGPU backend, got ${String(options.sequences)}. Make a decoder for each, or load the model with backend: await wasm().`,
    );
  const { found, limit } = kernelModel(plan, inputs, outputNames);
  checkCapacity(options.capacity, limit);
  const capacity = options.capacity ?? defaultCapacity(limit);
  const caches = makeCaches(runtime, inputs, found, capacity);
  const r = createRecorder(runtime);
  for (const value of plan.constants.values()) r.constant(value);
  const core: Core = { plan, found, caches, tokens: dependents(found), frees: lifetimes(found) };
  let recorded: { readonly recording: Recording; readonly pass: Pass } | null = null;
  let length = 0;
  let live = true;
  let logits: Float32Array | null = null;
  let last: Promise<unknown> = Promise.resolve();
  const past = (): number => length;
  const checked = (): void => {
    check();
    if (!live) throw disposedDecoder();
  };
  const single = async (id: bigint): Promise<Float32Array> => {
    if (recorded === null) {
      try {
        const pass = record(r, core, BigInt64Array.of(id), past);
        recorded = { pass, recording: r.keep() };
      } finally {
        r.reset();
      }
    }
    const { recording, pass } = recorded;
    for (const { rows, to, row } of pass.lookups) {
      rows.read([Number(id)], row);
      r.rewrite(to, row);
    }
    return (await r.repeat(recording, [pass.logits]))[0];
  };
  const several = async (ids: BigInt64Array): Promise<Float32Array> => {
    try {
      const pass = record(r, core, ids, past);
      return (await r.flush([pass.logits]))[0];
    } finally {
      r.reset();
    }
  };
  const append = async (ids: readonly bigint[]): Promise<Float32Array> => {
    checked();
    checkRoom(length, ids.length, capacity);
    const before = length;
    let made: Float32Array | null = null;
    try {
      for (let from = 0; from < ids.length; from += CHUNK) {
        const part = ids.slice(from, from + CHUNK);
        made = part.length === 1 ? await single(part[0]) : await several(BigInt64Array.from(part));
        length += part.length;
      }
    } catch (error) {
      length = before;
      throw error;
    }
    logits = made;
    return made!;
  };
  /** One after the other. */
  const queued = <T>(work: () => Promise<T>): Promise<T> => {
    const next = last.then(work);
    last = next.catch(() => undefined);
    return next;
  };
  const prefill = async (ids: ArrayLike<number | bigint>): Promise<Float32Array> => {
    checked();
    const list = checkTokens(ids);
    return queued(() => append(list));
  };
  const step = async (id: number): Promise<Float32Array> => {
    checked();
    checkToken(id);
    return queued(() => append([BigInt(id)]));
  };
  const truncate = (n: number): void => {
    checked();
    checkCut(n, length);
    if (n < length) logits = null;
    length = n;
  };
  return {
    get length() {
      return length;
    },
    capacity,
    get cacheBytes() {
      return [...caches.values()].reduce((sum, { k, v }) => sum + 4 * (k.size + v.size), 0);
    },
    prefill,
    step,
    truncate,
    reset: () => truncate(0),
    explain() {
      const kernels = new Map<string, number>();
      for (const { operator } of recorded?.recording ?? []) kernels.set(operator, (kernels.get(operator) ?? 0) + 1);
      return [...kernels].map(([operator, count]): DecoderPart => ({ operator, kernels: count }));
    },
    async *generate({ prompt, maxTokens = Infinity, sampler = greedy, stop = [], signal } = {}) {
      signal?.throwIfAborted();
      if (prompt === undefined && logits === null) throw noPrompt();
      let next = prompt === undefined ? logits! : await prefill(prompt);
      for (let n = 0; n < maxTokens; n++) {
        const id = sampler(next);
        yield id;
        if (stop.includes(id) || n + 1 >= maxTokens || length >= capacity) return;
        await turn();
        signal?.throwIfAborted();
        next = await step(id);
      }
    },
    dispose() {
      if (!live) return;
      live = false;
      // what was submitted keeps its buffers until it is done
      r.dispose();
      for (const { k, v } of caches.values()) for (const { buffer } of [k, v]) runtime.release(buffer);
    },
  };
}
