// Integers and floats of at most 8 bits (and float16, bfloat16 by sampling) against an oracle written apart: every
// code, every tie and its neighbours, the ends, zeros, infinities and NaN under every policy.
import { describe, expect, test } from "vitest";
import {
  allFormats,
  decodeArray,
  encodeArray,
  format,
  type EncodeOptions,
  type NumberFormat,
  type Overflow,
  type Rounding,
} from "../../../formats/index.ts";
import { defineFloat, defineInt } from "../../../formats/define/index.ts";
import { exact, intMeaning, meaning, nearestHalfEven, type FloatSpec, type Meaning } from "../../oracle/minifloat.ts";

const floats: Record<string, FloatSpec> = {
  float8_e4m3fn: { E: 4, M: 3, bias: 7, specials: "fn" },
  float8_e5m2: { E: 5, M: 2, bias: 15, specials: "ieee" },
  float8_e4m3fnuz: { E: 4, M: 3, bias: 8, specials: "fnuz" },
  float8_e5m2fnuz: { E: 5, M: 2, bias: 16, specials: "fnuz" },
  float6_e2m3fn: { E: 2, M: 3, bias: 1, specials: "finite" },
  float6_e3m2fn: { E: 3, M: 2, bias: 3, specials: "finite" },
  float4_e2m1fn: { E: 2, M: 1, bias: 1, specials: "finite" },
  float8_e8m0fnu: { E: 8, M: 0, bias: 127, specials: "fn", signed: false, subnormals: false },
  float16: { E: 5, M: 10, bias: 15, specials: "ieee" },
  bfloat16: { E: 8, M: 7, bias: 127, specials: "ieee" },
};
const ints = [2, 3, 4, 5, 6, 7, 8].flatMap((bits) => [
  { name: `int${bits}`, bits, signed: true },
  { name: `uint${bits}`, bits, signed: false },
]);

const scalar = (name: string) => format(name) as NumberFormat;
const oracles: { name: string; f: NumberFormat; meanings: Meaning[]; beyond: { above: bigint; below: bigint } }[] = [
  ...Object.entries(floats).map(([name, spec]) => {
    const f = scalar(name);
    const meanings = Array.from({ length: 2 ** f.bits }, (_, c) => meaning(spec, c));
    const values = meanings.flatMap((m) => (m.kind === "finite" ? [m.value] : [])).sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
    const top = values[values.length - 1];
    // The first value outside: one more step of the top binade (a power of two above it where the mantissa is full,
    // which is the same number).
    const step = spec.M === 0 ? top : top - values[values.length - 2];
    const minPositive = values.find((v) => v > 0n)!;
    return { name, f, meanings, beyond: { above: top + step, below: spec.signed === false ? -minPositive : -(top + step) } };
  }),
  ...ints.map(({ name, bits, signed }) => {
    const f = scalar(name);
    const meanings = Array.from({ length: 2 ** bits }, (_, c) => intMeaning(bits, signed, c));
    const one = exact(1);
    const max = signed ? 2n ** BigInt(bits - 1) - 1n : 2n ** BigInt(bits) - 1n;
    const min = signed ? -(2n ** BigInt(bits - 1)) : 0n;
    return { name, f, meanings, beyond: { above: (max + 1n) * one, below: (min - 1n) * one } };
  }),
];

const f64 = new Float64Array(1);
const i64 = new BigInt64Array(f64.buffer);
const neighbours = (x: number): number[] => {
  if (x === 0) return [-Number.MIN_VALUE, -0, 0, Number.MIN_VALUE];
  f64[0] = x;
  const bits = i64[0];
  return [bits - 1n, bits, bits + 1n].map((b) => ((i64[0] = b), f64[0]));
};

