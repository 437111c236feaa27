// Block formats: MX and NVFP4 against oracles and reference blocks, every scale rule, NF4 with double quantization,
// shared exponents, bad input.
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  allFormats,
  defineBlock,
  defineFixed,
  float16,
  float32,
  float4_e2m1fn,
  format,
  nf4,
  type BlockFormat,
  type NumberFormat,
} from "../../formats/index.ts";
import { dequantizeRows } from "../../formats/core/packed.ts";
import { dequantize, fromBytes, quantize, tensor, toBytes, unpack, type PackedTensor } from "../../src/index.ts";
import { awkwardBlock, random } from "../helpers/random.ts";
import { describeShared, readVectors, vectorPath } from "../helpers/shared.ts";
import { E2M1_GRID, E4M3, elements, floorLog2, mxBlock, nvfp4 as nvOracle, sharedExponent } from "../oracle/blocks.ts";

const block = (name: string) => format(name) as BlockFormat;
const row = (x: Float32Array) => tensor(x, [1, x.length]);
const floats = (hex: string) => new Float32Array(Uint32Array.from(hex.match(/.{8}/g)!, (h) => parseInt(h, 16)).buffer);
const digits = (codes: ArrayLike<number>, width: number) => Array.from(codes, (c) => c.toString(16).padStart(width, "0")).join("");
const bits32 = (v: Float32Array) => digits(new Uint32Array(v.buffer, v.byteOffset, v.length), 8);
const float32At = (bytes: Uint8Array, i = 0) => new DataView(bytes.buffer, bytes.byteOffset).getFloat32(4 * i, true);
const error = (w: PackedTensor, x: Float32Array) => dequantize(w).reduce((s, v, i) => s + (v - x[i]) ** 2, 0);
const code = (c: string) => expect.objectContaining({ code: c });

const MX = Object.keys(elements);

describe.each(MX)("%s", (name) => {
  const fmt = block(name);

  test.each(["floor", "ceil", "rceil", "even"] as const)("equals the oracle, rule %s", (rule) => {
    const rng = random(21);
    for (let i = 0; i < 144; i++) {
      const x = awkwardBlock(rng, 32, i);
      const want = mxBlock(name, x, rule);
      const w = quantize(row(x), fmt, { scaleRule: rule });
      expect([w.scales![0], ...unpack(w)], `kind ${i % 12}`).toEqual([want.scale, ...want.codes!]);
      // Integers have no -0, floats keep it.
      expect([...dequantize(w)].map((v) => v + 0)).toEqual(want.dq.map((v) => v + 0));
    }
  });

  test("floor is the default", () => {
    const x = awkwardBlock(random(1), 32, 0);
    expect(quantize(row(x), fmt).recipe.scaleRule).toBe("floor");
    expect(quantize(row(x), fmt).scales).toEqual(quantize(row(x), fmt, { scaleRule: "floor" }).scales);
  });

  test("amax at and beside powers of two, and in the subnormals", () => {
    for (const e of [-149, -140, -127, -126, -100, -2, 0, 1, 9, 120]) {
      for (const ulps of [-2, -1, 0, 1, 2]) {
        const bits = new Uint32Array(Float32Array.of(2 ** e).buffer);
        bits[0] = Math.max(0, bits[0] + ulps);
        const x = new Float32Array(32);
        x[7] = -new Float32Array(bits.buffer)[0];
        const want = mxBlock(name, x);
        const w = quantize(row(x), fmt);
        expect([w.scales![0], ...unpack(w)], `2^${e} ${ulps} ulps`).toEqual([want.scale, ...want.codes!]);
      }
    }
  });

  test("NaN or infinity makes its block NaN and no other", () => {
    for (const bad of [NaN, Infinity, -Infinity]) {
      const x = new Float32Array(96).fill(1);
      x[40] = bad;
      const w = quantize(row(x), fmt);
      expect(w.scales![1]).toBe(0xff);
      expect(w.scales![0]).not.toBe(0xff);
      const dq = dequantize(w);
      expect(dq.subarray(32, 64).every(Number.isNaN)).toBe(true);
      expect(dq.findIndex(Number.isNaN)).toBe(32);
      expect(dq.subarray(64).some(Number.isNaN)).toBe(false);
    }
  });

  test("an all-zero block has scale code 0, and a short tail is a block of its own", () => {
    const x = new Float32Array(80);
    x.fill(1000, 64);
    const w = quantize(tensor(x, [1, 80]), fmt);
    expect([...w.scales!.subarray(0, 2)]).toEqual([0, 0]);
    expect(w.scales!.length).toBe(3);
    expect(w.scales![2]).toBe(mxBlock(name, x.slice(64)).scale);
    expect([...dequantize(w)].slice(0, 64).every((v) => v === 0)).toBe(true);
  });

  test.each(["mse", "mseSweep"] as const)("%s is no worse than floor, ceil or rceil, block by block", (search) => {
    const rng = random(31);
    for (let i = 0; i < 48; i++) {
      const x = awkwardBlock(rng, 32, i);
      const best = error(quantize(row(x), fmt, { scaleRule: search }), x);
      for (const scaleRule of ["floor", "rceil", "ceil"] as const)
        expect(best, `${scaleRule} kind ${i % 12}`).toBeLessThanOrEqual(error(quantize(row(x), fmt, { scaleRule }), x) * (1 + 1e-12));
    }
  });

  test("survives its file", () => {
    const w = quantize(row(awkwardBlock(random(2), 64, 0)), fmt);
    const again = fromBytes(toBytes(w));
    expect(again.format).toBe(fmt);
    expect(dequantize(again)).toEqual(dequantize(w));
  });
});

