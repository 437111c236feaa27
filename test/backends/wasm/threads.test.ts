// Threads: same numbers as one thread, workers that die or stop answering are errors and not hangs, and a process with
// a live pool still exits.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import { attendance, createPool, type WorkerLike } from "../../../kernels/wasm/engine/pool.ts";
import { FINISHED, OFFER, OWN, PARKED, workerSource } from "../../../kernels/wasm/engine/worker.ts";
import { format, type NumberFormat } from "../../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";
import { createBackend } from "../../../src/backends/wasm/backend.ts";
import { nodeHooks, startPool } from "../../../src/backends/wasm/threads.ts";
import type { Kernel } from "../../../kernels/wasm/engine/engine.ts";
import { family, kernel } from "../../../kernels/wasm/engine/family.ts";
import { createRuntime } from "../../../kernels/wasm/engine/runtime.ts";
import { wasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { ModuleBuilder } from "../../../kernels/wasm/engine/asm.ts";
import { jobBytes, writeJob, writeWork } from "../../../kernels/wasm/engine/items.ts";

const count = family("test count", (_: { readonly v: number }) => {
  const m = new ModuleBuilder({ shared: true });
  writeWork(m, (f, args) => (item) => {
    const at = f.op("i32.add", f.load("i32.load", args, 0), f.op("i32.shl", item, f.i32(2)));
    f.run(f.op("drop", f.atomic("i32.atomic.rmw.add", at, 0, f.i32(1))));
  });
  return m.bytes();
});

/** A kernel whose items each add 1 to their own word; argument: where the words are. Another module for every `v`. */
const countingKernel = (v: number): Kernel => kernel(count, { v });
const counting = countingKernel(1);

/**
 * Runs jobs until one throws, and throws that: a worker takes part in a job only if it shows up before this thread has
 * done all items.
 */
function untilItThrows(job: () => void): void {
  const until = performance.now() + 60_000;
  do {
    job();
    pause(1);
  } while (performance.now() < until);
}

/** Blocks this thread, event loop and all. */
const pause = (ms: number): void => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

describe("threads", () => {
  it("take every item exactly once, job after job, and after parking", async () => {
    const pool = await startPool({ threads: 3 });
    const runtime = createRuntime({ features: wasmFeatures(), pool });
    const { space, address } = runtime.allocate(4 * 1000);
    for (let job = 0; job < 300; job++) {
      const items = 1 + ((job * 37) % 1000);
      new Int32Array(space.buffer, address, 1000).fill(0);
      runtime.work(space, counting, items, Int32Array.of(address), 0);
      const counts = new Int32Array(space.buffer, address, 1000);
      expect(counts.subarray(0, items).every((c) => c === 1) && counts.subarray(items).every((c) => c === 0)).toBe(true);
      if (job % 100 === 50) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    runtime.dispose();
  });

  it("follow a memory that grows, with kernels that are new to them", async () => {
    const pool = await startPool({ threads: 4 });
    const runtime = createRuntime({ features: wasmFeatures(), pool });
    for (let i = 0; i < 60; i++) {
      // beyond what the memory had when the workers last looked: the words, and often the code
      const { space, address } = runtime.allocate(3 << 20);
      const words = new Int32Array(space.buffer, address, 3 << 18);
      const last = words.length - 300;
      runtime.work(space, countingKernel(2 + i), 300, Int32Array.of(address + 4 * last), 0);
      expect(words.subarray(last).every((count) => count === 1)).toBe(true);
      if (i % 20 === 10) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    runtime.dispose();
  });

  it("go on when the number of jobs passes 2^31", async () => {
    const { runtime, control } = await poolWith(workerSource(true), { offer: 2 ** 31 - 6 });
    const { space, address } = runtime.allocate(4 * 100);
    const words = new Int32Array(space.buffer, address, 100).fill(0);
    for (let job = 1; job <= 12; job++) {
      runtime.work(space, counting, 100, Int32Array.of(address), 0);
      expect(words.every((count) => count === job)).toBe(true);
      pause(1);
    }
    expect(control()[OWN + OFFER]).toBe(2 * (12 - 3));
    runtime.dispose();
  });

  it("give the numbers of one thread, bit for bit, whatever the memory held before", async () => {
    const one = await wasm();
    const many = [await wasm({ threads: 2 }), await wasm({ threads: 5 })];
    const noise = (n: number, seed: number) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898 + seed) * 3);
    const cases: [string, "int8" | "int16" | "float32", ("dot" | "lookup")?][] = [
      ["int4_b32", "int8"], ["int4_b32", "int16"], ["int4_b32", "float32"], ["uint4_b32_zp", "int8"], ["int3_b32", "int8"], ["int8_row", "int8"],
      ["nf4_b32", "int8"], ["bipolar1_b32", "int8"], ["ternary_row", "int8"], ["int2_b32", "int8", "lookup"], ["float8_e4m3fn_b32", "float32"], ["float32", "float32"],
    ]; // prettier-ignore
    // fewer blocks than threads, odd numbers of blocks; activations in one item and in several
    for (const [n, k] of [
      [5, 31],
      [200, 96],
      [83, 2100],
    ])
      for (const [name, activations, kind] of cases) {
        const w = quantize(tensor(noise(n * k, 1), [n, k]), format(name));
        const options = { activations, ...(kind === undefined ? {} : { kernel: kind }) };
        const own = prepareMatmul(w, { backend: one, ...options });
        const others = many.map((backend) => prepareMatmul(w, { backend, ...options }));
        for (const m of [1, 2, 9, 70]) {
          const x = noise(m * k, 2);
          const y = own.run(x, m);
          for (const other of others) {
            // results that nothing may be added to
            other.run(new Float32Array(m * k).fill(NaN), m);
            expect(Array.from(other.run(x, m))).toEqual(Array.from(y));
          }
          own.run(new Float32Array(m * k).fill(Infinity), m);
          expect(own.run(x, m)).toEqual(y);
        }
        for (const layer of [own, ...others]) layer.dispose();
      }
    for (const backend of [one, ...many]) backend.dispose();
  });

  it("give the exact integer products of one thread", async () => {
    const one = await wasm();
    const many = [await wasm({ threads: 2 }), await wasm({ threads: 5 })];
    const bytes = (n: number, step: number) => Int8Array.from({ length: n }, (_, i) => (i * step) % 251);
    for (const [m, n, k] of [
      [1, 3, 5],
      [7, 33, 130],
      [64, 100, 521],
    ]) {
      const w = bytes(n * k, 37);
      const signs = Uint8Array.from(w, (v) => v & 1);
      for (const a of [bytes(m * k, 91), Uint8Array.from(bytes(m * k, 91), (v) => v & 255)]) {
        const y = one.prepareInteger(w, n, k).run(a, m);
        for (const backend of many) {
          const layer = backend.prepareInteger(w, n, k);
          layer.run(
            a.map((v) => ~v),
            m,
          );
          expect(layer.run(a, m)).toEqual(y);
        }
      }
      const a = bytes(m * k, 53).map((v) => v & 3);
      const y = one.prepareBitplanes(signs, n, k, format("bipolar1") as NumberFormat).run(a, m, format("int2") as NumberFormat);
      for (const backend of many)
        expect(backend.prepareBitplanes(signs, n, k, format("bipolar1") as NumberFormat).run(a, m, format("int2") as NumberFormat)).toEqual(
          y,
        );
    }
    for (const backend of [one, ...many]) backend.dispose();
  });

  it("give the transforms of one thread, rows fewer and more than items", async () => {
    const one = await wasm();
    const many = [await wasm({ threads: 2 }), await wasm({ threads: 5 })];
    for (const [n, rows] of [
      [4, 3],
      [64, 1],
      [64, 777],
      [4096, 9],
      [32768, 3],
    ]) {
      const x = Float32Array.from({ length: n * rows }, (_, i) => Math.sin(i * 12.9898) * 3);
      const y = one.fwht(x.slice(), n, 0.25);
      for (const backend of many) expect(backend.fwht(x.slice(), n, 0.25).every((v, i) => Object.is(v, y[i]))).toBe(true);
    }
    for (const backend of [one, ...many]) backend.dispose();
  });

  it("a worker that ended is an error for every later job", async () => {
    const workers: WorkerLike[] = [];
    const { Worker, MessageChannel } = await import("node:worker_threads");
    let exited = (): void => {};
    const gone = new Promise<void>((resolve) => (exited = resolve));
    const pool = await createPool(
      { threads: 2, timeoutMs: 500 },
      {
        manyMemories: true,
        start(index, control, spinMs, onExit) {
          const { port1, port2 } = new MessageChannel();
          const worker = new Worker(workerSource(true), {
            eval: true,
            workerData: { control, index, port: port2, spinMs },
            transferList: [port2],
          });
          worker.on("exit", () => {
            onExit();
            exited();
          });
          port1.unref();
          workers.push(worker);
          return { worker, send: (at, memory) => port1.postMessage({ index: at, memory }) };
        },
      },
    );
    const runtime = createRuntime({ features: wasmFeatures(), pool });
    const { space, address } = runtime.allocate(4 * 1000);
    const job = (): void => runtime.work(space, counting, 1000, Int32Array.of(address), 0);
    job();
    // killed, and jobs started before this thread can hear of it: it does them alone, but for one that the worker had
    // begun
    void workers[0].terminate();
    try {
      for (let i = 0; i < 100; i++) job();
    } catch (error) {
      expect((error as Error).message).toMatch(/workers gave no answer for 500 ms/);
    }
    await gone;
    expect(job).toThrowError(/Make another backend/);
    // jobs of one item too, which need no worker: one that was given up may still write
    expect(() => runtime.work(space, counting, 1, Int32Array.of(address), 0)).toThrowError(/Make another backend/);
    runtime.dispose();
  });

  /** A pool of two whose worker runs `source`, and a runtime on it. `offer`: the number of the last offer; default 0. */
  async function poolWith(
    source: string,
    { offer = 0, ...options }: { readonly offer?: number; readonly timeoutMs?: number; readonly spinMs?: number } = {},
  ): Promise<{
    runtime: ReturnType<typeof createRuntime>;
    worker: Worker;
    gone: Promise<number>;
    arm: () => void;
    control: () => Int32Array;
  }> {
    const { Worker: WorkerClass, MessageChannel } = await import("node:worker_threads");
    let worker!: Worker;
    let gone!: Promise<number>;
    let words!: Int32Array;
    const pool = await createPool(
      { threads: 2, timeoutMs: 60_000, ...options },
      {
        manyMemories: true,
        start(index, control, spinMs, onExit) {
          const { port1, port2 } = new MessageChannel();
          words = control;
          words[OWN + OFFER] = offer;
          worker = new WorkerClass(source, {
            eval: true,
            execArgv: [],
            workerData: { control, index, port: port2, spinMs },
            transferList: [port2],
          });
          gone = new Promise((resolve) => worker.on("exit", (code) => (onExit(), resolve(code))));
          worker.unref();
          port1.unref();
          return { worker, send: (at, memory) => port1.postMessage({ index: at, memory }) };
        },
      },
    );
    return {
      runtime: createRuntime({ features: wasmFeatures(), pool }),
      worker,
      gone,
      arm: () => Atomics.store(words, ARMED, 1),
      control: () => words,
    };
  }
  /** A control word that the pool does not use: set, the worker's next job is its last. */
  const ARMED = 31;
  const call = "work(args, panels + index * stride, index);";

  it("a parked worker that is woken spins for the job to come, and parks again where none comes", async () => {
    const { runtime, control } = await poolWith(workerSource(true), { spinMs: 500 });
    const parked = (): boolean => Atomics.load(control(), OWN + PARKED) !== 0;
    const until = async (state: boolean): Promise<void> => {
      for (const end = performance.now() + 20_000; parked() !== state && performance.now() < end;)
        await new Promise((resolve) => setTimeout(resolve, 1));
      expect(parked()).toBe(state);
    };
    const { space, address } = runtime.allocate(4 * 1000);
    await until(true);
    runtime.pool!.wake();
    await until(false);
    await until(true);
    runtime.pool!.wake();
    runtime.work(space, counting, 1000, Int32Array.of(address), 0);
    await until(true);
    runtime.dispose();
    // nothing happens after the end
    runtime.pool!.wake();
  });

  it("a worker that dies in mid-run ends the product with an error, and so does every later one", async () => {
    expect(workerSource(true)).toContain(call);
    // the worker goes down after it has taken the job and before it has answered
    const { runtime, gone, arm } = await poolWith(workerSource(true).replace(call, `if (control[${ARMED}]) process.exit(7); ${call}`), {
      timeoutMs: 2000,
    });
    const backend = createBackend(runtime);
    const w = quantize(tensor(new Float32Array(64 * 96).fill(0.5), [64, 96]), format("int4_b32"));
    const layer = prepareMatmul(w, { backend, activations: "int8" });
    const x = new Float32Array(96).fill(1);
    const y = layer.run(x, 1);
    expect(layer.run(x, 1)).toEqual(y);
    arm();
    expect(() => untilItThrows(() => layer.run(x, 1))).toThrowError(expect.objectContaining({ code: "E_DEVICE" }));
    expect(await gone).toBe(7);
    expect(() => layer.run(x, 1)).toThrowError(/live workers.*Make another backend/);
    await expect(layer.runAsync(x, 1)).rejects.toThrowError(/Make another backend/);
    // layers and backend still end in order
    layer.dispose();
    backend.dispose();
    expect(() => layer.run(x, 1)).toThrowError(/disposed/);
  });

  it("a worker that dies in mid-run is noticed while this thread waits, however it dies", async () => {
    const workerThreads = await import("node:worker_threads");
    for (const death of ["process.exit(7);", 'throw new Error("not caught");']) {
      // out of the loop that would catch it
      const source = workerSource(true)
        .replace(call, `if (control[${ARMED}]) { control[${ARMED}] = 2; return; } ${call}`)
        .replace("process.exit(0);", `if (control[${ARMED}] === 2) { ${death} } process.exit(0);`);
      let words!: Int32Array;
      const hooks = nodeHooks(workerThreads, source);
      // a limit that no test waits for
      const pool = await createPool(
        { threads: 2, timeoutMs: 600_000 },
        { ...hooks, start: (index, control, ...rest) => ((words = control), hooks.start(index, control, ...rest)) },
      );
      const runtime = createRuntime({ features: wasmFeatures(), pool });
      const { space, address } = runtime.allocate(4 * 1000);
      const job = (): void => runtime.work(space, counting, 1000, Int32Array.of(address), 0);
      job();
      Atomics.store(words, ARMED, 1);
      expect(() => untilItThrows(job)).toThrowError(/expected all workers to finish, got: worker 1 of 1 ended. Make another backend/);
      expect(job).toThrowError(/live workers.*Make another backend/);
      runtime.dispose();
    }
  });

  it("a worker that does not answer is ended, so that it writes to memory no more", async () => {
    const { runtime, gone, arm } = await poolWith(
      workerSource(true).replace(call, `while (control[${ARMED}]) Atomics.load(control, 0); ${call}`),
      { timeoutMs: 300 },
    );
    const { space, address } = runtime.allocate(4 * 1000);
    const job = (): void => runtime.work(space, counting, 1000, Int32Array.of(address), 0);
    job();
    arm();
    expect(() => untilItThrows(job)).toThrowError(/1 of 1 workers gave no answer for 300 ms/);
    await gone;
    expect(job).toThrowError(/1 of 1 workers gave no answer for 300 ms. Make another backend/);
    runtime.dispose();
  });

  it("work is taken over from a worker that does not show up, and nobody waits for it", async () => {
    const look = "if (offer % 2 === 0 || Atomics";
    expect(workerSource(true)).toContain(look);
    const { runtime, arm, control } = await poolWith(workerSource(true).replace(look, `while (control[${ARMED}]); ${look}`), {
      timeoutMs: 300,
    });
    const { space, address } = runtime.allocate(4 * 1000);
    const words = new Int32Array(space.buffer, address, 1000).fill(0);
    const job = (): void => runtime.work(space, counting, 1000, Int32Array.of(address), 0);
    arm();
    // one that was waited for would be given up, with an error
    for (let i = 1; i <= 50; i++) {
      job();
      expect(words.every((count) => count === i)).toBe(true);
    }
    // and it is welcome again
    Atomics.store(control(), ARMED, 0);
    for (let i = 0; control()[OWN + FINISHED] === 0; i++) {
      expect(i).toBeLessThan(10_000);
      job();
    }
    runtime.dispose();
  });

  it("a worker that keeps a job waiting gets none for a while", async () => {
    const { runtime, arm, control } = await poolWith(
      workerSource(true).replace(
        call,
        `for (const end = performance.now() + (control[${ARMED}] ? 5 : 0); performance.now() < end;); ${call}`,
      ),
    );
    const { space, address } = runtime.allocate(4 * 1000);
    const words = new Int32Array(space.buffer, address, 1000).fill(0);
    let jobs = 0;
    const job = (): void => {
      runtime.work(space, counting, 1000, Int32Array.of(address), 0);
      expect(words.every((count) => count === jobs + 1)).toBe(true);
      jobs++;
    };
    const finished = (): number => Atomics.load(control(), OWN + FINISHED);
    // compiled: the job that does it may be slow
    while (finished() === 0) job();
    arm();
    // eight jobs of 5 ms each that it takes, and between them, while it rests, jobs that this thread does alone: the
    // third time in a row it rests for longer than any of them takes
    let alone = 0;
    for (let last = finished(), taken = 0; taken < 8; last = finished()) {
      job();
      if (finished() !== last) taken++;
      else alone++;
    }
    expect(alone).toBeGreaterThan(0);
    runtime.dispose();
  });

  it("rests of late workers: longer at each relapse, forgotten after a good while", () => {
    const present = attendance(3);
    expect(present.invited(1, 0)).toBe(true);
    let now = 1000;
    for (const rest of [2, 16, 128, 400, 400]) {
      present.late(1, now);
      expect(present.invited(1, now + rest - 0.1)).toBe(false);
      expect(present.invited(1, now + rest)).toBe(true);
      expect(present.invited(2, now)).toBe(true);
      now += rest + 1;
    }
    now += 4000;
    present.late(1, now);
    expect(present.invited(1, now + 2)).toBe(true);
  });

  it("a kernel that fails on the calling thread is an error of that product and of every later one", async () => {
    const pool = await startPool({ threads: 2 });
    const runtime = createRuntime({ features: wasmFeatures(), pool });
    const { space, address } = runtime.allocate(4 * 1000);
    const [at, panels] = [space.scratch("arguments", 1024), 0];
    const trap = (): void => {
      throw new Error("trap");
    };
    writeJob(new Int32Array(space.buffer, at, jobBytes(2) / 4), Int32Array.of(address), 10, 2);
    expect(() => pool.run(space, counting, at, panels, 0, trap)).toThrowError("trap");
    expect(() => runtime.work(space, counting, 10, Int32Array.of(address), 0)).toThrowError(/calling thread.*Make another backend/);
    runtime.dispose();
  });

  it("a kernel that fails in a worker is an error of that product", async () => {
    const { runtime, worker, arm } = await poolWith(
      workerSource(true).replace(call, `if (control[${ARMED}]) throw new Error("trap"); ${call}`),
    );
    const { space, address } = runtime.allocate(4 * 1000);
    const job = (): void => runtime.work(space, counting, 1000, Int32Array.of(address), 0);
    job();
    arm();
    expect(() => untilItThrows(job)).toThrowError(/failure in one of them/);
    expect(job).toThrowError(/a worker failed.*Make another backend/);
    await worker.terminate();
    runtime.dispose();
  });

  it("a worker that never comes back is given up, and the process still ends", () => {
    const root = fileURLToPath(new URL("../../../", import.meta.url));
    const script = `
      import { quantize, tensor, prepareMatmul } from "./src/index.ts";
      import { format } from "./formats/index.ts";
      import { Worker, MessageChannel } from "node:worker_threads";
      import { createPool } from "./kernels/wasm/engine/pool.ts";
      import { workerSource } from "./kernels/wasm/engine/worker.ts";
      import { createRuntime } from "./kernels/wasm/engine/runtime.ts";
      import { wasmFeatures } from "./kernels/wasm/engine/features.ts";
      import { createBackend } from "./src/backends/wasm/backend.ts";
      const call = ${JSON.stringify(call)};
      const pool = await createPool({ threads: 2, timeoutMs: 300 }, { manyMemories: true, start(index, control, spinMs, onExit) {
        const { port1, port2 } = new MessageChannel();
        const worker = new Worker(workerSource(true).replace(call, "for (;;) Atomics.load(control, 0);"), { eval: true, execArgv: [], workerData: { control, index, port: port2, spinMs }, transferList: [port2] });
        worker.on("exit", onExit); worker.unref(); port1.unref();
        return { worker, send: (at, memory) => port1.postMessage({ index: at, memory }) };
      } });
      const backend = createBackend(createRuntime({ features: wasmFeatures(), pool }));
      const w = quantize(tensor(new Float32Array(4096).fill(1), [64, 64]), format("int4_b32"));
      try { const layer = prepareMatmul(w, { backend, activations: "int8" }); for (;;) layer.run(new Float32Array(64), 1); } catch (e) { console.log(e.code, e.message); }
      backend.dispose();`;
    const out = execFileSync(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
      cwd: root,
      timeout: 150_000,
      encoding: "utf8",
    });
    expect(out).toMatch(/E_DEVICE.*1 of 1 workers gave no answer for 300 ms/);
  });

  it("runAsync answers in the order of its calls, beside run, after parking, and rejects instead of throwing", async () => {
    const [one, two] = [await wasm(), await wasm({ threads: 2 })];
    const [n, k] = [96, 128];
    const rows = [1, 7, 64, 2, 33, 1];
    const layers = ["int4_b32", "bipolar1_b32", "ternary_row", "float32"].map((name, i) => {
      const w = quantize(
        tensor(
          Float32Array.from({ length: n * k }, (_, j) => Math.sin(j * 12.9898 + i)),
          [n, k],
        ),
        format(name),
      );
      const activations = name === "float32" ? ("float32" as const) : ("int8" as const);
      return { a: prepareMatmul(w, { backend: one, activations }), b: prepareMatmul(w, { backend: two, activations }) };
    });
    for (let round = 0; round < 4; round++) {
      const order: number[] = [];
      let ticks = 0;
      const timer = setInterval(() => ticks++, 1);
      const jobs = rows.flatMap((m, i) =>
        layers.map(async ({ a, b }, j) => {
          const x = Float32Array.from({ length: m * k }, (_, at) => Math.cos(at * 78.233 + i + j));
          const out = new Float32Array(m * n);
          const y = await b.runAsync(x, m, out);
          order.push(i * layers.length + j);
          expect(y).toBe(out);
          expect(Array.from(y)).toEqual(Array.from(a.run(x, m)));
          // a product of one's own between those that are under way
          expect(Array.from(b.run(x, m))).toEqual(Array.from(y));
        }),
      );
      await Promise.all(jobs);
      expect(order).toEqual(Array.from({ length: rows.length * layers.length }, (_, i) => i));
      // workers park after half a millisecond: the next round wakes them
      await new Promise((resolve) => setTimeout(resolve, 20));
      clearInterval(timer);
      expect(ticks).toBeGreaterThan(0);
    }
    const { b } = layers[0];
    await expect(b.runAsync(new Float32Array(k - 1), 1)).rejects.toMatchObject({ code: "E_SHAPE" });
    two.dispose();
    await expect(b.runAsync(new Float32Array(k), 1)).rejects.toMatchObject({ code: "E_DISPOSED" });
    one.dispose();
  });

  it("keeps no process alive", () => {
    const root = fileURLToPath(new URL("../../../", import.meta.url));
    const script = `import { wasm } from "./src/index.ts"; const b = await wasm({ threads: 3 }); console.log("threads", b.threads);`;
    const out = execFileSync(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
      cwd: root,
      timeout: 150_000,
      encoding: "utf8",
    });
    expect(out).toContain("threads 3");
  });
});