/** Values, midpoints and quarter points of neighbours, each with the doubles beside it; beyond both ends; zeros. */
function probes(f: NumberFormat): number[] {
  const v = Array.from(f.order!.values);
  const stride = f.bits > 8 ? 1499 : 1;
  const xs: number[] = [0, -0, 1e-310, -1e-310, 1e300, -1e300];
  for (let i = 0; i + 1 < v.length; i += stride)
    xs.push(...neighbours(v[i]), ...neighbours(v[i] / 2 + v[i + 1] / 2), v[i] * 0.75 + v[i + 1] * 0.25);
  const [lo, lo2] = [v[0], v[1]];
  const [hi, hi2] = [v[v.length - 1], v[v.length - 2]];
  for (const t of [0, 0.25, 0.5, 0.75, 1, 1.5]) xs.push(...neighbours(hi + (hi - hi2) * t), ...neighbours(lo - (lo2 - lo) * t));
  return xs;
}

describe.each(oracles)("$name", ({ name, f, meanings, beyond }) => {
  test("every code decodes as its bit string says", () => {
    meanings.forEach((m, code) => {
      const value = f.decode(code);
      if (m.kind === "nan") expect(value).toBeNaN();
      else if (m.kind === "inf") expect(value).toBe(m.negative ? -Infinity : Infinity);
      else {
        expect(exact(value)).toBe(m.value);
        expect(Object.is(value, -0)).toBe(m.negative && m.value === 0n);
      }
    });
  });

  test("encode equals a brute-force nearest search under every overflow policy", () => {
    const ties = f.defaults.rounding === "halfEven";
    const policies: Overflow[] = [
      "saturate",
      ...(f.limits.hasInf ? ["inf" as const] : []),
      ...(f.limits.hasNaN ? ["nan" as const] : []),
      "error",
    ];
    const max = f.order!.codes[f.order!.codes.length - 1];
    const min = f.order!.codes[0];
    let checked = 0;
    for (const x of probes(f)) {
      if (f.limits.min > 0 && x < f.limits.min) continue; // the scale format: its lower end has a test of its own
      const want = nearestHalfEven(meanings, beyond, x).code;
      for (const overflow of policies) {
        const options: EncodeOptions = { overflow, rounding: "halfEven" };
        if (want === "over" || want === "under") {
          if (overflow === "error") expect(() => f.encode(x, options)).toThrow(expect.objectContaining({ code: "E_VALUE" }));
          else {
            const got = f.encode(x, options);
            if (overflow === "saturate") expect(got).toBe(want === "over" ? max : min);
            else if (overflow === "nan") expect(f.decode(got)).toBeNaN();
            else expect(f.decode(got)).toBe(want === "over" ? Infinity : -Infinity);
          }
        } else {
          const got = f.encode(x, options);
          const value = f.decode(got);
          if (value === 0 && f.limits.hasNegativeZero) expect(Object.is(value, -0)).toBe(x < 0 || Object.is(x, -0));
          else if (got !== want) expect(`${name} ${x} -> ${got}`).toBe(`${name} ${x} -> ${want}`);
        }
        checked++;
      }
      if (!ties) continue;
      expect(f.encode(x, { overflow: "saturate" })).toBe(f.encode(x, { overflow: "saturate", rounding: "halfEven" }));
    }
    expect(checked).toBeGreaterThan(20);
  });

  test("directed and tie roundings lie where their names say", () => {
    const values = f.order!.values;
    const at = (x: number, rounding: Rounding) => f.decode(f.encode(x, { rounding, overflow: "saturate" }));
    const stride = f.bits > 8 ? 1499 : 1;
    for (let i = 0; i + 1 < values.length; i += stride) {
      const [lo, hi] = [values[i], values[i + 1]];
      const mid = lo / 2 + hi / 2;
      for (const x of [lo * 0.75 + hi * 0.25, mid, lo * 0.25 + hi * 0.75]) {
        const t = x === mid;
        const nearer = x < mid ? lo : hi;
        const want: Partial<Record<Rounding, number>> = {
          floor: lo,
          ceil: hi,
          trunc: x > 0 ? lo : hi,
          expand: x > 0 ? hi : lo,
          halfCeil: t ? hi : nearer,
          halfFloor: t ? lo : nearer,
          halfExpand: t ? (x > 0 ? hi : lo) : nearer,
          halfTrunc: t ? (x > 0 ? lo : hi) : nearer,
        };
        for (const [rounding, value] of Object.entries(want))
          expect(at(x, rounding as Rounding) + 0, `${name} ${x} ${rounding}`).toBe(value);
      }
    }
  });

  test("infinities and NaN under every policy", () => {
    const max = f.limits.max;
    expect(f.decode(f.encode(Infinity, { overflow: "saturate" }))).toBe(max);
    expect(f.decode(f.encode(-Infinity, { overflow: "saturate" }))).toBe(f.limits.min);
    expect(() => f.encode(Infinity, { overflow: "error" })).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    if (f.limits.hasInf) {
      expect(f.decode(f.encode(-Infinity, { overflow: "saturate", infinity: "keep" }))).toBe(-Infinity);
      expect(f.decode(f.encode(Infinity))).toBe(Infinity);
    } else expect(() => f.encode(Infinity, { overflow: "inf" })).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
    if (f.limits.hasNaN) {
      expect(f.decode(f.encode(NaN))).toBeNaN();
      expect(() => f.encode(NaN, { nan: "error" })).toThrow(expect.objectContaining({ code: "E_VALUE" }));
    } else {
      expect(() => f.encode(NaN)).toThrow(expect.objectContaining({ code: "E_VALUE" }));
      expect(() => f.encode(NaN, { nan: "nan" })).toThrow(expect.objectContaining({ code: "E_UNSUPPORTED" }));
      expect(f.decode(f.encode(NaN, { nan: "max" }))).toBe(max);
      expect(f.decode(f.encode(NaN, { nan: "zero" }))).toBe(0);
    }
  });

  test("bulk encode equals scalar encode for every probe and mode", () => {
    const xs = probes(f);
    const modes: Rounding[] = ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor"];
    for (const rounding of modes)
      for (const overflow of ["saturate", f.defaults.overflow] as const) {
        const wide = encodeArray(f, Float64Array.from(xs), undefined, { rounding, overflow });
        const single = Float32Array.from(xs);
        const narrow = encodeArray(f, single, undefined, { rounding, overflow });
        xs.forEach((x, i) => {
          if (wide[i] !== f.encode(x, { rounding, overflow }))
            expect(`${x} ${rounding}: ${wide[i]}`).toBe(f.encode(x, { rounding, overflow }));
          const want = f.encode(single[i], { rounding, overflow });
          if (narrow[i] !== want) expect(`${single[i]} ${rounding}: ${narrow[i]}`).toBe(want);
        });
      }
  });

  test("bulk decode equals scalar decode", () => {
    const codes = Uint16Array.from({ length: 2 ** f.bits }, (_, c) => c);
    const values = decodeArray(f, codes, new Float64Array(codes.length));
    codes.forEach((c) => expect(Object.is(values[c], f.decode(c))).toBe(true));
    expect(() => decodeArray(f, [2 ** f.bits])).toThrow(RangeError);
  });
});

