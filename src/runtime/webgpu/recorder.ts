// What operators of a model run on, on a device: tensors in pooled buffers, and a list of dispatches that is submitted
// as one command buffer when something is read. Nothing waits before that. Each run takes buffers in the order in which
// they were made, so that the same run again finds the same ones, and with them its bind groups.
import type { GpuBuffer } from "../../../kernels/wgsl/api.ts";
import type { GpuRuntime, Job, Pipeline } from "../../../kernels/wgsl/runtime.ts";
import type { ChainAfter } from "../../../kernels/wgsl/nn/chain.ts";
import { paramWords, type Fields } from "../../../kernels/wgsl/nn/shader.ts";
import { placedOnDevice } from "../../backends/webgpu/door.ts";
import type { AsyncLayer } from "../../backends/types.ts";
import type { NumberArray, Value } from "../value.ts";
import { sizeOf } from "../value.ts";

/** Types of codes that lie on the device, each code as a float32. */
export type CodeType = "int8" | "uint8" | "int16" | "uint16";

const CODES: ReadonlySet<string> = new Set<CodeType>(["int8", "uint8", "int16", "uint16"]);

/** A tensor on the device, `offset` elements into a buffer. int32 are constants, in their own words. */
export interface Tensor {
  readonly type: "float32" | "int32" | CodeType;
  readonly dims: readonly number[];
  readonly size: number;
  readonly buffer: GpuBuffer;
  readonly offset: number;
}

/** A value of a run: in JavaScript, or on the device. */
export type Held = Value | Tensor;

export const isTensor = (value: Held | undefined): value is Tensor => value !== undefined && "buffer" in value;

/** Codes of a device, or that it can take. */
export const isCodes = (value: Held | undefined): value is Held & { readonly type: CodeType } =>
  value !== undefined && CODES.has(value.type) && (isTensor(value) || value.bits === undefined);

/** Elements of a value. */
export const countOf = (value: Held): number => (isTensor(value) ? value.size : value.data.length);

/** A kernel: printed once for its spec. */
export interface Shader {
  readonly family: string;
  readonly spec: object;
  readonly name: string;
  readonly code: () => string;
}

export interface Dispatch {
  readonly fields: Fields;
  readonly params: Readonly<Record<string, number>>;
  /** By name of the binding. */
  readonly bound: Readonly<Record<string, Tensor>>;
  readonly groups: number;
}

/** What a dispatch gives to a job. */
const bindingsOf = ({ fields, params, bound, groups }: Dispatch) => ({
  words: paramWords(fields, params),
  buffers: Object.fromEntries(Object.entries(bound).map(([key, { buffer }]) => [key, buffer])),
  groups,
});

/** A chain behind another kernel: the parameters and bindings that it adds. */
export interface After extends ChainAfter {
  readonly params: Readonly<Record<string, number>>;
  readonly bound: Readonly<Record<string, Tensor>>;
}

interface Command {
  readonly operator: string;
  readonly ready: unknown;
  readonly record: (job: Job, ready: unknown) => void;
}

/** Commands of a run that can be submitted again. */
export type Recording = readonly Command[];

export interface Recorder {
  readonly runtime: GpuRuntime;
  tensor(dims: readonly number[], type?: Tensor["type"]): Tensor;
  /** The same memory under another shape, from element `offset` on. */
  view(of: Tensor, dims: readonly number[], offset?: number): Tensor;
  /** Gives a value's memory back once no view of it is left. Other values: nothing. */
  free(value: Held): void;
  /** A value on the device: constants are copied once, others once a run. */
  place(value: Held): Tensor;
  /** Numbers on the device for this run, in a buffer that no command writes. */
  upload(data: NumberArray, dims: readonly number[]): Tensor;
  /** Other numbers in its place, for commands that are submitted from now on. */
  rewrite(uploaded: Tensor, data: NumberArray): void;
  /** Marks a value whose data never changes. */
  constant(value: Value): void;
  isConstant(value: Value): boolean;
  /** Runs a shader. A function is asked each time that the command is submitted: its words may be others then. */
  dispatch(shader: Shader, make: Dispatch | (() => Dispatch)): void;
  /** y [m, n] = x [m, k] * w^T. */
  product(layer: AsyncLayer, x: Tensor, m: number): Tensor;
  /** The last command made y; `again` records it with a chain behind it. */
  made(y: Tensor, again: (after: After) => void): void;
  /** Values that nothing reads after the step that is recorded from now on. */
  ending(values: readonly (Held | undefined)[]): void;
  /** Whether the last command made a value that only this step reads: `amend` puts a chain behind it. */
  isOpen(value: Tensor): boolean;
  amend(after: After): void;
  copy(from: Tensor, fromOffset: number, to: Tensor, toOffset: number, count: number): void;
  /** The operator that is recorded from now on. */
  name(operator: string): void;
  /** Submits what was recorded. @returns the values of tensors, as they are then */
  flush(reads: readonly Tensor[]): Promise<Float32Array[]>;
  /** Takes what was recorded out, to be submitted by `repeat`; its buffers stay until the recorder is disposed of. */
  keep(): Recording;
  /** Submits a recording. @returns values of tensors after it */
  repeat(recording: Recording, reads: readonly Tensor[]): Promise<Float32Array[]>;
  /** Frees all tensors of a run. */
  reset(): void;
  /** Frees all, and what a run makes that has not ended at its `reset`. */
  dispose(): void;
}

