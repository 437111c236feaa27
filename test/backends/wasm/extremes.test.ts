// Products where numbers and memory are at their limits: sums that nearly fill their integers, grids far from zero,
// zero points of any kind, weights smaller than what kernels read ahead, shapes drawn at random. Every kernel of this
// engine, against an oracle in binary64.
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  allFormats,
  defineBlock,
  defineCodebook,
  defineInt,
  format,
  type Format,
  type NumberFormat,
  type PackedTensor,
} from "../../../formats/index.ts";
import { elementOf } from "../../../formats/core/packed.ts";
import { isWide, latticePlan, tablePlan } from "../../../kernels/plan.ts";
import { dequantize, prepareMatmul, quantize, tensor, wasm, type WasmBackend } from "../../../src/index.ts";
import { blockOf, productFacts, productFormats, wholeBlocks } from "../../helpers/products.ts";
import { random } from "../../helpers/random.ts";
import { activationSpan, product, quantizedActivations, type Expected } from "../../oracle/product.ts";

type Activations = "float32" | "int8" | "int16";

let backends: WasmBackend[];
beforeAll(async () => {
  backends = [await wasm(), await wasm({ features: "simd" }), await wasm({ threads: 3 })];
});
afterAll(() => backends.forEach((backend) => backend.dispose()));

/**
 * The oracle's result for the activations that a layer takes. `fixed`: a table of values stands as 16-bit fixed point.
 */
function expectedOf(w: PackedTensor, x: Float32Array, m: number, activations: string, fixed: boolean): Expected {
  const { rows: n, k } = w;
  const { span, size, slack } = productFacts(w);
  const acts = activations === "float32" ? x : quantizedActivations(x, m, k, activations === "int8" ? 8 : 16, activationSpan(span, k));
  const options = { steps: k + 16, size, slack: slack.map((v) => (fixed ? 0.7 * v : 0)) };
  return product(acts, dequantize(w, { dtype: "float64" }), m, n, k, options);
}

/** Runs w on every backend and holds each result against the oracle's bound; threads change no bit. */
function holds(w: PackedTensor, x: Float32Array, m: number, activations: Activations): void {
  let expected: Expected | undefined;
  const results = backends.map((backend) => {
    using layer = prepareMatmul(w, { backend, activations });
    const { activations: taken, reasons, kernel } = layer.explain();
    expected ??= expectedOf(w, x, m, taken, reasons.join().includes("fixed point"));
    const y = layer.run(x, m);
    const name = `${kernel} [${m}, ${w.k}] x [${w.rows}, ${w.k}]`;
    for (let i = 0; i < y.length; i++)
      if (!(Math.abs(y[i] - expected.y[i]) <= expected.bound[i]))
        expect.fail(`${name}: y[${i}] = ${y[i]}, expected ${expected.y[i]} within ${expected.bound[i]}`);
    return y;
  });
  expect(results[2], w.format.name).toEqual(results[0]);
}

const codebook = (name: string, values: readonly number[]): NumberFormat => defineCodebook({ name, values });
/** The longest groups there are. */
const blocks = (element: NumberFormat): Format =>
  defineBlock({ element, scales: [{ format: format("float32") as NumberFormat, span: 256 }] });
const pick = (values: readonly number[], n: number, step: number): Float32Array =>
  Float32Array.from({ length: n }, (_, i) => values[(i * step + (i >> 4)) % values.length]);

