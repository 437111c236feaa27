// The WebAssembly backend against the oracle: every format of the library and some of a user's own, all kinds of
// activations, shapes around the sizes of blocks and tiles, baseline SIMD128 and what the engine offers, one thread and
// two.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { elementOf } from "../../../formats/core/packed.ts";
import { format, type NumberFormat, type PackedTensor } from "../../../formats/index.ts";
import { dequantize, prepareMatmul, quantize, tensor, wasm, type Activations, type WasmBackend } from "../../../src/index.ts";
import { wasmWith } from "../../../src/backends/wasm/backend.ts";
import { blockOf, productFacts, productFormats, wholeBlocks } from "../../helpers/products.ts";
import { activationSpan, product, quantizedActivations } from "../../oracle/product.ts";

let seed = 1;
const random = (): number => {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return seed / 2 ** 32;
};
const normal = (): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const data = (n: number, scale = 1): Float32Array => Float32Array.from({ length: n }, () => normal() * scale);

/** Compares one layer with the oracle; returns the number of values compared. */
function check(
  backend: WasmBackend,
  w: PackedTensor,
  m: number,
  activations: Activations,
  codebook: "exact" | "int16" | "int8" = "int16",
  scale = 1,
): number {
  const { rows: n, k } = w;
  const x = data(m * k, scale);
  using layer = prepareMatmul(w, { backend, activations, codebook });
  const y = layer.run(x, m);
  const { span, size, slack } = productFacts(w);
  const used = layer.explain().activations;
  const values = dequantize(w, { dtype: "float64" });
  const acts = used === "float32" ? x : quantizedActivations(x, m, k, used === "int8" ? 8 : 16, activationSpan(span, k));
  // fixed-point tables: half a unit of 1/32767 (16 bits) or 1/63 (7 bits) of the largest value, with room for the
  // search of the unit
  const factor =
    used === "float32" || (elementOf(w)?.access.kind === "lattice" && codebook !== "int8") ? 0 : codebook === "int8" ? 32767 / 63 : 0.7;
  const expected = product(acts, values, m, n, k, { steps: k + 16, size, slack: slack.map((v) => v * factor) });
  for (let i = 0; i < y.length; i++)
    if (!(Math.abs(y[i] - expected.y[i]) <= expected.bound[i]))
      expect.fail(
        `${layer.explain().kernel} [${m}, ${k}] x [${n}, ${k}]: y[${i}] = ${y[i]}, expected ${expected.y[i]} within ${expected.bound[i]}`,
      );
  return y.length;
}

const engines: { name: string; backend: WasmBackend }[] = [];
beforeAll(async () => {
  engines.push({ name: "simd, 1 thread", backend: await wasm({ features: "simd" }) });
  engines.push({ name: "simd, 2 threads", backend: await wasm({ features: "simd", threads: 2 }) });
  const own = await wasm();
  if (own.features.relaxed) {
    engines.push({ name: "relaxed, 1 thread", backend: own });
    engines.push({ name: "relaxed, 2 threads", backend: await wasm({ threads: 2 }) });
    // the kernels of an engine whose i32 dot product is one instruction; 7-bit operands are exact on every engine
    if (own.features.dot === "i7") engines.push({ name: "relaxed i32 dot", backend: wasmWith({ ...own.features, dot: "s8" }) });
  } else if (process.env.REQUIRE_RELAXED === "1") throw new Error("REQUIRE_RELAXED=1, but relaxed SIMD is missing or failed its probe");
  else console.log("relaxed SIMD kernels: skipped, this engine has none that passed the probe");
});
afterAll(() => engines.forEach(({ backend }) => backend.dispose()));

