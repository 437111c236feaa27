// What this engine's WebAssembly really does, found by running it on numbers that tell implementations apart.
// Validation alone is not enough: relaxed dot products differ between engines, and V8 11 (Node 20 with its flag)
// compiles one wrongly in its baseline tier.
import { ModuleBuilder, type FunctionBuilder } from "./asm.ts";
import { engine } from "./engine.ts";

/**
 * How i32x4.relaxed_dot_i8x16_i7x16_add_s reads its second operand. `none`: not available or not exact even for 0..127.
 * `i7`: exact only for 0..127. `u8`: exact as unsigned bytes (x86 VNNI). `s8`: exact as signed bytes (ARM sdot).
 */
export type DotOperand = "none" | "i7" | "u8" | "s8";

export interface WasmFeatures {
  readonly simd: boolean;
  /** Relaxed SIMD that passed its probe. */
  readonly relaxed: boolean;
  readonly dot: DotOperand;
  /** Shared memory can be created here (in a browser: the page is cross-origin isolated). */
  readonly sharedMemory: boolean;
}

const DOT = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

/**
 * Probe module: dot(a, b, c) from 48 bytes at 0 to 48; a chain of eight dots on different operands, so that register
 * moves are seen.
 */
function probeModule(): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  m.func("dot", [], [], (f) => {
    f.store(
      "v128.store",
      f.i32(48),
      0,
      f.op(DOT, f.load("v128.load", f.i32(0)), f.load("v128.load", f.i32(16)), f.load("v128.load", f.i32(32))),
    );
  });
  // 4 accumulators live at once, several times: the tile shapes that V8 11's baseline compiler got wrong
  m.func("tile", [], [], (f: FunctionBuilder) => {
    const acc = f.locals("v128", 8);
    const [w0, w1, a] = f.locals("v128", 3);
    for (let step = 0; step < 2; step++) {
      f.set(w0, f.load("v128.load", f.i32(0), 256 + 32 * step));
      f.set(w1, f.load("v128.load", f.i32(0), 272 + 32 * step));
      for (let r = 0; r < 4; r++) {
        f.set(a, f.load("v128.load32_splat", f.i32(0), 512 + 16 * step + 4 * r));
        f.set(acc[2 * r], f.op(DOT, a, w0, acc[2 * r]));
        f.set(acc[2 * r + 1], f.op(DOT, a, w1, acc[2 * r + 1]));
      }
    }
    for (let i = 0; i < 8; i++) f.store("v128.store", f.i32(0), 1024 + 16 * i, acc[i]);
  });
  return m.bytes();
}

function probeDot(): DotOperand {
  const bytes = probeModule();
  if (!engine.validate(bytes)) return "none";
  let exports: { dot: () => void; tile: () => void };
  const memory = new engine.Memory({ initial: 1, maximum: 65536 });
  try {
    exports = new engine.Instance(new engine.Module(bytes), { m: { m: memory } }).exports as unknown as typeof exports;
  } catch {
    return "none";
  }
  const s8 = new Int8Array(memory.buffer);
  const i32 = new Int32Array(memory.buffer);
  const dot = (a: number, b: number): number => {
    s8.fill(a, 0, 16).fill(b, 16, 32);
    i32.fill(7, 8, 12);
    exports.dot();
    return i32[12] - 7;
  };
  // exact where the second operand has 7 bits: extremes of both operands
  if (dot(-128, 127) !== 4 * -128 * 127 || dot(127, 127) !== 4 * 127 * 127 || dot(-1, 1) !== -4) return "none";
  // and in a whole tile, on several sets of numbers; checked in JavaScript that runs cold, so few
  for (let run = 0; run < 6; run++) {
    for (let i = 0; i < 64; i++) s8[256 + i] = (i * 37 + run * 11) & 127;
    for (let i = 0; i < 32; i++) s8[512 + i] = i * 29 + run * 53;
    exports.tile();
    for (let r = 0; r < 4; r++)
      for (let j = 0; j < 2; j++)
        for (let lane = 0; lane < 4; lane++) {
          let sum = 0;
          for (let step = 0; step < 2; step++)
            for (let b = 0; b < 4; b++) sum += s8[512 + 16 * step + 4 * r + b] * s8[256 + 32 * step + 16 * j + 4 * lane + b];
          if (i32[256 + 4 * (2 * r + j) + lane] !== sum) return "none";
        }
  }
  const full = dot(-128, 255);
  if (full === 4 * -128 * 255 && dot(127, 255) === 4 * 127 * 255 && dot(-128, 128) === 4 * -128 * 128) return "u8";
  if (full === 4 * -128 * -1 && dot(127, 255) === 4 * 127 * -1 && dot(-128, 128) === 4 * 128 * 128) return "s8";
  return "i7";
}

/** V8 before 12 runs relaxed SIMD only behind a flag and compiles the dot product wrongly in its baseline tier. */
function knownBroken(): boolean {
  const v8 = (globalThis as { process?: { versions?: { v8?: string } } }).process?.versions?.v8;
  return v8 !== undefined && Number.parseInt(v8, 10) < 12;
}

/**
 * Why this place compiles no modules (a content policy), or null where it does. Validation, which no policy forbids,
 * tells nothing of it.
 */
export function compileRefusal(): Error | null {
  try {
    new engine.Module(new ModuleBuilder().bytes());
    return null;
  } catch (error) {
    return error as Error;
  }
}

let cached: WasmFeatures | null = null;

/** Probes once per process. */
export function wasmFeatures(): WasmFeatures {
  if (cached !== null) return cached;
  const base = new ModuleBuilder();
  base.func("f", [], [], (f) => {
    f.store("v128.store", f.i32(0), 0, f.op("i32x4.dot_i16x8_s", f.v128i16(1), f.v128i16(1)));
  });
  const simd = typeof engine === "object" && engine.validate(base.bytes());
  const dot = simd && !knownBroken() ? probeDot() : "none";
  let sharedMemory: boolean;
  try {
    sharedMemory = new engine.Memory({ initial: 1, maximum: 1, shared: true }).buffer instanceof SharedArrayBuffer;
  } catch {
    sharedMemory = false;
  }
  cached = Object.freeze({ simd, relaxed: dot !== "none", dot, sharedMemory });
  return cached;
}
