// Relaxed instructions as baseline SIMD128 with the meaning that they have on a given processor: tests replace the
// assembler by this, so that kernels of engines that this machine may not be are checked bit for bit wherever they run.
import type * as asm from "../../kernels/wasm/engine/asm.ts";
import type { Emit, FunctionBuilder, Operand } from "../../kernels/wasm/engine/asm.ts";

type Assembler = typeof asm;

/** Replaces instructions of f by expressions over their operands, each held in a local. */
function lower(f: FunctionBuilder, isSigned: () => boolean): void {
  const op = f.op.bind(f);
  const held = f.locals("v128", 5);
  const [x, w, low, high, even] = held;
  const pairs = (): void => {
    // signed bytes times unsigned or signed ones, summed in pairs, as i32
    const part = (half: "low" | "high"): Emit =>
      op("i32x4.dot_i16x8_s", op(`i16x8.extend_${half}_i8x16_s`, x), op(`i16x8.extend_${half}_i8x16_${isSigned() ? "s" : "u"}`, w));
    f.set(low, part("low"));
    f.set(high, part("high"));
  };
  const lanes = (odd: number): number[] => [0, 2, 4, 6].flatMap((i) => [0, 1, 2, 3].map((b) => 4 * (i + odd) + b));
  const emulations: Record<string, (...operands: Operand[]) => Emit> = {
    "f32x4.relaxed_madd": (a, b, c) => op("f32x4.add", op("f32x4.mul", a, b), c),
    "i8x16.relaxed_swizzle": (table, index) => op("i8x16.swizzle", table, index),
    // pmaddubsw: sums of pairs saturate at 16 bits
    "i16x8.relaxed_dot_i8x16_i7x16_s": (a, b) => () => {
      f.set(x, a);
      f.set(w, b);
      pairs();
      f.run(op("i16x8.narrow_i32x4_s", low, high));
    },
    // vpdpbusd, sdot: nothing saturates
    "i32x4.relaxed_dot_i8x16_i7x16_add_s": (a, b, c) => () => {
      f.set(x, a);
      f.set(w, b);
      pairs();
      f.set(even, op("i32x4.add", f.shuffle(lanes(0), low, high), f.shuffle(lanes(1), low, high)));
      f.run(op("i32x4.add", even, c));
    },
  };
  f.op = (name: string, ...operands: Operand[]): Emit => emulations[name]?.(...operands) ?? op(name, ...operands);
}

/**
 * The assembler with relaxed instructions emulated. `isSigned`: are the bytes of the second operand of dot products
 * signed (ARM), not unsigned (x86 with VNNI)? It is asked when a kernel is printed.
 */
export function emulated(real: Assembler, isSigned: () => boolean = () => false): Assembler {
  class ModuleBuilder extends real.ModuleBuilder {
    override func(...[name, params, results, write]: Parameters<InstanceType<Assembler["ModuleBuilder"]>["func"]>): { index: number } {
      return super.func(name, params, results, (f) => {
        lower(f, isSigned);
        write(f);
      });
    }
  }
  return { ...real, ModuleBuilder };
}