describe("wasm backend", () => {
  it("every format, every kind of activations", () => {
    let compared = 0;
    for (const f of productFormats()) {
      const b = blockOf(f);
      const whole = wholeBlocks(f);
      for (const [n, k] of [
        [17, 2 * b],
        [5, whole ? b : b + 7],
      ] as const) {
        const w = quantize(tensor(data(n * k, 0.5), [n, k]), f);
        for (const { backend } of engines)
          for (const activations of ["float32", "int16", "int8"] as const)
            for (const m of backend.threads > 1 ? [3] : [1, 3]) compared += check(backend, w, m, activations);
      }
    }
    expect(compared).toBeGreaterThan(10000);
  });

  it("shapes around blocks and tiles", () => {
    for (const name of ["int4_b32", "int3_b32", "int8_row", "uint4_b32_zp", "float4_e2m1fn_b32", "float8_e4m3fn_tensor", "float32"]) {
      for (const [n, k] of [[1, 1], [1, 31], [15, 32], [16, 33], [33, 64], [40, 259]] as const) {
        const w = quantize(tensor(data(n * k), [n, k]), format(name));
        for (const { backend } of engines)
          for (const m of [1, 2, 4, 5, 7, 13]) for (const activations of ["float32", "int16", "int8"] as const) check(backend, w, m, activations);
      }
    }
  }); // prettier-ignore

  it("one row of activations: strands of blocks and turns of groups that do not come out even", () => {
    // 5 to 11 blocks in up to four strands; turns of 1, 2 and 3 groups
    for (const name of ["int4_b32", "int4_b128", "uint4_b32_zp", "int8_row", "int5_b32"])
      for (const [n, k] of [[65, 32], [80, 7 * 32], [97, 5 * 32 + 4], [128, 96], [145, 384], [161, 13 * 32]] as const) {
        const w = quantize(tensor(data(n * k), [n, k]), format(name));
        for (const { backend } of engines) for (const activations of ["int16", "int8"] as const) check(backend, w, 1, activations);
      }
  }); // prettier-ignore

  it("values on no grid: fixed point unless asked for exactly, and explain() says by how much they are off", () => {
    for (const name of ["nf3", "nf4", "af4", "bnb_fp4"]) {
      const f = format(`${name}_b32`);
      const { table } = format(name) as NumberFormat;
      const w = quantize(tensor(data(20 * 96), [20, 96]), f);
      for (const { backend } of engines)
        for (const activations of ["int16", "int8"] as const) {
          for (const codebook of ["int16", "int8", "exact"] as const) for (const m of [1, 3]) check(backend, w, m, activations, codebook);
          const exact = prepareMatmul(w, { backend, activations, codebook: "exact" }).explain();
          expect(exact.activations).toBe("float32");
          expect(exact.reasons.join()).toMatch(/no even grid.*activations stay float32/);
          // one value against one activation that is a power of two: what the table really holds
          for (const codebook of ["int16", "int8"] as const) {
            const [, found] = /each within (\S+) of itself/.exec(
              prepareMatmul(w, { backend, activations, codebook }).explain().reasons.join(),
            )!;
            const claimed = Number(found) * (1 + 0.05);
            let worst = 0;
            table!.forEach((value, code) => {
              if (value === 0) return;
              // all codes, so that no simpler kernel is chosen; the fifth element is the one that counts
              const { bits } = format(name) as NumberFormat;
              const codes = w.codes.slice().fill(0);
              for (let i = 0; i < 96; i++)
                for (let b = 0; b < bits; b++) codes[(i * bits + b) >> 3] |= (((code + i - 5) >> b) & 1) << ((i * bits + b) & 7);
              const scales = new Uint8Array(new Float32Array(w.scales!.length / 4).fill(1).buffer);
              const x = new Float32Array(96);
              x[5] = 1;
              using layer = prepareMatmul({ ...w, codes, scales }, { backend, activations, codebook });
              worst = Math.max(worst, Math.abs(layer.run(x, 1)[0] / value - 1));
            });
            expect(worst).toBeLessThan(claimed + 1e-6);
            expect(worst).toBeGreaterThan(claimed / 2);
          }
        }
    }
    expect(() => prepareMatmul(quantize(tensor(data(32), [1, 32]), format("nf4_b32")), { backend: engines[0].backend, activations: "int8", codebook: "int7" as "int8" })).toThrowError(/expected "exact", "int16" or "int8", got int7/); // prettier-ignore
  });

  it("extreme scales and activations", () => {
    for (const name of ["int4_b32", "float8_e4m3fn_tensor", "float4_e2m1fn_b32", "bfloat16", "float16"])
      for (const ws of [1e-30, 1e4])
        for (const xs of [1e-6, 1e6]) {
          const w = quantize(tensor(data(20 * 96, name === "float16" ? 1 : ws), [20, 96]), format(name));
          for (const { backend } of engines)
            for (const m of [1, 3]) for (const activations of ["float32", "int8"] as const) check(backend, w, m, activations, "int16", xs);
        }
  });

  it("integer products are exact: power-of-two scales give the integer bit for bit", () => {
    for (const name of [
      "int2_b32",
      "int3_b32",
      "int4_b32",
      "int5_b32",
      "int6_b32",
      "int7_b32",
      "int8_b32",
      "uint4_b32_zp",
      "uint8_b32_zp",
    ]) {
      const f = format(name);
      if (f.kind !== "block") throw new Error(name);
      const [n, k] = [19, 96];
      const w0 = quantize(tensor(data(n * k), [n, k]), f);
      // the same codes with scales of 1/4: every product and sum is an integer multiple of 1/4 below 2^24
      const w = { ...w0, scales: new Uint8Array(new Float32Array(w0.scales!.length / 4).fill(0.25).buffer) };
      const values = dequantize(w, { dtype: "float64" });
      for (const bits of [8, 16] as const) {
        const m = 5;
        const max = bits === 8 ? 127 : 32639;
        const limit = bits === 8 ? max : 200;
        const codes = Float32Array.from({ length: m * k }, (_, i) => (i % 32 === 0 ? max : Math.round((random() * 2 - 1) * limit)));
        const expected = new Float64Array(m * n);
        for (let r = 0; r < m; r++)
          for (let c = 0; c < n; c++) for (let i = 0; i < k; i++) expected[r * n + c] += codes[r * k + i] * values[c * k + i];
        for (const { backend, name: engine } of engines)
          for (const rows of [1, m]) {
            using layer = prepareMatmul(w, { backend, activations: bits === 8 ? "int8" : "int16" });
            const y = layer.run(codes.subarray(0, rows * k), rows);
            expect(Array.from(y), `${engine} ${layer.explain().kernel}`).toEqual(Array.from(expected.subarray(0, rows * n), Math.fround));
          }
      }
    }
  });

  it("largest sums: every weight and activation at its extreme, no accumulator overflows", () => {
    for (const bits of [1, 2, 3, 4, 5, 6, 7, 8])
      for (const name of bits === 1 ? ["uint1_row", "bipolar1_row"] : [`int${bits}_b256`, `uint${bits}_b64_zp`]) {
        const [n, k] = [16, 512];
        for (const sign of [1, -1]) {
          const w = quantize(tensor(new Float32Array(n * k).fill(sign), [n, k]), format(name));
          const values = dequantize(w, { dtype: "float64" });
          for (const activations of ["int8", "int16"] as const) {
            const max = activations === "int8" ? 127 : 32639;
            // 128 in a group whose scale is 1: the low byte of an int16 code at -128
            for (const fill of [max, -max, 128]) {
              if (fill > max) continue;
              const x = new Float32Array(5 * k).map((_, i) => (i % 64 === 0 ? max : fill));
              const expected = product(x, values, 5, n, k, { steps: 64, size: values.map((v) => Math.max(Math.abs(v), 1)) });
              for (const { backend, name: engine } of engines)
                for (const m of [1, 5]) {
                  using layer = prepareMatmul(w, { backend, activations });
                  const y = layer.run(x.subarray(0, m * k), m);
                  for (let i = 0; i < y.length; i++)
                    if (!(Math.abs(y[i] - expected.y[i]) <= expected.bound[i]))
                      expect.fail(
                        `${engine} ${layer.explain().kernel} fill ${fill}: y[${i}] = ${y[i]}, expected ${expected.y[i]} within ${expected.bound[i]}`,
                      );
                }
            }
          }
        }
      }
  });

  it("the reference backend agrees within the bound of its own float32 result", () => {
    for (const activations of ["float32", "int16", "int8"] as const) {
      const w = quantize(tensor(data(9 * 70), [9, 70]), format("int4_b32"));
      const x = data(2 * 70);
      const a = prepareMatmul(w, { activations }).run(x, 2);
      const b = prepareMatmul(w, { backend: "wasm", activations }).run(x, 2);
      a.forEach((v, i) => expect(Math.abs(v - b[i])).toBeLessThanOrEqual(70 * 2 ** -24 * 70 * 3 * 3));
    }
  });

  it("NaN and infinities in activations reach their row and no other, in every kind of kernel", () => {
    // lattice, zero points, fixed-point and float tables, shifted fields, halves, decoded panels, blocks of bytes
    const names = ["int4_b32", "uint4_b32_zp", "int8_row", "nf4_b32", "float8_e4m3fn_tensor", "posit8_es2", "bfloat16", "float16", "posit16_es1", "float32", "ggml_q4_1", "olive8_b32"]; // prettier-ignore
    for (const { backend } of engines)
      for (const name of names) {
        const w = quantize(tensor(data(20 * 64), [20, 64]), format(name));
        const values = dequantize(w);
        for (const activations of ["float32", "int16", "int8"] as const)
          for (const bad of [NaN, Infinity, -Infinity])
            for (const at of [0, 1, 2]) {
              const x = data(3 * 64);
              x[64 * at + 5] = bad;
              using layer = prepareMatmul(w, { backend, activations });
              const y = layer.run(x, 3);
              const title = `${layer.explain().kernel} ${bad} in row ${at}`;
              const inputs = layer.explain().activations;
              for (let r = 0; r < 3; r++)
                for (let c = 0; c < 20; c++) {
                  const v = y[r * 20 + c];
                  // as in binary64: an infinity keeps its sign, and times zero it is NaN; a quantized group that holds
                  // one is NaN
                  const expected = inputs === "float32" ? bad * values[c * 64 + 5] : NaN;
                  if (r !== at) expect(Number.isFinite(v), title).toBe(true);
                  else expect(v, title).toBe(expected);
                }
            }
      }
  });

  it("refuses wrong shapes, use after dispose, and weights beyond memory", async () => {
    const w = quantize(tensor(data(20 * 64), [20, 64]), format("int4_b32"));
    const backend = await wasm({ memoryLimit: 1 << 20 });
    const layer = prepareMatmul(w, { backend });
    expect(() => layer.run(new Float32Array(63), 1)).toThrowError(/expected 1 x 64/);
    layer.dispose();
    layer.dispose();
    expect(() => layer.run(new Float32Array(64), 1)).toThrowError(/disposed/);
    const large = quantize(tensor(data(1024 * 1024), [1024, 1024]), format("int8_row"));
    expect(() => prepareMatmul(large, { backend })).toThrowError(/WebAssembly memory/);
    backend.dispose();
    expect(() => prepareMatmul(w, { backend })).toThrowError(/disposed/);
    await expect(wasm({ threads: 0 })).rejects.toThrow(RangeError);
  });

  it("prepares and disposes 10000 times in bounded memory", async () => {
    const w = quantize(tensor(data(16 * 32), [16, 32]), format("int4_b32"));
    const backend = await wasm();
    const x = data(32);
    let after100 = 0;
    for (let i = 0; i < 10000; i++) {
      const layer = prepareMatmul(w, { backend, activations: "int8" });
      if (i % 100 === 0) layer.run(x, 1);
      layer.dispose();
      if (i === 100) after100 = backend.bytes;
    }
    expect(backend.bytes).toBe(after100);
    backend.dispose();
  });
});
