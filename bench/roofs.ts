// Roofs of this machine and engine: a read loop over memory, and chains of the instructions that products are made of.
import { ModuleBuilder, type Emit, type FunctionBuilder, type Local } from "../kernels/wasm/engine/asm.ts";
import { engine, type WasmFunction } from "../kernels/wasm/engine/engine.ts";
import { wasmFeatures } from "../kernels/wasm/engine/features.ts";
import { writeWork } from "../kernels/wasm/engine/items.ts";
import { family, kernel } from "../kernels/wasm/engine/family.ts";
import { createRuntime } from "../kernels/wasm/engine/runtime.ts";
import { startPool } from "../src/backends/wasm/threads.ts";
import type { Candidate } from "./measure.ts";

function instantiate(write: (m: ModuleBuilder) => void, pages: number): Record<string, WasmFunction> {
  const m = new ModuleBuilder();
  write(m);
  const memory = new engine.Memory({ initial: pages, maximum: 65536 });
  // pages never written would all be one page of zeros
  if (pages > 1) new Uint8Array(memory.buffer).fill(1);
  return new engine.Instance(new engine.Module(m.bytes()), { m: { m: memory } }).exports;
}

/** read(at, end): 256 bytes at a time; what they hold goes to `sink`. */
function writeRead(f: FunctionBuilder, at: Local, end: Local, sink: Emit): void {
  const acc = f.locals("v128", 8);
  f.doWhile(
    () => {
      for (let i = 0; i < 16; i++) f.set(acc[i % 8], f.op("v128.or", acc[i % 8], f.load("v128.load", at, 16 * i)));
      f.bump(at, 256);
    },
    f.op("i32.lt_u", at, end),
  );
  const all = acc.map((a): Emit => f.get(a)).reduce((a, b) => f.op("v128.or", a, b));
  f.store("v128.store", sink, 0, all);
}

/** Reads `bytes` of memory (a multiple of 4096) starting at one of `places` copies in turn. */
export function readLoop(name: string, bytes: number, places = 1): Candidate {
  const size = Math.ceil(bytes / 4096) * 4096;
  const { read } = instantiate(
    (m) => {
      m.func("read", ["i32", "i32"], [], (f) => writeRead(f, f.param(0), f.param(1), f.i32(0)));
    },
    Math.ceil((size * places) / 65536) + 1,
  );
  let place = 0;
  return {
    name,
    bytes: size,
    cold: places > 1,
    run: () => {
      // pieces of 64 KB per call, as a kernel reads blocks
      const start = 64 + (place++ % places) * size;
      for (let at = 0; at < size; at += 65536) read(start + at, start + Math.min(size, at + 65536));
    },
  };
}

type Step = (f: FunctionBuilder, acc: Local, a: Local, b: Local) => void;

/**
 * Peak of one instruction sequence on `chains` independent accumulators; ops per step counts multiply and add of
 * 16-byte vectors.
 */
function peak(name: string, opsPerStep: number, step: Step, chains = 10): Candidate {
  const steps = 20;
  const { loop } = instantiate((m) => {
    m.func("loop", ["i32"], [], (f) => {
      const n = f.param(0);
      const acc = f.locals("v128", chains);
      const [a, b] = f.locals("v128", 2);
      f.set(a, f.load("v128.load", f.i32(0)));
      f.set(b, f.load("v128.load", f.i32(16)));
      f.doWhile(
        () => {
          for (let s = 0; s < steps; s++) step(f, acc[s % chains], a, b);
          f.bump(n, -1);
        },
        f.op("i32.gt_s", n, f.i32(0)),
      );
      acc.forEach((v, i) => f.store("v128.store", f.i32(0), 64 + 16 * i, v));
    });
  }, 1);
  const calls = 200;
  return {
    name,
    ops: opsPerStep * steps * 100 * calls,
    run: () => {
      for (let i = 0; i < calls; i++) loop(100);
    },
  };
}

export const f32Madd = (): Candidate =>
  peak("roof f32 relaxed_madd", 8, (f, acc, a, b) => f.set(acc, f.op("f32x4.relaxed_madd", a, b, acc)));
