// A decoder on a device whose attention is GroupQueryAttention over caches that lie there, keys and values written
// where they stay. A step of one token is recorded once and submitted again, one command buffer a token, with other
// numbers in its uniforms; what goes up is a row of the embedding, what comes back the logits.
import { hasScales } from "../../../kernels/wasm/nn/cache.ts";
import type { GpuBuffer } from "../../../kernels/wgsl/api.ts";
import { perWord } from "../../../kernels/wgsl/nn/cache.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import type { Plan } from "../compile/plan.ts";
import { biasOf, letGo, putResults, runNode, type Step } from "../compile/step.ts";
import type { CacheKinds } from "../decoder-kernels.ts";
import { dependents, isHead, isRotary, lifetimes, unsupported, type DecoderPart, type Found } from "../decoder-model.ts";
import { integers, type Value } from "../value.ts";
import { decodeAttention, type DeviceCache } from "./attention.ts";
import type { DeviceCore, DeviceDecoderInit } from "./decoder-core.ts";
import { emitLayer } from "./emit.ts";
import { deviceEmit } from "./execute.ts";
import { deviceLayer } from "./layers.ts";
import { emitRotary } from "./moves.ts";
import { createRecorder, isTensor, type Held, type Recorder, type Recording, type Tensor } from "./recorder.ts";

/** Tokens of a prompt at once. */
const CHUNK = 64;

/** The caches of each step, one for each sequence, and their buffers. */
function makeCaches(
  { runtime, inputs }: DeviceDecoderInit,
  found: Found,
  capacity: number,
  kinds: CacheKinds,
  sequences: number,
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
    if (of.length === 1 && isHead(step, found.logits)) {
      const y = emitLayer(r, deviceLayer(step.layer), inputs[0], biasOf(step, inputs), true);
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
    putResults(values, step.node, one(step), r.free);
    letGo(values, frees[i], r.free);
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

/** @throws LowbitError E_UNSUPPORTED for caches of unknown head size, E_DEVICE */
export function recordedCore(
  init: DeviceDecoderInit,
  found: Found,
  capacity: number,
  kinds: CacheKinds,
  pasts: readonly (() => number)[],
): DeviceCore {
  const { runtime, plan } = init;
  const sequences = pasts.length;
  // of several sequences those that rest write behind their last token
  const { caches, buffers } = makeCaches(init, found, capacity + (sequences > 1 ? 1 : 0), kinds, sequences);
  const r = createRecorder(runtime);
  for (const value of plan.constants.values()) r.constant(value);
  const core: Core = { plan, found, caches, pasts, tokens: dependents(found), frees: lifetimes(found) };
  /** The step of one sequence, by its number, and of all, at the end. */
  const recorded: ({ readonly recording: Recording; readonly pass: Pass } | undefined)[] = [];
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
  return {
    chunk: CHUNK,
    async run(ids, sequence) {
      if (ids.length === 1) return (await together([Number(ids[0])], [sequence]))[0];
      try {
        const pass = record(r, core, BigInt64Array.from(ids), [sequence]);
        return (await r.flush(pass.logits))[0];
      } finally {
        r.reset();
      }
    },
    together: (ids) => together(ids, [...ids.keys()]),
    bytes: () =>
      [...caches.values()].flat().reduce((sum, { k, v, words }) => sum + [k, v, ...words].reduce((a, b) => a + 4 * (b?.size ?? 0), 0), 0),
    explain() {
      const kernels = new Map<string, number>();
      for (const { operator } of (recorded.at(-1) ?? recorded[0])?.recording ?? []) kernels.set(operator, (kernels.get(operator) ?? 0) + 1);
      return [...kernels].map(([operator, count]): DecoderPart => ({ operator, kernels: count }));
    },
    dispose() {
      // what was submitted keeps its buffers until it is done
      r.dispose();
      for (const buffer of buffers) runtime.release(buffer);
    },
  };
}