describe("sums at their extremes", () => {
  it("grids however far from zero: every sum of 256 products fits an int32 or its distance is kept apart", () => {
    const [n, k] = [5, 512];
    for (const from of [-16, 0, 100, 241, 242, 243, 1000, 32760, 70000, 1e6, -255, -258, -1000, -1e6])
      for (const activations of ["int8", "int16"] as const) {
        const values = Array.from({ length: 16 }, (_, i) => from + i);
        const w = quantize(tensor(pick(values, n * k, 7), [n, k]), blocks(codebook(`grid_${String(from).replace("-", "m")}`, values)));
        // all of one sign, and of both
        for (const m of [1, 33])
          holds(
            w,
            Float32Array.from({ length: m * k }, (_, i) => (i < k ? 1 : (i % 5) - 1.5)),
            m,
            activations,
          );
      }
    // a grid that misses zero by half a step
    for (const from of [0, 60, 119, 128, 129, 500]) {
      const values = Array.from({ length: 16 }, (_, i) => from + i + 0.5);
      const w = quantize(tensor(pick(values, n * k, 5), [n, k]), blocks(codebook(`halves_${from}`, values)));
      for (const activations of ["int8", "int16"] as const) holds(w, new Float32Array(2 * k).fill(1), 2, activations);
    }
  });

  it("codes of all widths at their limits, whole groups of 256", () => {
    const [n, k] = [17, 512];
    for (const name of ["int2_b256", "int3_b256", "int4_b256", "int5_b256", "int6_b256", "int7_b256", "int8_b256", "uint4_b256_zp", "uint8_b256_zp", "bipolar8_b256"]) {
      // blocks of one value, and of both limits
      const data = Float32Array.from({ length: n * k }, (_, i) => ((i >> 8) % 3 === 0 ? -1 : (i >> 8) % 3 === 1 ? 1 : i % 2 === 0 ? 1 : -1));
      const w = quantize(tensor(data, [n, k]), format(name));
      for (const activations of ["int8", "int16"] as const)
        for (const m of [1, 40]) {
          holds(w, Float32Array.from({ length: m * k }, (_, i) => (i < k ? 1 : i < 2 * k ? -1 : i % 2 === 0 ? 1 : -1)), m, activations);
          holds(w, Float32Array.from({ length: m * k }, (_, i) => (i % 4 === 3 ? 0 : 254.99)), m, activations);
        }
    }
  }); // prettier-ignore

  it("tables of two planes whose bytes all have 7 bits", () => {
    // drawn until all bytes of the table have 7 bits: it could be summed in i16, but not where activations have two
    // planes too
    const [n, k] = [17, 512];
    const rng = random(5);
    for (let found = 0; found < 4;) {
      const values = [-1, -rng.next(), -rng.next() / 2, -0.0039 - rng.next() / 1e4];
      const plan = tablePlan(Float64Array.from(values), 2)!;
      if (latticePlan(Float64Array.from(values)) !== null || plan.planes.some((plane) => plane.max > 127)) continue;
      // both bytes of a value near their limit
      if (!values.some((_, code) => plan.planes.every((plane) => plane.table![code] > 100))) continue;
      const w = quantize(tensor(pick(values.slice(3), n * k, 1), [n, k]), codebook(`negative_${found++}`, values));
      for (const activations of ["int8", "int16"] as const)
        for (const m of [1, 40])
          holds(
            w,
            Float32Array.from({ length: m * k }, (_, j) => (j % 7 === 0 ? -1 : 0.9999)),
            m,
            activations,
          );
    }
  });
});

describe("weights smaller than what is read ahead", () => {
  it("read nothing beyond their memory, however many rows there are", async () => {
    for (const name of ["int8_row", "int4_b32", "nf4_b32"])
      for (const activations of ["int8", "int16", "float32"] as const) {
        const w = quantize(tensor(Float32Array.of(1, 0.25), [2, 1]), format(name));
        for (const m of [33, 500, 1605, 2198, 7777, 30000]) {
          using backend = await wasm();
          const y = prepareMatmul(w, { backend, activations, ...(activations === "int8" ? { kernel: "dot" } : {}) }).run(new Float32Array(m).fill(1), m);
          expect(Math.abs(y[2 * m - 2] - 1)).toBeLessThan(0.01);
        }
      }
  }); // prettier-ignore
});

describe("zero points", () => {
  it("of any format: integers far away, fractions", () => {
    const [n, k] = [5, 64];
    const data = Float32Array.from({ length: n * k }, (_, i) => Math.sin(i) + 0.3);
    for (const [name, zero] of [["float32", 7.25], ["float16", -3.5], ["int16", 30000], ["int16", -400], ["int8", -128]] as const) {
      const element = format("uint8") as NumberFormat;
      const f = defineBlock({
        name: `zero_${name}`, element, scales: [{ format: format("float32") as NumberFormat, span: 32 }],
        offset: { role: "zeroPoint", levels: [{ format: format(name) as NumberFormat, span: 32 }] },
      });
      const w = quantize(tensor(data, [n, k]), f);
      const bytes = w.offsets!;
      const code = (format(name) as NumberFormat).encode(zero);
      const width = (format(name) as NumberFormat).bits / 8;
      for (let i = 0; i < bytes.length; i++) bytes[i] = (code >>> (8 * (i % width))) & 255;
      for (const activations of ["float32", "int8", "int16"] as const)
        for (const m of [1, 9]) holds(w, Float32Array.from({ length: m * k }, (_, i) => Math.cos(i)), m, activations);
    }
  }); // prettier-ignore
});

