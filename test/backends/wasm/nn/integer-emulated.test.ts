// Integer convolutions and products of processors that this machine may not be: the relaxed dot product is printed as
// baseline SIMD128 with the meaning that it has where it is exact for unsigned bytes (x86 with VNNI), or signed ones
// (ARM), so that whole-byte operands are checked bit for bit wherever the tests run.
import { afterAll, describe, it, vi } from "vitest";
import type { Emit, FunctionBuilder, Operand } from "../../../../kernels/wasm/engine/asm.ts";
import { wasmWith } from "../../../../src/backends/wasm/backend.ts";
import { engineMemory } from "../../../../src/backends/wasm/memory.ts";
import { checkAny, checkConv, checkProduct, FINISHES, NAMED, PRODUCTS } from "./integer-cases.ts";

/** Whether the second operand's bytes are signed: kernels are printed when they are first run. */
const meaning = vi.hoisted(() => ({ signed: false }));

vi.mock(import("../../../../kernels/wasm/engine/asm.ts"), async (original) => {
  const real = await original();
  const lower = (f: FunctionBuilder): void => {
    const op = f.op.bind(f);
    const [x, w, low, high] = f.locals("v128", 4);
    const lanes = (odd: number): number[] => [0, 2, 4, 6].flatMap((i) => [0, 1, 2, 3].map((b) => 4 * (i + odd) + b));
    const dot = (a: Operand, b: Operand, c: Operand) => (): void => {
      const part = (half: "low" | "high"): Emit =>
        op("i32x4.dot_i16x8_s", op(`i16x8.extend_${half}_i8x16_s`, x), op(`i16x8.extend_${half}_i8x16_${meaning.signed ? "s" : "u"}`, w));
      f.set(x, a);
      f.set(w, b);
      f.set(low, part("low"));
      f.set(high, part("high"));
      f.run(op("i32x4.add", op("i32x4.add", f.shuffle(lanes(0), low, high), f.shuffle(lanes(1), low, high)), c));
    };
    f.op = (name: string, ...operands: Operand[]): Emit =>
      name === "i32x4.relaxed_dot_i8x16_i7x16_add_s" ? dot(operands[0], operands[1], operands[2]) : op(name, ...operands);
  };
  class ModuleBuilder extends real.ModuleBuilder {
    override func(...[name, params, results, write]: Parameters<InstanceType<typeof real.ModuleBuilder>["func"]>): { index: number } {
      return super.func(name, params, results, (f) => {
        lower(f);
        write(f);
      });
    }
  }
  return { ...real, ModuleBuilder };
});

const engines = (["u8", "s8"] as const).map((dot) => ({
  dot,
  backend: wasmWith({ simd: true, relaxed: true, dot, sharedMemory: false }),
}));
afterAll(() => engines.forEach(({ backend }) => backend.dispose()));

describe.each(engines)("$dot", ({ dot, backend }) => {
  it("convolutions and products", () => {
    meaning.signed = dot === "s8";
    const memory = engineMemory(backend);
    for (const [, c] of NAMED) FINISHES.forEach((finish, f) => checkConv(memory, { ...c, unsigned: f % 2 === 0, finish }));
    for (let n = 0; n < 40; n++) checkAny(memory);
    for (const [m, k, n] of PRODUCTS.slice(1, 4)) checkProduct(memory, m, k, n);
  });
});