test("float8_e8m0fnu: zero and negative values are out of range, tiny ones underflow to 2^-127, ties go up", () => {
  const f = scalar("e8m0");
  expect(f.decode(f.encode(0))).toBeNaN();
  expect(f.encode(0, { overflow: "saturate" })).toBe(0);
  expect(f.decode(f.encode(-1))).toBeNaN();
  expect(f.encode(1e-300)).toBe(0);
  expect(f.decode(f.encode(1.5))).toBe(2);
  expect(f.decode(f.encode(1.4999999))).toBe(1);
  expect(f.decode(f.encode(1.5, { rounding: "floor" }))).toBe(1);
});

test("float32 is the machine's float32", () => {
  const f = scalar("float32");
  const view = new Float32Array(1);
  const bits = new Uint32Array(view.buffer);
  let x = 1e-320;
  for (let i = 0; i < 4000; i++, x *= -1.449) {
    if (!Number.isFinite(x)) break;
    for (const v of neighbours(x)) {
      view[0] = v;
      expect(f.encode(v)).toBe(bits[0]);
      if (Number.isFinite(view[0])) expect(Object.is(f.decode(bits[0]), view[0])).toBe(true);
    }
  }
  for (const tie of [2 ** -150, 3 * 2 ** -150, 1 + 2 ** -24, 1 + 3 * 2 ** -24, 3.4028235677973366e38]) {
    for (const v of [...neighbours(tie), ...neighbours(-tie)]) {
      view[0] = v;
      expect(f.encode(v)).toBe(bits[0]);
    }
  }
  expect(f.decode(f.encode(1 + 2 ** -24, { rounding: "ceil" }))).toBe(1 + 2 ** -23);
  expect(f.decode(f.encode(1e300, { rounding: "trunc" }))).toBe(f.limits.max);
  expect(f.decode(f.encode(-1e300, { rounding: "halfExpand" }))).toBe(-Infinity);
});