/**
 * Blocks of any length of integers of any width, with and without zero points and means, and of codebooks: even grids,
 * doubled ones, tables of one and two planes.
 */
const userFormats: fc.Arbitrary<() => Format> = fc
  .record({
    bits: fc.integer({ min: 1, max: 8 }),
    signed: fc.boolean(),
    values: fc.option(fc.uniqueArray(fc.integer({ min: -300, max: 300 }), { minLength: 2, maxLength: 15 })),
    unit: fc.constantFrom(1, 0.5, 3, 1 / 3),
    half: fc.boolean(),
    span: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constantFrom(96, 128, 200, 256, 257, 320, 512)),
    offset: fc.constantFrom("none", "zeroPoint", "mean"),
    zero: fc.constantFrom("uint8", "int16", "float16"),
  })
  .map(({ bits, signed, values, unit, half, span, offset, zero }) => {
    const named = (name: string): NumberFormat => format(name) as NumberFormat;
    const element =
      values === null
        ? defineInt({ name: `drawn_int${bits}_${signed}`, bits: signed ? Math.max(2, bits) : bits, signed })
        : codebook("drawn_codebook", [301, ...values].map((v) => (v + (half ? 0.5 : 0)) * unit));
    const role = offset === "zeroPoint" && (values !== null || signed) ? "none" : offset;
    const level = { format: named(role === "zeroPoint" ? zero : "float32"), span };
    return () =>
      defineBlock({
      name: `drawn_${element.name}_${span}_${role}`,
      element,
      scales: [{ format: named("float32"), span }],
      ...(role === "none" ? {} : { offset: { role: role as "zeroPoint" | "mean", levels: [level] } }),
    });
  }); // prettier-ignore

/**
 * Scalar formats with magnitudes so far from 1 that a sum of unscaled products overflows or vanishes, in blocks, in
 * rows, and under scales that are powers of two.
 */
function wideFormats(): Format[] {
  const wide = allFormats.filter((f): f is NumberFormat => "table" in f && f.table !== null && isWide(f.table)).map((f) => f.name);
  expect(wide).toEqual(expect.arrayContaining(["bfloat16", "float8_e8m0fnu"]));
  const named = wide.flatMap((name) => [`${name}_b32`, `${name}_row`, `${name}_b8_float8_e8m0fnu`]);
  const books = [
    blocks(codebook("vast", [-1e30, -3e12, 0, 1e-20, 5, 7e25])),
    blocks(codebook("vast_6_bits", [-1.7e38, ...Array.from({ length: 60 }, (_, i) => 2 ** (2 * i - 60) * 1.1), 3e38])),
  ];
  return [...named.map((name) => format(name)), ...books];
}