/** Sizes of pooled buffers: four to each power of two, multiples of 256. */
function roomFor(bytes: number): number {
  const step = Math.max(256, 2 ** (Math.floor(Math.log2(Math.max(bytes, 1))) - 2));
  return Math.ceil(Math.max(bytes, 1) / step) * step;
}

/** Free buffers beyond this many bytes go at the end of a run. */
const POOL_BYTES = 256 * 1024 * 1024;

interface Pool {
  take(bytes: number, label: string): GpuBuffer;
  give(buffer: GpuBuffer): void;
  /** At the end of a run. `trims`: what is free may go. */
  settle(trims: boolean): void;
  dispose(): void;
}

function createPool(runtime: GpuRuntime): Pool {
  const free = new Map<number, GpuBuffer[]>();
  const numbers = new WeakMap<GpuBuffer, number>();
  let made = 0;
  let bytes = 0;
  const clear = (): void => {
    for (const list of free.values()) for (const buffer of list) runtime.release(buffer);
    free.clear();
    bytes = 0;
  };
  return {
    take(wanted, label) {
      const size = roomFor(wanted);
      const found = free.get(size)?.pop();
      if (found !== undefined) {
        bytes -= size;
        return found;
      }
      const buffer = runtime.allocate(size, label);
      numbers.set(buffer, made++);
      return buffer;
    },
    give(buffer) {
      const list = free.get(buffer.size);
      if (list === undefined) free.set(buffer.size, [buffer]);
      else list.push(buffer);
      bytes += buffer.size;
    },
    settle(trims) {
      if (trims && bytes > POOL_BYTES) clear();
      for (const list of free.values()) list.sort((a, b) => numbers.get(b)! - numbers.get(a)!);
    },
    dispose: clear,
  };
}