for (const name of MX.filter((n) => n !== "mxint6" && n !== "mxint4"))
  describeShared(`${name} reference blocks`, vectorPath(`examples/mx-${name}.jsonl`), (path) => {
    const records = readVectors<{ x?: string; scale: string; codes: string | null; dq: string }>(path).filter((r) => r.x);
    test.each(records.map((r, i) => [i, r] as const))("record %d", (_, r) => {
      const w = quantize(row(floats(r.x!)), block(name));
      expect(digits(w.scales!, 2)).toBe(r.scale);
      if (r.codes === null) return;
      expect(digits(unpack(w), r.codes.length / 32)).toBe(r.codes);
      expect(bits32(dequantize(w))).toBe(r.dq);
    });
  });

test("every kind of rounding of the scale can be told apart", () => {
  // E2M1, amax 7: floor 1 (saturates), ceil 2, rceil 2, even: 1.75 rounds up to 2, so 2; amax 6.5: floor 1, even 1,
  // rceil 2.
  const scaleOf = (amax: number, scaleRule: "floor" | "ceil" | "rceil" | "even") =>
    quantize(row(new Float32Array(32).fill(amax)), block("mxfp4"), { scaleRule }).scales![0] - 127;
  expect((["floor", "ceil", "rceil", "even"] as const).map((r) => scaleOf(7, r))).toEqual([0, 1, 1, 1]);
  expect((["floor", "ceil", "rceil", "even"] as const).map((r) => scaleOf(6.5, r))).toEqual([0, 1, 1, 0]);
  expect((["floor", "ceil", "rceil", "even"] as const).map((r) => scaleOf(4, r))).toEqual([0, 0, 0, 0]);
  expect((["floor", "ceil", "rceil", "even"] as const).map((r) => scaleOf(4.5, r))).toEqual([0, 1, 0, 0]);
});

test("rceil is exact: one ulp above 127 * 2^k needs the next power of two, where float32 arithmetic with 1/127 does not see it", () => {
  const x = new Float32Array(32);
  x[0] = 127 / 64;
  expect(quantize(row(x), block("mxint8"), { scaleRule: "rceil" }).scales![0]).toBe(127);
  x[0] = 127 / 64 + 2 ** -23;
  expect(quantize(row(x), block("mxint8"), { scaleRule: "rceil" }).scales![0]).toBe(128);
});

