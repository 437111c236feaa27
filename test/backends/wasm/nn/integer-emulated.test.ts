// Integer convolutions and products of processors that this machine may not be: the relaxed dot product is printed as
// baseline SIMD128 with the meaning that it has where it is exact for unsigned bytes (x86 with VNNI), or signed ones
// (ARM), so that whole-byte operands are checked bit for bit wherever the tests run.
import { afterAll, describe, it, vi } from "vitest";
import { wasmWith } from "../../../../src/backends/wasm/backend.ts";
import { engineMemory } from "../../../../src/backends/wasm/memory.ts";
import { checkAny, checkConv, checkProduct, FINISHES, NAMED, PRODUCTS } from "./integer-cases.ts";

/** Whether the second operand's bytes are signed: kernels are printed when they are first run. */
const meaning = vi.hoisted(() => ({ signed: false }));

vi.mock(import("../../../../kernels/wasm/engine/asm.ts"), async (original) => {
  const { emulated } = await import("../../../helpers/emulated.ts");
  return emulated(await original(), () => meaning.signed);
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
