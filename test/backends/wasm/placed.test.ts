// Products in place: the numbers of `run`, whatever lies around x and y, and further kernels on the same memory and
// threads.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { format } from "../../../formats/index.ts";
import { ModuleBuilder } from "../../../kernels/wasm/engine/asm.ts";
import { families, family } from "../../../kernels/wasm/engine/family.ts";
import { writeWork } from "../../../kernels/wasm/engine/items.ts";
import { engineMemory, placed } from "../../../src/backends/wasm/memory.ts";
import { prepareMatmul, quantize, tensor, wasm, type WasmBackend } from "../../../src/index.ts";
import { normalArray } from "../../helpers/random.ts";

let backends: WasmBackend[];
beforeAll(async () => {
  backends = [await wasm(), await wasm({ features: "simd" }), await wasm({ threads: 3 }), await wasm({ tune: true })];
});
afterAll(() => backends.forEach((backend) => backend.dispose()));

/** Halves each of its items' own 16 bytes in place: a row of four floats. */
const halve = family("test halve", ({ shared }: { readonly shared: boolean }) => {
  const m = new ModuleBuilder({ shared });
  writeWork(m, (f, args) => (item) => {
    const at = f.op("i32.add", f.load("i32.load", args), f.op("i32.shl", item, f.i32(4)));
    f.store("v128.store", at, 0, f.op("f32x4.mul", f.load("v128.load", at), f.constantF32(0.5)));
  });
  return m.bytes();
});