test("quest: the scale follows the standard deviation and large values clip", () => {
  const rng = random(4);
  const x = Float32Array.from({ length: 32 }, () => rng.normal());
  x[3] = 40;
  const mean = x.reduce((s, v) => s + v, 0) / 32;
  const sigma = Math.sqrt(x.reduce((s, v) => s + (v - mean) ** 2, 0) / 32);
  const w = quantize(row(x), block("mxfp4"), { scaleRule: "quest" });
  expect(w.scales![0] - 127).toBe(floorLog2((2.92247856 / 6) * sigma + 1e-8));
  expect(dequantize(w)[3]).toBe(6 * 2 ** (w.scales![0] - 127));
});

test("fourThirds: E8M0 of 2^floor(log2 amax) under a constant third, nothing saturates", () => {
  const rng = random(6);
  const third = Math.fround(1 / 3);
  for (let i = 0; i < 24; i++) {
    const x = awkwardBlock(rng, 32, i);
    const w = quantize(row(x), block("mxfp4_fourthirds"));
    const amax = x.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    expect(float32At(w.superScales!)).toBe(third);
    const e = amax === 0 ? -127 : Math.max(-127, floorLog2(amax));
    expect(w.scales![0] - 127).toBe(e);
    const s = 2 ** e * third;
    for (const [j, v] of dequantize(w).entries()) {
      const t = x[j] / s;
      expect(Math.abs(t)).toBeLessThanOrEqual(6 * (1 + 2 ** -23));
      const least = Math.min(...E2M1_GRID.map((g) => Math.abs(g - t)));
      expect(Math.abs(v / s - t)).toBeLessThanOrEqual(least + 1e-6);
    }
  }
  expect(() => quantize(row(new Float32Array(32)), block("mxfp4"), { scaleRule: "fourThirds" })).toThrow(code("E_UNSUPPORTED"));
});

describe("nvfp4", () => {
  const fmt = block("nvfp4");
  /** A tensor of blocks of every kind and of very different sizes; so some scales are tiny beside the largest. */
  const mixed = (seed: number, blocks: number) => {
    const rng = random(seed);
    const x = new Float32Array(16 * blocks);
    for (let b = 0; b < blocks; b++) x.set(awkwardBlock(rng, 16, rng.integer(12)), 16 * b);
    return x;
  };

  test.each(["torchao", "te", "modelopt"] as const)("equals the oracle, rule %s", (rule) => {
    for (let seed = 0; seed < 40; seed++) {
      const x = seed === 0 ? new Float32Array(64) : mixed(seed, 8);
      const want = nvOracle(x, rule);
      const w = quantize(tensor(x, [4, x.length / 4]), fmt, { scaleRule: rule });
      expect(float32At(w.superScales!)).toBe(want.tensor);
      expect([...w.scales!]).toEqual(want.scales);
      expect([...unpack(w)]).toEqual(want.codes);
      const scale = want.scales.map((c) => Math.fround(E4M3[c]! * want.tensor));
      expect([...dequantize(w)]).toEqual(want.codes.map((c, i) => Math.fround(E2M1_GRID[c] * scale[i >> 4])));
    }
  });

  test("torchao is the default; its block scales stop at 2^-6, those of TransformerEngine do not", () => {
    const x = new Float32Array(32);
    x[0] = 1;
    x[16] = 2 ** -20;
    const first = quantize(row(x), fmt);
    expect(first.recipe.scaleRule).toBe("torchao");
    expect([...first.scales!]).toEqual([0x7e, 0x08]);
    expect([...quantize(row(x), fmt, { scaleRule: "te" }).scales!]).toEqual([0x7e, 0x00]);
    expect([...quantize(row(x), fmt, { scaleRule: "modelopt" }).scales!]).toEqual([0x7e, 0x01]);
  });

  test("mseSweep finds the best of all E4M3 scales near the block, mse of those up to 1.2 times as large", () => {
    for (const [scaleRule, reach] of [
      ["mseSweep", 2],
      ["mse", 1.2],
    ] as const)
      for (let seed = 50; seed < 56; seed++) {
        const x = Float32Array.from(
          { length: 64 },
          (
            (rng) => () =>
              rng.normal()
          )(random(seed)),
        );
        const w = quantize(row(x), fmt, { scaleRule });
        const t = float32At(w.superScales!);
        for (let b = 0; b < 4; b++) {
          const part = x.subarray(16 * b, 16 * b + 16);
          const errorOf = (s: number) => part.reduce((sum, v) => sum + Math.min(...E2M1_GRID.map((g) => (g * s * t - v) ** 2)), 0);
          const amax = part.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
          const near = E4M3.filter((s): s is number => s !== null && s * t * 6 >= amax / 2 && s * t * 6 <= amax * reach);
          expect(errorOf(E4M3[w.scales![b]]!)).toBeLessThanOrEqual(Math.min(...near.map(errorOf)) * (1 + 1e-9));
        }
      }
  });

  test("four over six takes the better of two scales, and aims at 256", () => {
    const rng = random(77);
    const x = Float32Array.from({ length: 16 * 200 }, () => rng.normal());
    const w = quantize(row(x), fmt, { scaleRule: "fourOverSix" });
    const amax = x.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    expect(float32At(w.superScales!)).toBe(Math.fround(amax / (256 * 6)));
    const t = float32At(w.superScales!);
    const dq = dequantize(w);
    let four = 0;
    for (let b = 0; b < 200; b++) {
      const part = x.subarray(16 * b, 16 * b + 16);
      const a = part.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
      const ratio = a / (E4M3[w.scales![b]]! * t);
      expect(Math.min(Math.abs(ratio - 6) / 6, Math.abs(ratio - 4) / 4)).toBeLessThan(0.07);
      if (ratio < 5) four++;
      const own = part.reduce((s, v, j) => s + (dq[16 * b + j] - v) ** 2, 0);
      for (const target of [6, 4]) {
        const s = E4M3.reduce((m: number, g) => (g !== null && Math.abs(g - a / target / t) < Math.abs(m - a / target / t) ? g : m), 1);
        const other = part.reduce((sum, v) => sum + Math.min(...E2M1_GRID.map((g) => (g * s * t - v) ** 2)), 0);
        expect(own).toBeLessThanOrEqual(other * (1 + 1e-5) + 1e-12);
      }
    }
    expect(four).toBeGreaterThan(20);
    expect(error(w, x)).toBeLessThan(error(quantize(row(x), fmt), x));
  });

  test("refuses values that are not finite: one would spoil the tensor scale", () => {
    expect(() => quantize(row(Float32Array.of(1, NaN)), fmt)).toThrow(code("E_VALUE"));
  });
});