export const f32MulAdd = (): Candidate =>
  peak("roof f32 mul+add", 8, (f, acc, a, b) => f.set(acc, f.op("f32x4.add", f.op("f32x4.mul", acc, a), b)));
export const dotI16 = (): Candidate =>
  peak("roof i32x4.dot_i16x8_s + add", 16, (f, acc, a, b) => f.set(acc, f.op("i32x4.dot_i16x8_s", f.op("i32x4.add", acc, a), b)));
export const dotRelaxed = (): Candidate =>
  peak("roof relaxed_dot_i8x16_i7x16_add", 32, (f, acc, a, b) => f.set(acc, f.op("i32x4.relaxed_dot_i8x16_i7x16_add_s", a, b, acc)));
export const dotRelaxed16 = (): Candidate =>
  peak("roof i16x8.relaxed_dot_i8x16_i7x16 + add", 32, (f, acc, a, b) =>
    f.set(acc, f.op("i16x8.relaxed_dot_i8x16_i7x16_s", f.op("i16x8.add", acc, a), b)),
  );

/**
 * What two threads gain on this machine where nothing is shared but the machine: `bytes` read from the last-level
 * cache, and integer products in registers, on one and two threads of a pool, shared out as items of every kernel are.
 * Rows of two threads end in ", 2 threads".
 */
export async function threadRoofs(bytes: number): Promise<{ readonly candidates: Candidate[]; dispose(): void }> {
  const piece = 65536;
  const items = Math.ceil(bytes / piece);
  const build = (write: (f: FunctionBuilder, item: Local, base: Emit, panel: Local) => void) => (): Uint8Array<ArrayBuffer> => {
    const m = new ModuleBuilder({ shared: true });
    const one = m.func(null, ["i32", "i32", "i32"], [], (f) => write(f, f.param(0), f.get(f.param(1)), f.param(2)));
    writeWork(m, (f, args, panel) => (item) => f.run(f.call(one, item, f.load("i32.load", args), panel)));
    return m.bytes();
  };
  const read = kernel(family("bench read", build((f, item, base, panel) => {
    const [at, end] = f.locals("i32", 2);
    f.set(at, f.op("i32.add", base, f.op("i32.mul", item, f.i32(piece))));
    f.set(end, f.op("i32.add", at, f.i32(piece)));
    writeRead(f, at, end, f.get(panel));
  })), {}); // prettier-ignore
  const products = kernel(family("bench products", build((f, _item, base, panel) => {
    const acc = f.locals("v128", 10);
    const [a, b] = f.locals("v128", 2);
    const left = f.local("i32");
    f.set(a, f.load("v128.load", base));
    f.set(b, f.load("v128.load", base, 16));
    f.set(left, f.i32(500));
    f.doWhile(() => {
      for (let s = 0; s < 20; s++) f.set(acc[s % 10], f.op("i32x4.dot_i16x8_s", f.op("i32x4.add", acc[s % 10], a), b));
      f.bump(left, -1);
    }, left);
    acc.forEach((v) => f.store("v128.store", panel, 0, f.get(v)));
  })), {}); // prettier-ignore
  const runtimes = [1, 2].map(async (threads) => {
    const runtime = createRuntime({ features: wasmFeatures(), pool: await startPool({ threads }) });
    const { space, address } = runtime.allocate(items * piece);
    // pages never written would all be one page of zeros
    new Uint8Array(space.buffer, address, items * piece).fill(1);
    const args = Int32Array.of(address);
    const after = threads === 2 ? ", 2 threads" : "";
    const two = threads === 2 ? { threads: 2 as const } : {};
    const candidates: Candidate[] = [
      { name: `products in registers${after}`, ...two, run: () => runtime.work(space, products, 100, args, 64) },
      { name: `read loop of ${(bytes / 1e6).toFixed(1)} MB${after}`, bytes, ...two, run: () => runtime.work(space, read, items, args, 64) },
    ];
    return { candidates, runtime };
  });
  const made = await Promise.all(runtimes);
  return { candidates: made.flatMap((m) => m.candidates), dispose: () => made.forEach(({ runtime }) => runtime.dispose()) };
}