export function createRecorder(runtime: GpuRuntime): Recorder {
  const pool = createPool(runtime);
  // a write comes before all commands that wait: it must not touch what they use
  const uploads = createPool(runtime);
  const uses = new Map<GpuBuffer, number>();
  const uploaded: GpuBuffer[] = [];
  const placed = new Map<object, Tensor>();
  const constants = new Map<object, Tensor | null>();
  let commands: Command[] = [];
  let operator = "";
  let disposed = false;
  /** Buffers of recordings that nothing else may use; others they write before they read. */
  const kept: GpuBuffer[] = [];

  const upload = (data: NumberArray, dims: readonly number[]): Tensor => {
    const buffer = uploads.take(data.byteLength, "feed");
    uploaded.push(buffer);
    runtime.write(buffer, 0, data);
    return { type: "float32", dims, size: data.length, buffer, offset: 0 };
  };
  let open: { readonly y: Tensor; readonly again: (after: After) => void } | null = null;
  let last: ReadonlySet<GpuBuffer> = new Set();
  const add = (ready: unknown, record: Command["record"]): void => {
    open = null;
    commands.push({ operator, ready, record });
  };
  const submit = async (list: Recording, reads: readonly Tensor[]): Promise<Float32Array[]> => {
    const ready = await Promise.all(list.map((command) => command.ready));
    const results = await runtime.submit("session", (job) => {
      list.forEach((command, i) => command.record(job, ready[i]));
      return Promise.all(reads.map(({ buffer, offset, size }) => job.read(buffer, 4 * offset, 4 * size)));
    });
    return results.map((bytes) => new Float32Array(bytes));
  };
  const recorder: Recorder = {
    runtime,
    tensor(dims, type = "float32") {
      const size = sizeOf(dims);
      const buffer = pool.take(4 * size, "activations");
      uses.set(buffer, 1);
      return { type, dims, size, buffer, offset: 0 };
    },
    view(of, dims, offset = 0) {
      const count = uses.get(of.buffer);
      if (count !== undefined) uses.set(of.buffer, count + 1);
      return { type: of.type, dims, size: sizeOf(dims), buffer: of.buffer, offset: of.offset + offset };
    },
    free(value) {
      if (!isTensor(value)) return;
      const left = uses.get(value.buffer);
      if (left === undefined) return;
      if (left > 1) uses.set(value.buffer, left - 1);
      else {
        uses.delete(value.buffer);
        pool.give(value.buffer);
      }
    },
    place(value) {
      if (isTensor(value)) return value;
      const own = value.data;
      const found = constants.get(own) ?? placed.get(own);
      if (found !== undefined) return { ...found, dims: value.dims };
      const data = isCodes(value) ? Float32Array.from(own as NumberArray) : (own as NumberArray);
      const type = value.type as Tensor["type"];
      if (constants.has(own)) {
        const buffer = runtime.allocate(data.byteLength, "constant");
        runtime.write(buffer, 0, data);
        const tensor: Tensor = { type, dims: value.dims, size: data.length, buffer, offset: 0 };
        constants.set(own, tensor);
        return tensor;
      }
      const tensor = { ...upload(data, value.dims), type };
      placed.set(own, tensor);
      return tensor;
    },
    upload,
    rewrite: ({ buffer }, data) => runtime.write(buffer, 0, data),
    constant(value) {
      if ((value.type === "float32" || value.type === "int32" || isCodes(value)) && !constants.has(value.data))
        constants.set(value.data, null);
    },
    isConstant: ({ data }) => constants.has(data),
    dispatch({ family, spec, name, code }, make) {
      const pipeline = runtime.pipeline(`nn ${family}`, spec, () => ({ name, code: code() }));
      pipeline.catch(() => {});
      // of a recording that is repeated once
      const fixed = typeof make === "function" ? null : bindingsOf(make);
      add(pipeline, (job, ready) => {
        const { words, buffers, groups } = fixed ?? bindingsOf((make as () => Dispatch)());
        if (groups > 0) job.dispatch(ready as Pipeline, { params: job.uniform(words), ...buffers }, groups);
      });
    },
    product(layer, x, m) {
      const y = recorder.tensor([m, layer.n]);
      let from = x;
      if (x.offset !== 0) {
        from = recorder.tensor([m, layer.k]);
        recorder.copy(x, 0, from, 0, m * layer.k);
      }
      const ready = placedOnDevice(layer).ready(m);
      ready.catch(() => {});
      const [source, target] = [from.buffer, y.buffer];
      add(ready, (job, record) => (record as Awaited<typeof ready>)(job, source, target));
      if (from !== x) recorder.free(from);
      return y;
    },
    made(y, again) {
      open = { y, again };
    },
    ending(values) {
      last = new Set(values.filter(isTensor).map(({ buffer }) => buffer));
    },
    isOpen: ({ buffer }) => open?.y.buffer === buffer && last.has(buffer) && uses.get(buffer) === 1,
    amend(after) {
      const { again } = open!;
      commands.pop();
      again(after);
    },
    copy(from, fromOffset, to, toOffset, count) {
      add(undefined, (job) => job.copy(from.buffer, 4 * (from.offset + fromOffset), to.buffer, 4 * (to.offset + toOffset), 4 * count));
    },
    name(of) {
      operator = of;
    },
    async flush(reads) {
      open = null;
      const list = commands;
      commands = [];
      return submit(list, reads);
    },
    keep() {
      open = null;
      const list = commands;
      commands = [];
      for (const buffer of [...uses.keys(), ...uploaded.splice(0)]) kept.push(buffer);
      uses.clear();
      placed.clear();
      return list;
    },
    repeat: submit,
    reset() {
      open = null;
      commands = [];
      for (const buffer of uses.keys()) pool.give(buffer);
      uses.clear();
      placed.clear();
      for (const buffer of uploaded.splice(0)) uploads.give(buffer);
      // recordings name buffers that are free
      pool.settle(kept.length === 0);
      uploads.settle(true);
      if (disposed) free();
    },
    dispose() {
      disposed = true;
      recorder.reset();
    },
  };
  const free = (): void => {
    pool.dispose();
    uploads.dispose();
    for (const buffer of kept.splice(0)) runtime.release(buffer);
    for (const tensor of constants.values()) if (tensor !== null) runtime.release(tensor.buffer);
    constants.clear();
  };
  return recorder;
}