describeShared("nvfp4 reference tensors", vectorPath("examples/nvfp4-nvfp4.jsonl"), (path) => {
  type Answer = { tensor_scale?: string; global_decode_scale?: string; block_scales: string; codes: string; dq?: string };
  const records = readVectors<{ kind: string; x?: string; torchao: Answer; te: Answer }>(path).filter((r) => r.x);
  for (const rule of ["torchao", "te"] as const)
    test.each(records.map((r, i) => [i, r.kind, r] as const))(`${rule}, record %d, %s`, (_i, _k, r) => {
      const want = r[rule];
      const w = quantize(row(floats(r.x!)), block("nvfp4"), { scaleRule: rule });
      expect(digits([...w.superScales!].reverse(), 2)).toBe(want.tensor_scale ?? want.global_decode_scale);
      expect(digits(w.scales!, 2)).toBe(want.block_scales);
      expect(digits(unpack(w), 1)).toBe(want.codes);
      if (want.dq) expect(bits32(dequantize(w))).toBe(want.dq);
    });
});

describeShared("nf4_b64 reference blocks", vectorPath("examples/nf4-blocks.jsonl"), (path) => {
  const records = readVectors<{ x?: string; absmax: string; codes_cuda_thresholds: string; dq: string }>(path).filter((r) => r.x);
  test.each(records.map((r, i) => [i, r] as const))("record %d", (_, r) => {
    const w = quantize(row(floats(r.x!)), block("nf4_b64"));
    expect(digits([...w.scales!].reverse(), 2)).toBe(r.absmax);
    expect(digits(unpack(w), 1)).toBe(r.codes_cuda_thresholds);
    expect(bits32(dequantize(w))).toBe(r.dq);
  });
});

