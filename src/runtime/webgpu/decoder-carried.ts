// A decoder on a device for models whose attention is spelled out, or takes what the kernel over a cache does not: the
// plan runs step by step for each call, as `session.run` does, with its caches on the device. Where a Concat joins past
// and new tokens, these are appended and attention reads the cache in place; else present is copied into it.
import type { GpuBuffer } from "../../../kernels/wgsl/api.ts";
import { disposedDecoder } from "../decoder.ts";
import { carriedModel } from "../decoder-carried.ts";
import { biasOf } from "../compile/step.ts";
import { isHead, type DecoderPart } from "../decoder-model.ts";
import { isJoin, type CachePair } from "../machine/sequence.ts";
import { copyBetween } from "./copy.ts";
import type { DeviceCore, DeviceDecoderInit } from "./decoder-core.ts";
import { emitLayer, isFloat } from "./emit.ts";
import { executeOnDevice, type DeviceRun } from "./execute.ts";
import { headStep, type Kept } from "./kept.ts";
import { deviceLayer } from "./layers.ts";
import { createRecorder, isTensor, type Held } from "./recorder.ts";

/** Tokens that there is room for at first. */
const FIRST = 64;

interface Sequence {
  /** Of each pair; none before the first tokens. */
  buffers: GpuBuffer[];
  room: number;
}

/** @throws LowbitError E_UNSUPPORTED for inputs that it does not know */
export function carriedDeviceCore(init: DeviceDecoderInit, capacity: number, pasts: readonly (() => number)[]): DeviceCore {
  const { runtime, host, plan } = init;
  const model = carriedModel(init);
  const { caches, logits } = model;
  const joins = new Map(plan.steps.flatMap((step) => caches.flatMap((pair, i) => (isJoin(step, pair) ? [[step, i] as const] : []))));
  const r = createRecorder(runtime);
  for (const value of plan.constants.values()) r.constant(value);
  let live = true;
  const aborted = (): void => {
    if (!live) throw disposedDecoder();
  };
  const sequences = pasts.map((): Sequence => ({ buffers: [], room: 0 }));
  /** Kernels of the last call, by operator. */
  let parts = new Map<string, number>();
  const kept = ({ buffers, room }: Sequence, i: number, tokens: number): Kept => {
    const dims = [1, caches[i].heads, tokens, caches[i].size];
    return { type: "float32", dims, size: caches[i].heads * tokens * caches[i].size, buffer: buffers[i], offset: 0, room };
  };
  /** Writes tokens [1, heads, count, size] behind `past` others. */
  const append = (to: Sequence, i: number, past: number, value: Held): void => {
    const [, heads, count, size] = value.dims;
    const [from, whole] = [r.place(value), kept(to, i, past)];
    copyBetween(
      r,
      [heads, count * size],
      { tensor: from, strides: [headStep(from), 1], start: 0 },
      { tensor: whole, strides: [headStep(whole), 1], start: past * size },
    );
  };
  const reserve = async (sequence: Sequence, past: number, total: number): Promise<void> => {
    if (total <= sequence.room) return;
    const room = Math.max(total, Math.min(capacity, Math.max(FIRST, 2 * sequence.room)));
    const next: Sequence = { buffers: [], room };
    try {
      for (const { heads, size } of caches) next.buffers.push(runtime.allocate(4 * heads * room * size, "cache"));
      if (past > 0) {
        caches.forEach((_, i) => append(next, i, 0, kept(sequence, i, past)));
        await r.flush([]);
        aborted();
      }
    } catch (error) {
      for (const buffer of next.buffers) runtime.release(buffer);
      throw error;
    }
    for (const buffer of sequence.buffers) runtime.release(buffer);
    Object.assign(sequence, next);
  };
  /** Whether a value is new tokens of a cache. */
  const fits = (value: Held | undefined, { heads, size }: CachePair, count: number): value is Held =>
    isFloat(value) && value.dims.join() === [1, heads, count, size].join();

  return {
    chunk: Infinity,
    async run(ids, s) {
      const sequence = sequences[s];
      const past = pasts[s]();
      const total = past + ids.length;
      const counts = new Map<string, number>();
      const own = new Set<number>();
      const instead: DeviceRun["instead"] = (step, read) => {
        const at = joins.get(step);
        const value = at === undefined ? undefined : read(step.node.input[1]);
        if (at !== undefined && fits(value, caches[at], ids.length)) {
          append(sequence, at, past, value);
          own.add(at);
          return [kept(sequence, at, total)];
        }
        if (!isHead(step, logits)) return undefined;
        const given = step.node.input.map((name) => (name === "" ? undefined : read(name)));
        const y = emitLayer(r, deviceLayer(step.layer), given[0], biasOf(step, given), true);
        return y && [y];
      };
      try {
        await reserve(sequence, past, total);
        const fed = new Map<string, Held>([...model.feeds(ids, past), ...caches.map(({ input }, i) => [input, kept(sequence, i, past)] as const)]); // prettier-ignore
        const note: DeviceRun["note"] = ({ operator }, how) => {
          if (how !== "loops") counts.set(operator, (counts.get(operator) ?? 0) + (how === "processor" ? 0 : 1));
        };
        const { read, bring } = await executeOnDevice({ recorder: r, host, plan, fed, note, instead, aborted });
        caches.forEach((pair, i) => {
          const value = read(pair.output);
          model.check(pair, value, total);
          if (!own.has(i)) append(sequence, i, 0, value!);
        });
        const made = read(logits)!;
        const width = made.dims.at(-1)!;
        const row = isTensor(made) ? r.view(made, [width], made.size - width) : made;
        // what was recorded is submitted where something is read
        if (!isTensor(row)) await r.flush([]);
        const [{ data }] = await bring([row]);
        parts = counts;
        return (data as Float32Array).slice(-width);
      } finally {
        r.reset();
        host.reset();
      }
    },
    bytes: () => sequences.reduce((sum, { room }) => sum + caches.reduce((all, { heads, size }) => all + 4 * heads * room * size, 0), 0),
    explain: () => [...parts].map(([operator, kernels]): DecoderPart => ({ operator, kernels })),
    dispose() {
      live = false;
      // what was submitted keeps its buffers until it is done
      r.dispose();
      for (const { buffers } of sequences) for (const buffer of buffers) runtime.release(buffer);
    },
  };
}