test("int overflow wraps on request, as ONNX Cast does", () => {
  expect(scalar("int4").encode(9, { overflow: "wrap" })).toBe(9);
  expect(scalar("int4").decode(scalar("int4").encode(9, { overflow: "wrap" }))).toBe(-7);
  expect(scalar("uint2").encode(-1.5, { overflow: "wrap" })).toBe(2);
});

test("narrow integers never produce the most negative code but read it", () => {
  const f = defineInt({ bits: 4, signed: true, narrow: true });
  expect(f.decode(f.encode(-20))).toBe(-7);
  expect(f.decode(8)).toBe(-8);
  expect(f.limits).toMatchObject({ min: -7, max: 7, symmetric: true });
});

test("stochastic rounding is unbiased and asks for a generator", () => {
  const f = scalar("float4_e2m1fn");
  let state = 7;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
  let sum = 0;
  for (let i = 0; i < 20000; i++) sum += f.decode(f.encode(2.3, { rounding: "stochastic", random }));
  expect(sum / 20000).toBeCloseTo(2.3, 1);
  expect(() => f.encode(2.3, { rounding: "stochastic" })).toThrow(TypeError);
});

test("bad codes and bad definitions are refused", () => {
  for (const f of allFormats) {
    if (f.kind === "block" || f.kind === "opaque") continue;
    for (const code of [-1, 2 ** f.bits, 0.5, NaN, Infinity]) expect(() => f.decode(code)).toThrow(RangeError);
  }
  const broken: [() => unknown, string][] = [
    [() => defineInt({ bits: 0, signed: true }), "E_FORMAT"],
    [() => defineInt({ bits: 33, signed: true }), "E_FORMAT"],
    [() => defineInt({ bits: 8, signed: false, narrow: true }), "E_FORMAT"],
    [() => defineFloat({ name: "x", exponentBits: 9, mantissaBits: 1, specials: "fn" }), "E_FORMAT"],
    [() => defineFloat({ name: "x", exponentBits: 4, mantissaBits: 0, specials: "ieee" }), "E_FORMAT"],
    [() => defineFloat({ name: "Bad Name", exponentBits: 4, mantissaBits: 3, specials: "fn" }), "E_FORMAT"],
    [() => format("int4_b0"), "E_FORMAT_UNKNOWN"],
    [() => format("flot8"), "E_FORMAT_UNKNOWN"],
  ];
  for (const [make, code] of broken) expect(make).toThrow(expect.objectContaining({ code }));
});

test("an unknown name gets the nearest ones", () => {
  expect(() => format("float8_e4m3f")).toThrow(/float8_e4m3fn/);
});
