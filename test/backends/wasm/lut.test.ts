// Look-up and ternary kernels: exact integers against the oracle, the same floats as the dot products of the same
// engine, shapes around quads, bodies and blocks, extremes that would overflow a byte or an i16, and when they are
// chosen.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defineBlock, defineCodebook, defineInt, float32, format, type BlockFormat, type NumberFormat } from "../../../formats/index.ts";
import { wasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { dequantize, fromBytes, prepareMatmul, quantize, tensor, toBytes, wasm, type PackedTensor, type WasmBackend } from "../../../src/index.ts"; // prettier-ignore
import { random } from "../../helpers/random.ts";
import { activationSpan, quantizedActivations } from "../../oracle/product.ts";

const rng = random(4);
const normal = (n: number): Float32Array => Float32Array.from({ length: n }, () => rng.normal());

/**
 * Codes drawn at random with scales (and addends) that are powers of two: every product and sum is exact in float32.
 */
function exactWeight(f: BlockFormat, n: number, k: number, codeOf?: (i: number) => number): PackedTensor {
  const w = quantize(tensor(normal(n * k), [n, k]), f);
  if (codeOf !== undefined)
    for (let r = 0; r < n; r++)
      for (let i = 0; i < k; i++) {
        const bit = i * f.element.bits;
        const at = r * w.rowBytes + (bit >> 3);
        // fields of 1, 2 and 4 bits never cross a byte
        w.codes[at] &= ~((2 ** f.element.bits - 1) << (bit & 7));
        w.codes[at] |= codeOf(r * k + i) << (bit & 7);
      }
  const scales = new Uint8Array(new Float32Array(w.scales!.length / 4).fill(0.25).buffer);
  return { ...w, scales };
}

/** A product in binary64 on quantized activations, rounded once: what exact kernels give. */
function expected(w: PackedTensor, x: Float32Array, m: number, span: number): Float32Array {
  const { rows: n, k } = w;
  const values = dequantize(w, { dtype: "float64" });
  const acts = quantizedActivations(x, m, k, 8, activationSpan(span, k));
  const y = new Float32Array(m * n);
  for (let r = 0; r < m; r++)
    for (let c = 0; c < n; c++) {
      let sum = 0;
      for (let i = 0; i < k; i++) sum += acts[r * k + i] * values[c * k + i];
      y[r * n + c] = sum;
    }
  return y;
}

/** Activations whose groups have scale 1: integers with 127 in each group. */
const whole = (m: number, k: number, span: number, fill: () => number): Float32Array =>
  Float32Array.from({ length: m * k }, (_, i) => ((i % k) % span === 0 ? 127 : fill()));

const block = (element: NumberFormat, span: number | "row", zeroPoint?: NumberFormat): BlockFormat =>
  defineBlock({
    element,
    scales: [{ format: float32, span }],
    ...(zeroPoint === undefined ? {} : { offset: { role: "zeroPoint", levels: [{ format: zeroPoint, span }] } }),
  } as never);
const scalar = (name: string): NumberFormat => format(name) as NumberFormat;

describe("look-up products", () => {
  let engines: WasmBackend[];
  beforeAll(async () => {
    engines = [await wasm(), await wasm({ features: "simd" }), await wasm({ threads: 2 })];
  });
  afterAll(() => engines.forEach((backend) => backend.dispose()));

  it("give the integers of the oracle and the floats of the dot products, bit for bit", () => {
    let compared = 0;
    // a trit whose codes are in an order of their own, and 3 bits that miss zero by half a step
    const trits = defineCodebook({ name: "test_trits", values: [-0.5, 0, 0.5, 64], spec: "test" });
    const odd = defineInt({ name: "test_u3", bits: 3, signed: false });
    const elements = ["uint1", "bipolar1", "bipolar2", "bipolar3", "int2", "uint2", "ternary", "int3", "uint3", "int4", "uint4"].map(scalar);
    const cases = [...elements, trits, odd].flatMap((element) =>
      [5, 24, 32, 96, "row" as const].map((span) => block(element, span)),
    );
    for (const name of ["uint1", "uint2", "uint3", "uint4"]) for (const span of [32, 100]) cases.push(block(scalar(name), span, scalar(name)));
    for (const f of cases)
      for (const [n, k] of [[1, 1], [16, 32], [17, 33], [33, 100], [48, 264]] as const) {
        const w = exactWeight(f, n, k, f.element === trits ? () => rng.integer(3) : undefined);
        const span = typeof f.scales[0].span === "number" ? f.scales[0].span : k;
        const group = activationSpan(span, k);
        for (const m of [1, 3]) {
          const exact = whole(m, k, group, () => rng.integer(255) - 127);
          const want = expected(w, exact, m, span);
          const any = normal(m * k);
          for (const backend of engines) {
            using dot = prepareMatmul(w, { backend, activations: "int8", kernel: "dot" });
            const same = dot.run(any, m);
            for (const kernel of ["lookup", "ternary"] as const) {
              if (kernel === "ternary" ? f.element.name !== "ternary" && f.element !== trits : f.element === trits) continue;
              using layer = prepareMatmul(w, { backend, activations: "int8", kernel });
              const title = `${layer.explain().kernel} [${m}, ${k}] x [${n}, ${k}] span ${span}`;
              expect(layer.run(exact, m), title).toEqual(want);
              expect(layer.run(any, m), title).toEqual(same);
              compared += 2 * want.length;
            }
          }
        }
      }
    expect(compared).toBeGreaterThan(50_000);
  }); // prettier-ignore

  it("minima, grids that miss zero and blocks of bytes: the floats of the dot products, bit for bit", () => {
    const biased = block(defineCodebook({ name: "test_biased", values: [0.1, 1.1, 2.1, 3.1], spec: "test" }), 40);
    const formats = [biased, ...["ggml_q4_0", "ggml_q4_1", "ggml_q4_k", "ggml_tq1_0", "ggml_tq2_0"].map((name) => format(name))];
    for (const f of formats) {
      const [n, k] = [21, f.kind === "opaque" ? 2 * f.blockSize : 130];
      const w = quantize(tensor(normal(n * k), [n, k]), f);
      const x = normal(3 * k);
      const values = dequantize(w, { dtype: "float64" });
      const plain = Float64Array.from({ length: 3 * n }, (_, i) => {
        let sum = 0;
        for (let j = 0; j < k; j++) sum += x[Math.floor(i / n) * k + j] * values[(i % n) * k + j];
        return sum;
      });
      for (const backend of engines)
        for (const kernel of f.name.startsWith("ggml_tq") ? (["lookup", "ternary"] as const) : (["lookup"] as const)) {
          using layer = prepareMatmul(w, { backend, activations: "int8", kernel });
          using dot = prepareMatmul(w, { backend, activations: "int8", kernel: "dot" });
          const y = layer.run(x, 3);
          expect(y, layer.explain().kernel).toEqual(dot.run(x, 3));
          // and near the product of the numbers themselves: int8 activations lose a percent or so
          let [error, size] = [0, 0];
          y.forEach((v, i) => ((error += (v - plain[i]) ** 2), (size += plain[i] ** 2)));
          expect(Math.sqrt(error / size), layer.explain().kernel).toBeLessThan(0.03);
        }
    }
  });

  it("no sum overflows: every weight and activation at its extreme, groups to 256", () => {
    let largest = 0;
    for (const name of ["uint1", "uint2", "int3", "int4", "uint4", "bipolar2", "ternary"])
      for (const span of [32, 128, 256])
        for (const sign of [1, -1])
          for (const pattern of [(): number => 1, (i: number): number => (i % 2 === 0 ? 1 : -1)]) {
            const f = block(scalar(name), span);
            const k = 512;
            const order = f.element.order!;
            const ends = [order.codes[0], order.codes[order.codes.length - 1]];
            const ternary = name === "ternary";
            const codes = ternary ? [f.element.encode(-1), f.element.encode(1)] : ends;
            const data = new Float32Array(16 * k).map((_, i) => sign * pattern(i) * f.element.limits.max);
            const w0 = quantize(tensor(data, [16, k]), f);
            const w = { ...w0, codes: w0.codes.slice(), scales: new Uint8Array(new Float32Array(w0.scales!.length / 4).fill(1).buffer) };
            if (8 % f.element.bits === 0)
              for (let i = 0; i < 16 * k; i++) {
                const bit = i * f.element.bits;
                const code = codes[sign * pattern(i) > 0 ? 1 : 0];
                w.codes[bit >> 3] = (w.codes[bit >> 3] & ~((2 ** f.element.bits - 1) << (bit & 7))) | (code << (bit & 7));
              }
            for (const fill of [127, -127]) {
              const x = new Float32Array(k).map((_, i) => fill * pattern(i));
              const want = expected(w, x, 1, span);
              largest = Math.max(largest, ...want.map(Math.abs));
              for (const backend of engines)
                for (const kernel of ternary ? (["lookup", "ternary"] as const) : (["lookup"] as const)) {
                  using layer = prepareMatmul(w, { backend, activations: "int8", kernel });
                  expect(layer.run(x, 1), `${layer.explain().kernel} span ${span} fill ${fill}`).toEqual(want);
                }
            }
          }
    // 512 products of 127 and 15
    expect(largest).toBe(512 * 127 * 15);
  });

  it("many rows of activations, more than are tabled at once", () => {
    const w = exactWeight(block(scalar("int2"), 32), 40, 64);
    const m = 150;
    const x = whole(m, 64, 32, () => rng.integer(255) - 127);
    const want = expected(w, x, m, 32);
    for (const backend of engines) {
      using layer = prepareMatmul(w, { backend, activations: "int8", kernel: "lookup" });
      expect(layer.run(x, m)).toEqual(want);
    }
  });

  it("NaN and infinities in activations make their row NaN and no other", () => {
    for (const backend of engines)
      for (const [name, kernel] of [["int2_b32", "lookup"], ["bipolar1_b32", "lookup"], ["uint4_b32_zp", "lookup"], ["ternary_b32", "ternary"]] as const)
        for (const bad of [NaN, Infinity, -Infinity]) {
          const w = quantize(tensor(normal(20 * 64), [20, 64]), format(name));
          const x = normal(3 * 64);
          x[64 + 5] = bad;
          using layer = prepareMatmul(w, { backend, activations: "int8", kernel });
          const y = layer.run(x, 3);
          expect(y.subarray(0, 20).every(Number.isFinite) && y.subarray(40).every(Number.isFinite)).toBe(true);
          expect(y.subarray(20, 40).every(Number.isNaN)).toBe(true);
        }
  }); // prettier-ignore

  it("zeros and subnormal activations give what the dot products give", () => {
    const w = quantize(tensor(normal(20 * 64), [20, 64]), format("int2_b32"));
    for (const backend of engines)
      for (const value of [0, -0, 1e-45, 1e-40, 3e38]) {
        const x = new Float32Array(64).fill(value);
        using a = prepareMatmul(w, { backend, activations: "int8", kernel: "lookup" });
        using b = prepareMatmul(w, { backend, activations: "int8", kernel: "dot" });
        expect(a.run(x, 1)).toEqual(b.run(x, 1));
      }
  });
});

describe("ternary products", () => {
  it("are for values, not names: any codes that stand for -1, 0, 1 times a unit, and no others", async () => {
    const backend = await wasm();
    const f = block(scalar("int4"), 32);
    const only = exactWeight(f, 20, 64, () => [0, 1, 15][rng.integer(3)]);
    const x = whole(2, 64, 32, () => rng.integer(255) - 127);
    using layer = prepareMatmul(only, { backend, activations: "int8", kernel: "ternary" });
    expect(layer.run(x, 2)).toEqual(expected(only, x, 2, 32));
    expect(layer.explain().kernel).toMatch(/ternary$/);
    // one code of another magnitude, the last of the matrix, and int2's -2
    const other = exactWeight(f, 20, 64, (i) => (i === 20 * 64 - 1 ? 2 : 1));
    expect(() => prepareMatmul(other, { backend, activations: "int8", kernel: "ternary" })).toThrowError(/times a unit/);
    const two = exactWeight(block(scalar("ternary"), 32), 20, 64, (i) => (i === 3 ? 2 : 1));
    expect(() => prepareMatmul(two, { backend, activations: "int8", kernel: "ternary" })).toThrowError(/times a unit/);
    const zeros = exactWeight(f, 3, 64, () => 0);
    expect(prepareMatmul(zeros, { backend, activations: "int8", kernel: "ternary" }).run(x, 2)).toEqual(new Float32Array(6));
    backend.dispose();
  });
});

describe("which integer kernel runs", () => {
  const kernelOf = (backend: WasmBackend, name: string): string => {
    const w = quantize(tensor(normal(16 * 64), [16, 64]), format(name));
    using layer = prepareMatmul(w, { backend, activations: "int8" });
    return layer.explain().kernel;
  };

  it("by default: look-ups where they are faster", async () => {
    const base = await wasm({ features: "simd" });
    expect(kernelOf(base, "bipolar1_b32")).toMatch(/lookup$/);
    expect(kernelOf(base, "int2_b32")).toMatch(/lookup$|ternary$/);
    expect(kernelOf(base, "bipolar2_b32")).toMatch(/lookup$/);
    expect(kernelOf(base, "ternary_b32")).toMatch(/ternary$/);
    expect(kernelOf(base, "int3_b32")).toMatch(/lattice/);
    expect(kernelOf(base, "int4_b32")).toMatch(/lattice/);
    base.dispose();
    if (!wasmFeatures().relaxed) return;
    const relaxed = await wasm();
    expect(kernelOf(relaxed, "bipolar1_b32")).toMatch(/lookup$/);
    expect(kernelOf(relaxed, "int2_b32")).toMatch(/lattice/);
    relaxed.dispose();
  });

  it("refuses a kernel that does not fit, and says why", async () => {
    const backend = await wasm();
    const w = (name: string): PackedTensor => quantize(tensor(normal(16 * 64), [16, 64]), format(name));
    const prepare = (name: string, options: object) => () => prepareMatmul(w(name), { backend, activations: "int8", ...options } as never);
    expect(prepare("int5_b32", { kernel: "lookup" })).toThrowError(/more than 4 bits/);
    expect(prepare("nf4_b32", { kernel: "lookup" })).toThrowError(/no even grid/);
    expect(prepare("int4_b32", { kernel: "ternary" })).toThrowError(/times a unit/);
    expect(prepare("float8_e4m3fn_b32", { kernel: "dot" })).toThrowError(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    expect(prepare("int2_b32", { kernel: "lookup", activations: "int16" })).toThrowError(/other than "int8"/);
    expect(prepare("int2_b32", { kernel: "lookup", activations: "float32" })).toThrowError(/other than "int8"/);
    expect(prepare("int2_b32", { kernel: "magic" })).toThrowError(TypeError);
    backend.dispose();
  });

  it("tuning measures the families, keeps the numbers, and frees what it does not keep", async () => {
    const [plain, tuned] = [await wasm(), await wasm({ tune: true })];
    for (const name of ["bipolar1_b32", "int2_b32", "ternary_row", "int4_b32"]) {
      const w = quantize(tensor(normal(70 * 96), [70, 96]), format(name));
      const x = normal(5 * 96);
      const want = prepareMatmul(w, { backend: plain, activations: "int8" }).run(x, 5);
      const first = prepareMatmul(w, { backend: tuned, activations: "int8" });
      expect(first.run(x, 5), name).toEqual(want);
      first.dispose();
      const used = tuned.bytes;
      for (let i = 0; i < 3; i++) {
        using again = prepareMatmul(w, { backend: tuned, activations: "int8" });
        expect(again.explain().kernel).toBe(first.explain().kernel);
        expect(again.run(x, 5), name).toEqual(want);
      }
      expect(tuned.bytes).toBe(used);
    }
    plain.dispose();
    tuned.dispose();
  });

  it("layers made from a stored weight look up the same", async () => {
    const backend = await wasm();
    const w = quantize(tensor(normal(16 * 64), [16, 64]), format("bipolar1_b32"));
    const x = normal(64);
    const a = prepareMatmul(w, { backend, activations: "int8" }).run(x, 1);
    const b = prepareMatmul(fromBytes(toBytes(w)), { backend, activations: "int8" }).run(x, 1);
    expect(b).toEqual(a);
    backend.dispose();
  });
});
