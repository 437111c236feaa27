// What a backend needs to run shaders: counted buffers, pipelines compiled once per spec, jobs recorded and submitted
// inside error scopes. Everything that the device reports (compilation messages, validation, memory, loss) becomes a
// LowbitError that names the kernel; nothing is left to be printed.
import { isLowbitError, LowbitError } from "../../formats/core/errors.ts";
import {
  COMPUTE_STAGE,
  COPY_DST,
  COPY_SRC,
  MAP_READ,
  READ_MODE,
  STORAGE,
  UNIFORM,
  type GpuBinding,
  type GpuBuffer,
  type GpuDevice,
  type GpuMessage,
  type GpuPass,
  type GpuShaderModule,
} from "./api.ts";

/** A shader with the entry point `main`; bindings of group 0 are read off its text. */
export interface Shader {
  readonly name: string;
  readonly code: string;
}

export interface Binding {
  readonly index: number;
  readonly name: string;
  readonly type: "uniform" | "storage" | "read-only-storage";
}

export interface Pipeline {
  readonly id: number;
  readonly name: string;
  readonly bindings: readonly Binding[];
  readonly pipeline: object;
  readonly layout: object;
}

/** Commands of one submission. */
export interface Job {
  /**
   * Workgroups above the device's limit per dimension wrap into y; shaders number themselves group.x + group.y *
   * groups.x.
   */
  dispatch(
    pipeline: Pipeline,
    bindings: Readonly<Record<string, GpuBuffer | GpuBinding>>,
    workgroups: number | readonly [number, number],
  ): void;
  copy(from: GpuBuffer, fromOffset: number, to: GpuBuffer, toOffset: number, bytes: number): void;
  /** A uniform binding of these words, good for this job. */
  uniform(words: Uint32Array): GpuBinding;
  /** Bytes of a buffer, as they are after the commands before this one; both numbers multiples of 4. */
  read(from: GpuBuffer, offset: number, bytes: number): Promise<ArrayBuffer>;
}

export interface GpuLimits {
  /** Most bytes of a storage buffer that one binding sees. */
  readonly binding: number;
  /** Most bytes of a buffer. */
  readonly buffer: number;
  readonly workgroups: number;
  /** Bytes that binding offsets are multiples of. */
  readonly alignment: number;
}

export interface GpuRuntime {
  readonly device: GpuDevice;
  readonly subgroups: boolean;
  readonly f16: boolean;
  readonly limits: GpuLimits;
  readonly live: boolean;
  /** Buffers made and not destroyed, scratch included, and their bytes. */
  readonly buffers: number;
  readonly bytes: number;
  /** Pipelines compiled. */
  readonly pipelines: number;
  /**
   * A storage buffer (uniform where asked). Failure to allocate is reported by the promise of `settled`.
   * @throws LowbitError E_DEVICE above the limit
   */
  allocate(bytes: number, label: string, kind?: "storage" | "uniform" | "read"): GpuBuffer;
  release(buffer: GpuBuffer): void;
  /** A storage buffer that belongs to the caller: not counted, not destroyed with the runtime. */
  give(bytes: number, label: string): GpuBuffer;
  /** Writes typed data at a byte offset; bytes are a multiple of 4. */
  write(buffer: GpuBuffer, offset: number, data: ArrayBufferView): void;
  /**
   * A buffer of at least `bytes` that lasts until more are asked for under this name; jobs use it in the order of their
   * submission.
   */
  scratch(name: string, bytes: number): GpuBuffer;
  /**
   * A pipeline by family and spec; compiled once per runtime.
   * @throws (rejects) LowbitError E_DEVICE with kernel name and line
   */
  pipeline(family: string, spec: object, build: () => Shader): Promise<Pipeline>;
  /**
   * Runs `body` (which is synchronous) in error scopes; its result comes when the device has found no fault.
   * @throws (rejects) LowbitError E_DEVICE
   */
  guard<T>(what: string, body: () => T): Promise<T>;
  /**
   * Records and submits commands. `record` runs at once; promises that it returns through `read` settle after the
   * submission.
   */
  submit<T>(what: string, record: (job: Job) => T): Promise<Awaited<T>>;
  /** Destroys all buffers and, where it is the runtime's own, the device. */
  dispose(): void;
}

export interface RuntimeOptions {
  /** Destroy the device with the runtime. */
  readonly own: boolean;
  /** Lower limits than the device's, for tests. */
  readonly limits?: Partial<GpuLimits>;
  /** Leave device features unused. */
  readonly features?: { readonly subgroups?: boolean; readonly f16?: boolean };
}

