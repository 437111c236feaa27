// Threads: same numbers as one thread, workers that die or stop answering are errors and not hangs, and a process with a live pool still exits.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { createPool, workerSource, type WorkerLike } from "../../kernels/wasm/pool.ts";
import { format } from "../../formats/index.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../src/index.ts";
import { startPool } from "../../src/backends/threads.ts";
import { createRuntime, kernel } from "../../kernels/wasm/runtime.ts";
import { wasmFeatures } from "../../kernels/wasm/features.ts";
import { ModuleBuilder } from "../../kernels/wasm/asm.ts";

const counting = kernel("test count", { v: 1 }, () => {
  // every item adds 1 to its own word at 1024 + 4 * item; args: counter, items, base
  const m = new ModuleBuilder({ shared: true });
  m.func("work", ["i32", "i32"], [], (f) => {
    const args = f.param(0);
    const item = f.local("i32");
    const next = (): void => f.set(item, f.atomic("i32.atomic.rmw.add", args, 0, f.i32(1)));
    next();
    f.while(f.op("i32.lt_u", item, f.load("i32.load", args, 4)), () => {
      const at = f.op("i32.add", f.load("i32.load", args, 8), f.op("i32.shl", item, f.i32(2)));
      f.run(f.op("drop", f.atomic("i32.atomic.rmw.add", at, 0, f.i32(1))));
      next();
    });
  });
  return m.bytes();
});

describe("threads", () => {
  it("take every item exactly once, job after job, and after parking", async () => {
    const pool = await startPool({ threads: 3 });
    const runtime = createRuntime({ features: wasmFeatures(), pool });
    const { space, address } = runtime.allocate(4 * 1000);
    for (let job = 0; job < 300; job++) {
      const items = 1 + ((job * 37) % 1000);
      new Int32Array(space.buffer, address, 1000).fill(0);
      runtime.work(space, counting, Int32Array.from([0, items, address]), 0);
      const counts = new Int32Array(space.buffer, address, 1000);
      expect(counts.subarray(0, items).every((c) => c === 1) && counts.subarray(items).every((c) => c === 0)).toBe(true);
      if (job % 100 === 50) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    runtime.dispose();
  });

  it("give the numbers of one thread, bit for bit", async () => {
    const one = await wasm();
    const two = await wasm({ threads: 2 });
    const data = Float32Array.from({ length: 200 * 96 }, (_, i) => Math.sin(i * 12.9898) * 3);
    const w = quantize(tensor(data, [200, 96]), format("int4_b32"));
    for (const activations of ["float32", "int16", "int8"] as const)
      for (const m of [1, 9]) {
        const x = Float32Array.from({ length: m * 96 }, (_, i) => Math.cos(i * 78.233));
        const a = prepareMatmul(w, { backend: one, activations }).run(x, m);
        const b = prepareMatmul(w, { backend: two, activations }).run(x, m);
        expect(Array.from(b)).toEqual(Array.from(a));
      }
    one.dispose();
    two.dispose();
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
    const job = (): void => runtime.work(space, counting, Int32Array.from([0, 1000, address]), 0);
    job();
    // killed, and a job started before this thread can hear of it: no answer within the timeout
    void workers[0].terminate();
    const begin = performance.now();
    expect(job).toThrowError(/workers gave no answer for 500 ms|live workers/);
    expect(performance.now() - begin).toBeLessThan(5000);
    await gone;
    expect(job).toThrowError(/Make another backend/);
    runtime.dispose();
  });

  it("keeps no process alive", () => {
    const root = fileURLToPath(new URL("../../", import.meta.url));
    const script = `import { wasm } from "./src/index.ts"; const b = await wasm({ threads: 3 }); console.log("threads", b.threads);`;
    const out = execFileSync(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], {
      cwd: root,
      timeout: 30_000,
      encoding: "utf8",
    });
    expect(out).toContain("threads 3");
  });
});