describeShared(
  "ONNX QuantizeLinear: float32 division, half to even, zero point",
  vectorPath("examples/int-int_quantize_linear.jsonl"),
  (path) => {
    type Record = { bits: number; signed: boolean; scale: string; zero_point: number; x: string; q_f32div: number[]; dq: string };
    const records = readVectors<Record>(path).filter((r) => r.x);
    test.each(records.map((r, i) => [i, r] as const))("record %d", (_, r) => {
      const element = format(`${r.signed ? "int" : "uint"}${r.bits}`) as NumberFormat;
      const [scale] = floats(r.scale);
      const { max, min } = element.limits;
      const steps = format("int32") as NumberFormat;
      const q = Array.from(floats(r.x), (v) => {
        const whole = steps.decode(steps.encode(Math.fround(v / scale)));
        return element.decode(element.encode(Math.max(min, Math.min(max, whole + r.zero_point))));
      });
      expect(q).toEqual(r.q_f32div);
      expect(bits32(Float32Array.from(q, (c) => (c - r.zero_point) * scale))).toBe(r.dq);
    });
  },
);

test("nvint4: symmetric integers under two levels", () => {
  const rng = random(8);
  const x = Float32Array.from({ length: 256 }, () => rng.normal());
  const w = quantize(row(x), block("nvint4"));
  const amax = x.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  expect(float32At(w.superScales!)).toBe(Math.fround(amax / (448 * 7)));
  const codes = [...unpack(w)].map((c) => (c > 7 ? c - 16 : c));
  expect(Math.min(...codes)).toBeGreaterThanOrEqual(-7);
  for (let b = 0; b < 16; b++) {
    const s = Math.fround(E4M3[w.scales![b]]! * float32At(w.superScales!));
    for (let i = 16 * b; i < 16 * b + 16; i++)
      expect(Math.abs(codes[i] * s - x[i])).toBeLessThanOrEqual(s * 0.5001 + Math.max(0, Math.abs(x[i]) - 7 * s));
  }
});

describe("nf4_b64_dq", () => {
  const fmt = block("nf4_b64_dq");
  test("4.127 bits per value", () => {
    expect(fmt.bitsPerValue(1, 1 << 20)).toBeCloseTo(4 + 8 / 64 + 32 / 16384 + 32 / (1 << 20), 6);
  });
  test("scales are mean + map * absmax, close to those of nf4_b64", () => {
    const rng = random(12);
    const x = Float32Array.from({ length: 16384 + 640 }, () => rng.normal() * (1 + rng.integer(3)));
    x.fill(0, 64, 128);
    const w = quantize(row(x), fmt);
    const plain = quantize(row(x), block("nf4_b64"));
    const absmax = Array.from({ length: x.length / 64 }, (_, b) =>
      x.subarray(64 * b, 64 * b + 64).reduce((m, v) => Math.max(m, Math.abs(v)), 0),
    );
    const mean = Math.fround(absmax.reduce((s, v) => s + v, 0) / absmax.length);
    expect(float32At(w.offsets!)).toBeCloseTo(mean, 5);
    const map = format("dynamic8") as typeof nf4;
    const dq = dequantize(w);
    for (const [b, a] of absmax.entries()) {
      const reach = float32At(w.superScales!, b < 256 ? 0 : 1);
      const stored = Math.fround(Math.fround(map.decode(w.scales![b]) * reach) + float32At(w.offsets!));
      // The map is nowhere coarser than 0.9 / 64 of its largest value.
      expect(Math.abs(stored - a)).toBeLessThanOrEqual(reach * (0.9 / 128) * 1.001);
      const codes = unpack(w).subarray(64 * b, 64 * b + 64);
      for (let j = 0; j < 64; j++) expect(dq[64 * b + j]).toBe(Math.fround(nf4.decode(codes[j]) * stored));
    }
    expect(error(w, x)).toBeLessThan(error(plain, x) * 1.002);
    expect(dequantize(fromBytes(toBytes(w)))).toEqual(dq);
  });
  test("the dynamic map is bitsandbytes': 256 values, 0 and +1 but no -1, seven decades", () => {
    const { values } = (format("dynamic8") as typeof nf4).order!;
    expect(values.length).toBe(256);
    expect(values[255]).toBe(1);
    expect(values[0]).toBeCloseTo(-0.99296875, 7);
    expect(values[128]).toBeCloseTo(5.5e-7, 12);
    expect(values[127]).toBe(0);
    expect(values[254]).toBeCloseTo(0.99296875, 7);
  });
});

