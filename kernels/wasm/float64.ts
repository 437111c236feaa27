// The float64 product of the quantizers' algebra in SIMD128: OUT[m, n] = A^T B with A and B packed in strips of four, [strip][depth][4]. Four by
// four tiles in eight accumulators of f64x2: 16 multiply-adds per step on 2 vector and 4 splat loads. Results equal plain float64 sums in the
// order of the depth. Threads are not used. Layout idea: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
import { ModuleBuilder } from "./asm.ts";
import { engine, type WasmFunction, type WasmMemory } from "./engine.ts";

/** Strips of A, of B and depth per call: 128 x 256 doubles of A (256 KB), 256 x 256 of B (512 KB), and their product (256 KB). */
export const MAX_ROWS = 128;
export const MAX_COLUMNS = 256;
export const MAX_DEPTH = 256;

export interface Float64Kernel {
  /** [strip][depth][4], MAX_ROWS / 4 strips. */
  readonly a: Float64Array;
  /** [strip][depth][4], MAX_COLUMNS / 4 strips. */
  readonly b: Float64Array;
  /** Row-major, `columnStrips * 4` per row. */
  readonly out: Float64Array;
  /** Computes out from a and b. */
  run(rowStrips: number, columnStrips: number, depth: number): void;
}

function moduleBytes(): Uint8Array<ArrayBuffer> {
  const m = new ModuleBuilder();
  m.func("product", ["i32", "i32", "i32", "i32", "i32", "i32"], [], (f) => {
    const [a, b, out, rowStrips, columnStrips, depth] = [0, 1, 2, 3, 4, 5].map((i) => f.param(i));
    const column = f.local("i32");
    const row = f.local("i32");
    const pa = f.local("i32");
    const pb = f.local("i32");
    const end = f.local("i32");
    const to = f.local("i32");
    const stripBytes = f.local("i32");
    const rowBytes = f.local("i32");
    const [b0, b1, splat] = f.locals("v128", 3);
    const acc = f.locals("v128", 8);
    f.set(stripBytes, f.op("i32.shl", depth, f.i32(5)));
    f.set(rowBytes, f.op("i32.shl", columnStrips, f.i32(5)));
    f.set(column, f.i32(0));
    f.doWhile(
      () => {
        f.set(pa, a);
        f.set(row, f.i32(0));
        f.doWhile(
          () => {
            f.set(pb, f.op("i32.add", b, f.op("i32.mul", column, stripBytes)));
            f.set(end, f.op("i32.add", pa, stripBytes));
            for (const v of acc) f.set(v, f.v128f32(0));
            f.doWhile(
              () => {
                f.set(b0, f.load("v128.load", pb));
                f.set(b1, f.load("v128.load", pb, 16));
                for (let i = 0; i < 4; i++) {
                  f.set(splat, f.load("v128.load64_splat", pa, 8 * i));
                  f.set(acc[2 * i], f.op("f64x2.add", acc[2 * i], f.op("f64x2.mul", splat, b0)));
                  f.set(acc[2 * i + 1], f.op("f64x2.add", acc[2 * i + 1], f.op("f64x2.mul", splat, b1)));
                }
                f.bump(pa, 32);
                f.bump(pb, 32);
              },
              f.op("i32.lt_u", pa, end),
            );
            f.set(
              to,
              f.op(
                "i32.add",
                f.op("i32.add", out, f.op("i32.shl", column, f.i32(5))),
                f.op("i32.mul", f.op("i32.shl", row, f.i32(2)), rowBytes),
              ),
            );
            for (let i = 0; i < 4; i++) {
              f.store("v128.store", to, 0, acc[2 * i]);
              f.store("v128.store", to, 16, acc[2 * i + 1]);
              f.set(to, f.op("i32.add", to, rowBytes));
            }
            f.bump(row, 1);
          },
          f.op("i32.lt_u", row, rowStrips),
        );
        f.bump(column, 1);
      },
      f.op("i32.lt_u", column, columnStrips),
    );
  });
  return m.bytes();
}

let kernel: Float64Kernel | null | undefined;

/** The kernel, made on first use; null where the engine has no WebAssembly with SIMD. */
export function float64Kernel(): Float64Kernel | null {
  if (kernel !== undefined) return kernel;
  kernel = null;
  if (engine === undefined) return null;
  const bytes = moduleBytes();
  if (!engine.validate(bytes)) return null;
  const sizes = [MAX_ROWS * MAX_DEPTH, MAX_COLUMNS * MAX_DEPTH, MAX_ROWS * MAX_COLUMNS];
  const starts = [0, 8 * sizes[0], 8 * (sizes[0] + sizes[1])];
  let memory: WasmMemory;
  let product: WasmFunction;
  try {
    memory = new engine.Memory({ initial: Math.ceil((8 * (sizes[0] + sizes[1] + sizes[2])) / 65536), maximum: 65536 });
    product = new engine.Instance(new engine.Module(bytes), { m: { m: memory } }).exports.product;
  } catch {
    // No memory left for it: the plain product gives the same numbers.
    return null;
  }
  const [a, b, out] = starts.map((at, i) => new Float64Array(memory.buffer, at, sizes[i]));
  kernel = {
    a,
    b,
    out,
    run: (rowStrips, columnStrips, depth) => void product(starts[0], starts[1], starts[2], rowStrips, columnStrips, depth),
  };
  return kernel;
}