describe("elements of a wide range", () => {
  it("give 64 for 64 ones, in any number of rows", () => {
    for (const name of ["bfloat16_b32", "bfloat16_row", "bfloat16_b8_float8_e8m0fnu", "float8_e8m0fnu_b32"]) {
      const w = quantize(tensor(new Float32Array(128).fill(1), [2, 64]), format(name));
      const [one] = dequantize(w);
      for (const backend of backends)
        for (const activations of ["float32", "int16", "int8"] as const)
          for (const m of [1, 2, 8, 33])
            for (const value of prepareMatmul(w, { backend, activations }).run(new Float32Array(m * 64).fill(1), m))
              expect(Math.abs(value / (64 * one) - 1), `${name} ${activations} ${m}`).toBeLessThan(1e-6);
    }
  });

  it("any magnitude of weights and activations, as quantized and with codes and scales of any size", () => {
    const rng = random(11);
    const noise = (length: number, size: number): Float32Array => Float32Array.from({ length }, () => (rng.next() - 0.5) * size);
    const k = 96;
    for (const f of wideFormats())
      for (const [weights, inputs] of [
        [1, 1],
        [1e-30, 1e30],
        [1e30, 1e-30],
        [3e37, 1e-3],
        [1e-20, 1e37],
      ])
        for (const m of [1, 9]) {
          const w = quantize(tensor(noise(3 * k, weights), [3, k]), f);
          holds(w, noise(m * k, inputs), m, "float32");
          holds(w, noise(m * k, inputs), m, "int8");
          // codes of all magnitudes: what a scale leaves of them is what must come out
          const element = elementOf(w)!;
          const codes = w.codes.map(() => Math.floor(rng.next() * 256));
          const drawn = { ...w, codes };
          const values = dequantize(drawn, { dtype: "float64" });
          if (element.bits === 8 || element.bits === 16) {
            const bytes = element.bits / 8;
            // none that a float32 cannot hold, as scaled
            values.forEach((v, i) => {
              if (!(Math.abs(v) < 2 ** 60) || Math.abs(v) < 2 ** -60) codes.fill(0, i * bytes, (i + 1) * bytes);
            });
            const bad = dequantize(drawn, { dtype: "float64" }).some((v) => !(Math.abs(v) < 2 ** 60));
            if (!bad) holds(drawn, noise(m * k, 1), m, "float32");
          }
        }
  });

  it("scales that no float32 holds", () => {
    // 2^-120 under 2^-60: such weights are decoded when they are packed
    const f = defineBlock({
      element: format("bfloat16") as NumberFormat,
      scales: [
        { format: format("float32") as NumberFormat, span: 16 },
        { format: format("float32") as NumberFormat, span: "tensor" },
      ],
    });
    const w = quantize(tensor(new Float32Array(4 * 32).fill(1), [4, 32]), f);
    const scaled = { ...w, scales: new Uint8Array(new Float32Array(w.scales!.length / 4).fill(1.25 * 2 ** -120).buffer) };
    const top = { ...scaled, superScales: new Uint8Array(Float32Array.of(1.5 * 2 ** -20).buffer) };
    for (const m of [1, 9]) holds(top, new Float32Array(m * 32).fill(1.5), m, "float32");
  });
});

describe("shapes drawn at random", () => {
  it("any format, rows, columns, k and activations", () => {
    const shape = fc.record({
      makeFormat: fc.oneof(fc.constantFrom(...productFormats().map((f) => () => f)), userFormats),
      n: fc.integer({ min: 1, max: 70 }),
      blocks: fc.integer({ min: 1, max: 12 }),
      cut: fc.integer({ min: 0, max: 40 }),
      m: fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 10, max: 75 })),
      activations: fc.constantFrom<Activations>("float32", "int8", "int16"),
      seed: fc.integer({ min: 1, max: 1e6 }),
      // powers of two that weights and activations are multiplied by
      weights: fc.oneof(fc.constant(0), fc.integer({ min: -70, max: 70 })),
      inputs: fc.oneof(fc.constant(0), fc.integer({ min: -40, max: 40 })),
    });
    fc.assert(
      fc.property(shape, ({ makeFormat, n, blocks, cut, m, activations, seed, weights, inputs }) => {
        const f = makeFormat();
        const block = blockOf(f);
        const k = wholeBlocks(f) ? block * Math.min(blocks, 4) : Math.max(1, Math.min(block * blocks, 600) - cut);
        let a = seed;
        const noise = (length: number, power: number): Float32Array =>
          Float32Array.from(
            { length },
            () => ((a = (Math.imul(a, 1664525) + 1013904223) >>> 0) / 2 ** 31 - 1) * (a % 97 === 0 ? 40 : 1) * 2 ** power,
          );
        // scales of ggml blocks are float16, and their encoders refuse what does not fit
        const power = f.kind === "opaque" ? Math.max(-8, Math.min(8, weights)) : weights;
        holds(quantize(tensor(noise(n * k, power), [n, k]), f), noise(m * k, inputs), m, activations);
      }),
      { numRuns: 200, seed: 20261123 },
    );
  }); // prettier-ignore
});