describe("products in place", () => {
  it("give the numbers of run and touch nothing else, for every kind of kernel, rows and columns of any number", () => {
    for (const [name, activations] of [
      ["int4_b32", "int8"],
      ["int4_b32", "int16"],
      ["int4_b32", "float32"],
      ["nf4_b64", "int8"],
      ["bipolar1_b32", "int8"],
      ["ternary_row", "int8"],
      ["int3_b24", "int8"],
      ["float8_e4m3fn_b32", "float32"],
      ["bfloat16_b32", "float32"],
      ["float32", "float32"],
    ] as const)
      // prettier-ignore
      for (const [n, k] of [
        [48, 96],
        [33, 100],
        [256, 64],
      ])
        for (const backend of backends) {
          using layer = prepareMatmul(quantize(tensor(normalArray(n * k, 1), [n, k]), format(name)), { backend, activations });
          const memory = engineMemory(backend);
          for (const m of [1, 2, 7, 60])
            for (const size of [1, 1e30]) {
              const x = normalArray(m * k, 2).map((v) => v * size);
              const expected = layer.run(x, m);
              const region = memory.allocate(4 * (m * (n + k) + 8));
              const [xAt, yAt] = [region.address + 16, region.address + 4 * (m * k + 6)];
              memory.floats(region.address, m * (n + k) + 8).fill(NaN);
              memory.floats(xAt, m * k).set(x);
              placed(layer).runAt(xAt, m, yAt);
              placed(layer).runAt(xAt, m, yAt);
              const what = `${name} ${activations} [${m}, ${k}] x [${n}, ${k}]`;
              expect(memory.floats(yAt, m * n).every((v, i) => Object.is(v, expected[i])), what).toBe(true);
              expect(memory.floats(xAt, m * k).every((v, i) => Object.is(v, x[i])), what).toBe(true);
              const around = [...memory.floats(region.address, 4), ...memory.floats(yAt - 8, 2), ...memory.floats(yAt + 4 * m * n, 2)];
              expect(around.every(Number.isNaN), what).toBe(true);
              // the same as columns of two matrices, made and made again
              const width = n >> 2;
              const parts = [
                { address: yAt, width },
                { address: yAt + 4 * m * width, width: n - width },
              ];
              for (let again = 0; again < 2; again++) {
                memory.floats(yAt, m * n).fill(NaN);
                placed(layer).runAt(xAt, m, parts);
                const [first, second] = parts.map((part) => memory.floats(part.address, m * part.width));
                const joined = expected.map((_, i) => {
                  const [row, column] = [Math.floor(i / n), i % n];
                  return column < width ? first[row * width + column] : second[row * (n - width) + column - width];
                });
                expect(joined.every((v, i) => Object.is(v, expected[i])), `${what}, parts`).toBe(true); // prettier-ignore
              }
              region.free();
            }
        }
  });

  it("chain with kernels of one's own on the same threads, without a copy", () => {
    for (const backend of backends) {
      const n = 64;
      const memory = engineMemory(backend);
      const w = quantize(tensor(normalArray(n * n, 3), [n, n]), format("int4_b32"));
      const layer = placed(prepareMatmul(w, { backend, activations: "int8" }));
      const other = prepareMatmul(w, { backend, activations: "int8" });
      const region = memory.allocate(3 * 4 * n);
      const [a, b, c] = [0, 1, 2].map((i) => region.address + 4 * n * i);
      const x = normalArray(n, 4);
      memory.floats(a, n).set(x);
      const kernel = memory.kernel(halve, { shared: memory.shared });
      expect(memory.kernel(halve, { shared: memory.shared })).toBe(kernel);
      layer.runAt(a, 1, b);
      memory.run(kernel, n / 4, Int32Array.of(b));
      layer.runAt(b, 1, c);
      const expected = other.run(
        other.run(x, 1).map((v) => v / 2),
        1,
      );
      expect(Array.from(memory.floats(c, n))).toEqual(Array.from(expected));
      region.free();
      region.free();
    }
  });

  it("a weight without room beside the activations works from a memory of its own", async () => {
    for (const threads of [1, 2]) {
      using backend = await wasm({ threads, memoryLimit: 8 << 20 });
      const memory = engineMemory(backend);
      const [n, k] = [1024, 1024];
      const region = memory.allocate(4 << 20);
      const data = normalArray(n * k, 5);
      const layers = ["int8_b32", "int8_b64", "int8_b128"].map((name) =>
        prepareMatmul(quantize(tensor(data, [n, k]), format(name)), { backend, activations: "int8" }),
      );
      for (const layer of layers)
        for (const m of [1, 3]) {
          const x = normalArray(m * k, 6);
          const expected = layer.run(x, m);
          memory.floats(region.address, m * k).set(x);
          placed(layer).runAt(region.address, m, region.address + 4 * m * k);
          expect(Array.from(memory.floats(region.address + 4 * m * k, m * n))).toEqual(Array.from(expected));
          const second = { address: region.address + 4 * m * (k + 256), width: n - 256 };
          placed(layer).runAt(region.address, m, [{ address: region.address + 4 * m * k, width: 256 }, second]);
          for (let r = 0; r < m; r++)
            expect([...memory.floats(second.address + 4 * r * second.width, second.width)]).toEqual([
              ...expected.subarray(r * n + 256, (r + 1) * n),
            ]);
        }
      expect(() => memory.allocate(8 << 20)).toThrowError(expect.objectContaining({ code: "E_DEVICE" }));
    }
  });

  it("refuse what is not theirs, and a backend that is gone", async () => {
    const w = quantize(tensor(normalArray(32, 1), [1, 32]), format("int4_b32"));
    expect(() => placed(prepareMatmul(w))).toThrowError(/prepared with a WebAssembly backend/);
    expect(() => engineMemory({})).toThrowError(/as wasm\(\) makes them/);
    const backend = await wasm();
    const memory = engineMemory(backend);
    const layer = prepareMatmul(w, { backend });
    const region = memory.allocate(256);
    backend.dispose();
    expect(() => placed(layer).runAt(region.address, 1, region.address + 128)).toThrowError(
      expect.objectContaining({ code: "E_DISPOSED" }),
    );
    expect(() => memory.floats(region.address, 1)).toThrowError(/disposed/);
    region.free();
  });

  it("allocate nothing when they are repeated, follow scratch space that moves, and take new operands", () => {
    for (const backend of backends) {
      const [n, k] = [64, 128];
      using layer = prepareMatmul(quantize(tensor(normalArray(n * k, 1), [n, k]), format("int4_b32")), { backend, activations: "int8" });
      const memory = engineMemory(backend);
      const region = memory.allocate(4 * 8 * (n + k));
      const [x, y] = [region.address, region.address + 4 * 8 * k];
      const once = (m: number): void => {
        const values = normalArray(m * k, 3 + m);
        memory.floats(x, m * k).set(values);
        memory.floats(y, m * n).fill(NaN);
        placed(layer).runAt(x, m, y);
        expect([...memory.floats(y, m * n)]).toEqual([...layer.run(values, m)]);
      };
      // of 7 rows the result leaves scratch space by copies, repeated too
      for (const m of [1, 1, 8, 1, 1, 7, 7]) once(m);
      // another product takes more scratch space: what was recorded no longer holds
      {
        using wide = prepareMatmul(quantize(tensor(normalArray(16 * 4096, 1), [16, 4096]), format("int4_b32")), {
          backend,
          activations: "int8",
        });
        wide.run(normalArray(40 * 4096, 2), 40);
      }
      for (const m of [7, 7, 1, 1]) once(m);
      const heap = (): number => process.memoryUsage().heapUsed;
      const calls = (count: number): void => {
        for (let i = 0; i < count; i++) placed(layer).runAt(x, 1, y);
      };
      calls(3000);
      // the least of several: the collector and other parts of the process come in between
      const grown = Array.from({ length: 5 }, () => {
        const before = heap();
        calls(1000);
        return Math.abs(heap() - before);
      });
      // 2272 bytes before recording; engines differ in the numbers that they box (64 in Node 20, 152 in 24)
      expect(Math.min(...grown) / 1000).toBeLessThan(400);
      region.free();
    }
  });
});

it("only families that were made, each name once, are compiled", () => {
  const memory = engineMemory(backends[0]);
  expect(() => memory.kernel({ ...halve }, { shared: false })).toThrowError(/made by family/);
  expect(() => family("test halve", () => new Uint8Array())).toThrowError(/twice/);
  expect(families().get("test halve")).toBe(halve);
});