/** Uniforms of a job lie in buffers of this size, one after the other. */
const UNIFORM_CHUNK = 65536;
/** Bind groups that are kept for the next job. */
const MOST_GROUPS = 16384;

/** Bindings of group 0 in a shader's text. */
export function shaderBindings(code: string): readonly Binding[] {
  const found: Binding[] = [];
  for (const [, index, space, name] of code.matchAll(/@group\(0\)\s*@binding\((\d+)\)\s*var<([^>]+)>\s*(\w+)/g))
    found.push({
      index: Number(index),
      name,
      type: space.startsWith("uniform") ? "uniform" : /read_write/.test(space) ? "storage" : "read-only-storage",
    });
  return found;
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error)).trim();

export function createGpuRuntime(device: GpuDevice, options: RuntimeOptions): GpuRuntime {
  const limits: GpuLimits = {
    binding: Math.min(device.limits.maxStorageBufferBindingSize, device.limits.maxBufferSize),
    buffer: device.limits.maxBufferSize,
    workgroups: device.limits.maxComputeWorkgroupsPerDimension,
    alignment: Math.max(device.limits.minStorageBufferOffsetAlignment, device.limits.minUniformBufferOffsetAlignment),
    ...options.limits,
  };
  const buffers = new Set<GpuBuffer>();
  const scratch = new Map<string, GpuBuffer>();
  const pipelines = new Map<string, Promise<Pipeline>>();
  /** Bind groups by pipeline and buffers; a buffer that goes takes all of them along. */
  const groups = new Map<string, object>();
  const numbers = new WeakMap<GpuBuffer, number>();
  let numbered = 0;
  let compiled = 0;
  const chunks: { readonly buffer: GpuBuffer; readonly words: Uint32Array<ArrayBuffer> }[] = [];
  /** While commands are recorded: buffers to be destroyed once they are submitted. */
  let leaving: GpuBuffer[] | null = null;
  let bytes = 0;
  let live = true;
  let lost: string | null = null;
  void device.lost.then((info) => {
    lost = `${info.reason === "destroyed" ? "it was destroyed" : "it was lost"}${info.message === "" ? "" : `: ${info.message}`}`;
  });

  const failure = (what: string, got: string, cause?: unknown): LowbitError =>
    new LowbitError("E_DEVICE", `${what}: expected a working device, got ${got}`, cause === undefined ? undefined : { cause });
  const gone = (what: string): LowbitError => failure(what, `none (${lost ?? "the backend was disposed"}). Make another backend.`);
  /** Loss is known a moment after what it broke. */
  const settle = async (): Promise<void> => {
    for (let i = 0; i < 4 && lost === null; i++) await new Promise((resolve) => setTimeout(resolve, 0));
  };
  const explain = async (what: string, error: unknown): Promise<LowbitError> => {
    if (isLowbitError(error)) return error as LowbitError;
    await settle();
    return lost !== null || !live ? gone(what) : failure(what, messageOf(error), error);
  };

  async function guard<T>(what: string, body: () => T): Promise<T> {
    if (!live || lost !== null) throw gone(what);
    const scopes = ["internal", "out-of-memory", "validation"] as const;
    for (const scope of scopes) device.pushErrorScope(scope);
    let result: T | undefined;
    let thrown: unknown = null;
    try {
      result = body();
    } catch (error) {
      thrown = error ?? new Error("unknown");
    }
    const pops = scopes.map(() => device.popErrorScope().catch(() => null));
    if (thrown !== null) {
      await Promise.all(pops);
      throw await explain(what, thrown);
    }
    const [validation, memory, internal] = await Promise.all(pops);
    if (memory !== null)
      throw failure(what, `no memory (${messageOf(memory.message)}). Dispose of other layers, or split the weight by rows.`, memory);
    const other = validation ?? internal;
    if (other !== null) throw failure(what, messageOf(other.message), other);
    if (lost !== null) throw gone(what);
    return result as T;
  }

  const numberOf = (buffer: GpuBuffer): number => {
    let number = numbers.get(buffer);
    if (number === undefined) numbers.set(buffer, (number = numbered++));
    return number;
  };

  /** The bind group of a pipeline over these buffers, made once. */
  function groupOf(pipeline: Pipeline, bindings: Readonly<Record<string, GpuBuffer | GpuBinding>>): object {
    let key = String(pipeline.id);
    const entries = pipeline.bindings.map(({ index, name }) => {
      const bound = bindings[name];
      if (bound === undefined) throw new TypeError(`${pipeline.name}: no buffer for the binding ${name}`);
      const resource: GpuBinding = "buffer" in bound ? bound : { buffer: bound };
      key += ` ${numberOf(resource.buffer)}`;
      if (resource.offset !== undefined || resource.size !== undefined) key += `@${resource.offset ?? 0}+${resource.size ?? ""}`;
      return { binding: index, resource };
    });
    let group = groups.get(key);
    if (group === undefined) {
      group = device.createBindGroup({ layout: pipeline.layout, entries } as never);
      if (groups.size >= MOST_GROUPS) groups.clear();
      groups.set(key, group);
    }
    return group;
  }

  /** Uniforms of one job; `write` sends them. */
  function uniformsOfJob(): { bind(words: Uint32Array): GpuBinding; write(): void } {
    let chunk = 0;
    let at = 0;
    return {
      bind(words) {
        const size = Math.ceil((4 * words.length) / limits.alignment) * limits.alignment;
        if (at + size > UNIFORM_CHUNK) {
          chunk++;
          at = 0;
        }
        if (chunk === chunks.length)
          chunks.push({ buffer: runtime.allocate(UNIFORM_CHUNK, "uniforms", "uniform"), words: new Uint32Array(UNIFORM_CHUNK / 4) });
        chunks[chunk].words.set(words, at / 4);
        const binding = { buffer: chunks[chunk].buffer, offset: at, size };
        at += size;
        return binding;
      },
      write() {
        for (let i = 0; i <= chunk && i < chunks.length; i++) {
          const used = i < chunk ? UNIFORM_CHUNK : at;
          if (used > 0) runtime.write(chunks[i].buffer, 0, chunks[i].words.subarray(0, used / 4));
        }
      },
    };
  }

  const runtime: GpuRuntime = {
    device,
    subgroups: device.features.has("subgroups") && options.features?.subgroups !== false,
    f16: device.features.has("shader-f16") && options.features?.f16 !== false,
    limits,
    get live() {
      return live;
    },
    get buffers() {
      return buffers.size;
    },
    get bytes() {
      return bytes;
    },
    get pipelines() {
      return pipelines.size;
    },
    allocate(size, label, kind = "storage") {
      if (!live) throw gone(label);
      const whole = Math.max(16, Math.ceil(size / 16) * 16);
      if (whole > limits.buffer)
        throw new LowbitError(
          "E_DEVICE",
          `${label}: expected at most ${limits.buffer} bytes in a buffer (the device's limit), got ${whole}. Use fewer rows.`,
        );
      const usage = kind === "read" ? MAP_READ | COPY_DST : (kind === "uniform" ? UNIFORM : STORAGE) | COPY_SRC | COPY_DST;
      const buffer = device.createBuffer({ size: whole, usage, label });
      buffers.add(buffer);
      bytes += whole;
      return buffer;
    },
    release(buffer) {
      if (!buffers.delete(buffer)) return;
      bytes -= buffer.size;
      // results that are read are bound nowhere
      if ((buffer.usage & MAP_READ) === 0) groups.clear();
      if (leaving === null) buffer.destroy();
      else leaving.push(buffer);
    },
    give(size, label) {
      const buffer = runtime.allocate(size, label);
      buffers.delete(buffer);
      bytes -= buffer.size;
      return buffer;
    },
    write(buffer, offset, data) {
      device.queue.writeBuffer(buffer as never, offset, data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    },
    scratch(name, size) {
      const found = scratch.get(name);
      if (found !== undefined) {
        if (found.size >= size) return found;
        // earlier jobs have been submitted: the device keeps it until they are done
        runtime.release(found);
        scratch.delete(name);
      }
      const made = runtime.allocate(size, name);
      scratch.set(name, made);
      return made;
    },
    pipeline(family, spec, build) {
      const key = `${family} ${JSON.stringify(spec)}`;
      let found = pipelines.get(key);
      if (found === undefined) {
        found = compile(build());
        pipelines.set(key, found);
        // a failure is told to everyone who waits, and tried again by the next
        found.catch(() => pipelines.delete(key));
      }
      return found;
    },
    guard,
    async submit<T>(what: string, record: (job: Job) => T): Promise<Awaited<T>> {
      const staged: { buffer: GpuBuffer; bytes: number; resolve(data: ArrayBuffer): void; reject(error: unknown): void }[] = [];
      // promises of `read` may fail before anyone waits for them
      const given: Promise<unknown>[] = [];
      const done = guard(what, () => {
        const encoder = device.createCommandEncoder({ label: what });
        const uniforms = uniformsOfJob();
        // dispatches that follow each other share a pass: each sees what those before it wrote
        let pass: GpuPass | null = null;
        const endPass = (): void => {
          pass?.end();
          pass = null;
        };
        const gone: GpuBuffer[] = [];
        leaving = gone;
        let value: T;
        try {
          value = record({
            dispatch(pipeline, bindings, workgroups) {
              const group = groupOf(pipeline, bindings);
              let [x, y] = typeof workgroups === "number" ? [workgroups, 1] : workgroups;
              if (x > limits.workgroups) {
                const rows = Math.ceil(x / limits.workgroups);
                [x, y] = [Math.ceil(x / rows), y * rows];
              }
              pass ??= encoder.beginComputePass({ label: what });
              pass.setPipeline(pipeline.pipeline as never);
              pass.setBindGroup(0, group as never);
              pass.dispatchWorkgroups(x, y);
            },
            copy(from, fromOffset, to, toOffset, size) {
              endPass();
              encoder.copyBufferToBuffer(from as never, fromOffset, to as never, toOffset, size);
            },
            uniform: (words) => uniforms.bind(words),
            read(from, offset, size) {
              endPass();
              const buffer = runtime.allocate(size, `${what} (result)`, "read");
              encoder.copyBufferToBuffer(from as never, offset, buffer as never, 0, Math.ceil(size / 4) * 4);
              const promise = new Promise<ArrayBuffer>((resolve, reject) => staged.push({ buffer, bytes: size, resolve, reject }));
              promise.catch(() => {});
              given.push(promise);
              return promise;
            },
          });
          // what it waits for is the job's to say
          Promise.resolve(value).catch(() => {});
          endPass();
          uniforms.write();
          device.queue.submit([encoder.finish()] as never);
        } finally {
          leaving = null;
          for (const buffer of gone) buffer.destroy();
        }
        for (const { buffer, bytes: size, resolve, reject } of staged)
          buffer.mapAsync(READ_MODE, 0, Math.ceil(size / 4) * 4).then(() => {
            try {
              resolve(buffer.getMappedRange(0, Math.ceil(size / 4) * 4).slice(0, size));
              buffer.unmap();
            } catch (error) {
              reject(error);
            }
          }, reject);
        return { value };
      });
      try {
        // the device's own report says more than the mapping that failed because of it
        const { value } = await done;
        await Promise.all(given);
        return await value;
      } catch (error) {
        const told = await explain(what, error);
        for (const { reject } of staged) reject(told);
        throw told;
      } finally {
        for (const { buffer } of staged) runtime.release(buffer);
      }
    },
    dispose() {
      if (!live) return;
      live = false;
      for (const buffer of [...buffers]) runtime.release(buffer);
      scratch.clear();
      chunks.length = 0;
      pipelines.clear();
      if (options.own) device.destroy();
    },
  };

  async function compile({ name, code }: Shader): Promise<Pipeline> {
    const bindings = shaderBindings(code);
    const what = `kernel ${name}`;
    // kept outside: the messages carry the line even where the error scope fails the rest
    let info: ReturnType<GpuShaderModule["getCompilationInfo"]> | null = null;
    const made = guard(what, () => {
      const module = device.createShaderModule({ code, label: name });
      const layout = device.createBindGroupLayout({
        entries: bindings.map(({ index, type }) => ({ binding: index, visibility: COMPUTE_STAGE, buffer: { type } })),
      } as never);
      const pipeline = device.createComputePipelineAsync({
        label: name,
        layout: device.createPipelineLayout({ bindGroupLayouts: [layout] } as never),
        compute: { module, entryPoint: "main" },
      } as never);
      pipeline.catch(() => {});
      info = module.getCompilationInfo();
      info.catch(() => {});
      return { layout, pipeline };
    });
    let fault: unknown;
    try {
      const { layout, pipeline } = await made;
      return { id: compiled++, name, bindings, layout, pipeline: await pipeline };
    } catch (error) {
      fault = error;
    }
    const { messages } = await Promise.resolve(info).then(
      (found) => found ?? { messages: [] },
      () => ({ messages: [] as readonly GpuMessage[] }),
    );
    const first = messages.find((m) => m.type === "error");
    if (first !== undefined)
      throw failure(what, `line ${first.lineNum}:${first.linePos}: ${first.message}. Report it, with the device's name.`, fault);
    throw await explain(what, fault);
  }

  return runtime;
}