test("msfp12, msfp16 and dfp16: a shared exponent, uniform fractions", () => {
  const rng = random(15);
  for (const [name, span, steps] of [
    ["msfp12", 16, 4],
    ["msfp16", 16, 64],
    ["dfp16", 64, 16384],
  ] as const) {
    for (let i = 0; i < 24; i++) {
      const x = awkwardBlock(rng, 64, i);
      const dq = dequantize(quantize(row(x), block(name)));
      for (let b = 0; b < 64; b += span) {
        const part = x.subarray(b, b + span);
        const amax = part.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
        const unit = amax === 0 ? 1 : Math.max(2 ** floorLog2(amax) / steps, name === "dfp16" ? 2 ** -127 : 2 ** -128);
        const top = 2 * steps - 1;
        for (let j = 0; j < span; j++) {
          const q = Math.max(-top, Math.min(top, part[j] / unit));
          const lo = Math.floor(q);
          const even = q - lo > 0.5 || (q - lo === 0.5 && lo % 2 !== 0) ? lo + 1 : lo;
          expect(dq[b + j] + 0, `${name} kind ${i % 12}`).toBe(Math.fround(even * unit) + 0);
        }
      }
    }
  }
});

describe("composition by name and by hand", () => {
  test("parametric names give scales of any format and span", () => {
    for (const name of [
      "posit8_es2_b32",
      "int5_b64",
      "int6_b128",
      "float8_e4m3fn_row",
      "int4_b32_float16",
      "uint4_b32_zp",
      "nf4_b32",
      "bipolar4_b64",
    ]) {
      const fmt = block(name);
      expect(fmt.name).toBe(name);
      const x = Float32Array.from(
        { length: 256 },
        (
          (rng) => () =>
            rng.normal()
        )(random(3)),
      );
      const w = quantize(tensor(x, [2, 128]), fmt);
      const power = x.reduce((s, v) => s + v * v, 0);
      expect(error(w, x) / power).toBeLessThan(0.03);
    }
    expect(format("nf4_b64")).toBe(allFormats.find((f) => f.name === "nf4_b64"));
    expect(block("fixed8_f6_b32").element.limits.max).toBe(127 / 64);
  });

  test("mse with float32 scales clips: 100 shrink steps, never worse than amax", () => {
    const rng = random(19);
    const x = Float32Array.from({ length: 1280 }, () => rng.laplace());
    for (const name of ["int4_b128", "int4_row", "float4_e2m1fn_b32", "int3_b64_float16"])
      expect(error(quantize(row(x), block(name), { scaleRule: "mse" }), x)).toBeLessThan(0.97 * error(quantize(row(x), block(name)), x));
  });

  test("tiles and whole tensors are searched across rows", () => {
    const rng = random(23);
    const x = Float32Array.from({ length: 64 * 64 }, () => rng.normal());
    for (const span of ["tensor", [32, 32], [16, 64]] as const) {
      const fmt = defineBlock({ element: float4_e2m1fn, scales: [{ format: float16, span }] });
      const t = tensor(x, [64, 64]);
      expect(error(quantize(t, fmt, { scaleRule: "mse" }), x)).toBeLessThan(error(quantize(t, fmt), x));
    }
  });

  test("two levels with the plain rule, and all-zero blocks between others", () => {
    const fmt = defineBlock({
      element: float4_e2m1fn,
      scales: [
        { format: float16, span: 16 },
        { format: float32, span: "row" },
      ],
    });
    const x = new Float32Array(64);
    x.fill(1e-3, 16, 32);
    const w = quantize(tensor(x, [2, 32]), fmt);
    expect([...dequantize(w)].map((v, i) => Math.abs(v - x[i]) <= 1e-6).every(Boolean)).toBe(true);
    expect([...dequantize(w)].every((v) => Number.isFinite(v))).toBe(true);
  });

  test("bad definitions and rules", () => {
    const scales = [{ format: float16, span: 32 }];
    expect(() => defineFixed({ bits: 33, fraction: 2 })).toThrow(code("E_FORMAT"));
    expect(() => defineFixed({ bits: 8, fraction: 9 })).toThrow(code("E_FORMAT"));
    expect(() => defineBlock({ element: nf4, scales: [{ format: nf4, span: 32 }], nonFinite: "scale" })).toThrow(code("E_FORMAT"));
    expect(() => defineBlock({ element: nf4, scales: [{ format: float32, span: 0 }] })).toThrow(code("E_FORMAT"));
    expect(() => quantize(row(new Float32Array(64)), block("mxfp4"), { scaleRule: "torchao" })).toThrow(code("E_UNSUPPORTED"));
    expect(() => quantize(row(new Float32Array(64)), block("nvfp4"), { scaleRule: "floor" })).toThrow(code("E_UNSUPPORTED"));
    expect(() => quantize(row(new Float32Array(64)), block("uint4_b32_zp"), { scaleRule: "mse" })).toThrow(code("E_UNSUPPORTED"));
    expect(() => quantize(row(new Float32Array(64)), block("mxfp4"), { scaleRule: "toString" as never })).toThrow(code("E_UNSUPPORTED"));
    // The next power of two of this block is beyond E8M0.
    expect(() => quantize(row(new Float32Array(32).fill(3.39e38)), block("mxint8"), { scaleRule: "rceil" })).toThrow(code("E_VALUE"));
    // A float16 scale cannot hold this block.
    expect(() => quantize(row(new Float32Array(32).fill(3e38)), defineBlock({ element: nf4, scales }))).toThrow(code("E_VALUE"));
  });

  test("any block of finite values comes back within half a step of its largest grid gap", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...MX),
        fc.float32Array({ minLength: 1, maxLength: 40, noNaN: true, min: -(2 ** 126), max: 2 ** 126 }),
        (name, x) => {
          const w = quantize(row(x), block(name), { scaleRule: "rceil" });
          const dq = dequantize(w, { dtype: "float64" });
          const { max } = elements[name];
          const grid = elements[name].grid.filter((v): v is number => v !== null).sort((a, b) => a - b);
          const gap = max - grid[grid.length - 2];
          for (const [i, v] of dq.entries()) {
            const part = x.subarray(i - (i % 32), i - (i % 32) + 32);
            const amax = part.reduce((m, a) => Math.max(m, Math.abs(a)), 0);
            if (amax === 0) expect(v).toBe(0);
            else {
              const s = 2 ** Math.max(-127, sharedExponent("rceil", amax, elements[name]));
              expect(Math.abs(v - x[i])).toBeLessThanOrEqual((gap / 2) * s);
            }
          }
        },
      ),
      { numRuns: 300, seed: 5, examples: [["mxfp4", Float32Array.of(1e-45, -0, 0, 8e37)]] },
    );
  });
});

test.each(["int4_b32", "uint4_b32_zp", "nvfp4", "nf4_b64_dq"])(
  "%s: values follow what is written to scales and offsets between two reads",
  (name) => {
    const rng = random(5);
    const w = quantize(
      tensor(
        Float32Array.from({ length: 4 * 128 }, (_, i) => (rng.next() - 0.4) * (1 + (i >> 5))),
        [4, 128],
      ),
      format(name),
    );
    const first = dequantize(w);
    const [one, two] = [new Float32Array(128), new Float32Array(2 * 128)];
    for (let r = 3; r >= 0; r--) {
      dequantizeRows(w, r, 1, one);
      expect(one).toEqual(first.subarray(128 * r, 128 * (r + 1)));
    }
    for (const plane of [w.scales, w.superScales, w.offsets])
      if (plane !== null && plane.length > 4) plane.copyWithin(0, plane.length >> 1);
    const fresh = dequantize({ ...w });
    expect(fresh).not.toEqual(first);
    dequantizeRows(w, 0, 1, one);
    expect(one).toEqual(fresh.subarray(0, 128));
    dequantizeRows(w, 0, 2, two);
    expect(two).toEqual(fresh.subarray(0, 256));
  },
);
