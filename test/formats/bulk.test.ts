// Bulk conversion equals the scalar codec for every float32 that matters: around every boundary of every format,
// specials, and all policies; the fast loops (tables by the top bits, rounding on bits) are forced by long arrays.
import { describe, expect, test } from "vitest";
import { allFormats, decodeArray, encodeArray, format, type EncodeOptions, type NumberFormat } from "../../formats/index.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque" && f.bits <= 16);
const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);
const neighbour = (x: number, step: number): number => {
  f32[0] = x;
  u32[0] += step;
  return f32[0];
};

/**
 * float32 values: boundaries and values with their neighbours (of the larger formats a sample), specials, and a ramp
 * over all exponents.
 */
function probes(f: NumberFormat): Float32Array {
  const { values, boundaries } = f.order!;
  const list = [0, -0, Infinity, -Infinity, 3.4028234663852886e38, -3.4028234663852886e38, 2 ** -149, -(2 ** -149), 2 ** -126];
  const stride = Math.max(1, Math.floor(values.length / 600));
  for (let i = 0; i < values.length; i += stride)
    for (const x of [values[i], boundaries[i] ?? 2 * values[i]]) for (const s of [-1, 0, 1]) list.push(neighbour(x, s));
  for (let e = 1; e < 255; e++)
    for (const m of [0, 1, 0x3fffff, 0x400000, 0x400001, 0x7fffff, 0x0fffff, 0x100000, 0x2468ac]) {
      u32[0] = (e << 23) | m;
      list.push(f32[0], -f32[0]);
    }
  // Long enough that the table of the fast loop is made.
  while (list.length < 5000) list.push(...list.slice(0, 1000));
  return Float32Array.from(list);
}

const policies = (f: NumberFormat): EncodeOptions[] => {
  const nan = f.limits.hasNaN ? "nan" : "max";
  const all: EncodeOptions[] = [
    { nan },
    { overflow: "saturate", nan },
    { overflow: "saturate", rounding: "halfExpand", nan },
    { overflow: "saturate", rounding: "trunc", nan },
    { overflow: "saturate", rounding: "ceil", nan },
    { overflow: "saturate", rounding: "halfFloor", nan },
  ];
  all.push(f.limits.hasNaN ? { overflow: "nan", infinity: "keep" } : { infinity: "keep", nan });
  return all;
};

describe("encodeArray equals encode", () => {
  test.each(scalars.map((f) => [f.name, f] as const))("%s", (_, f) => {
    const x = probes(f);
    const list = f.bits > 8 ? policies(f).slice(0, 3) : policies(f);
    for (const options of list)
      for (const values of [x, x.slice(0, 100), Float64Array.from(x.slice(0, 2000))]) {
        const got = encodeArray(f, values, undefined, options);
        for (let i = 0; i < values.length; i++) {
          const want = f.encode(values[i], options);
          if (got[i] !== want) throw new Error(`${f.name} ${JSON.stringify(options)} ${values[i]}: expected ${want}, got ${got[i]}`);
        }
      }
    const nan = encodeArray(f, new Float32Array(5000).fill(NaN), undefined, { nan: f.limits.hasNaN ? "nan" : "max" });
    expect(nan[4999]).toBe(f.encode(NaN, { nan: f.limits.hasNaN ? "nan" : "max" }));
  });
});

describe("float16 and bfloat16, every 16-bit pattern and its float32 neighbourhood", () => {
  test.each(["float16", "bfloat16"])("%s", (name) => {
    const f = format(name) as NumberFormat;
    const codes = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const values = decodeArray(f, codes);
    for (let c = 0; c < 65536; c++)
      if (!Object.is(values[c], f.decode(c))) throw new Error(`${name} ${c}: ${values[c]}, not ${f.decode(c)}`);
    const back = encodeArray(f, values);
    for (let c = 0; c < 65536; c++) if (!Number.isNaN(values[c]) && back[c] !== c) throw new Error(`${name} ${c} -> ${back[c]}`);
    // One float32 step to either side of every tie.
    const ties = Float32Array.from(f.order!.boundaries.filter((_, i) => i % 3 === 0));
    for (const s of [-1, 0, 1]) {
      const x = ties.map((t) => neighbour(t, s));
      const got = encodeArray(f, x);
      for (let i = 0; i < x.length; i++)
        if (got[i] !== f.encode(x[i])) throw new Error(`${name} ${x[i]}: ${got[i]}, not ${f.encode(x[i])}`);
    }
  });
});

test("float16: data that are mostly normal numbers, with rare subnormals, zeros, overflows and specials", () => {
  const f = format("float16") as NumberFormat;
  const rare = [0, -0, 2 ** -25, -(2 ** -24), 3 * 2 ** -25, 6.1e-5, 65519.99, 65520, -65536, 1e30, -Infinity, NaN];
  const x = Float32Array.from({ length: 6000 }, (_, i) =>
    i % 97 === 96 ? rare[Math.floor(i / 97) % rare.length] : neighbour(f.decode(0x400 + ((i * 31) % 0x7700)) * (1 + 2 ** -11), (i % 3) - 1),
  );
  // the largest NaN of both signs
  new Uint32Array(x.buffer).set([0x7fffffff, 0xffffffff], 100);
  for (const options of [{}, { overflow: "saturate" }] as const) {
    const got = encodeArray(f, x, undefined, options);
    for (let i = 0; i < x.length; i++)
      if (got[i] !== f.encode(x[i], options)) throw new Error(`${x[i]}: ${got[i]}, not ${f.encode(x[i], options)}`);
  }
});

test("decodeArray equals decode and checks codes that could be out of range", () => {
  for (const f of scalars.filter((f) => f.bits <= 8)) {
    const codes = Uint8Array.from({ length: 2 ** f.bits }, (_, i) => i);
    for (const out of [new Float32Array(codes.length), new Float64Array(codes.length)]) {
      decodeArray(f, codes, out);
      codes.forEach((c) => expect(out[c]).toBe(out instanceof Float32Array ? Math.fround(f.decode(c)) : f.decode(c)));
    }
    if (f.bits < 8) expect(() => decodeArray(f, Uint8Array.of(2 ** f.bits))).toThrow(RangeError);
  }
  expect(() => decodeArray(format("int8") as NumberFormat, [256])).toThrow(RangeError);
  expect(() => decodeArray(format("int8") as NumberFormat, [1, 2], new Float32Array(1))).toThrow(
    expect.objectContaining({ code: "E_SHAPE" }),
  );
});

test("float32: bits as they are; policies where a value is not finite or overflows", () => {
  const f = format("float32") as NumberFormat;
  const plain = Float64Array.of(1, -0, 0.1, 2 ** -149, -(2 ** -150), 3.4028235e38, 1 + 2 ** -24, 1 + 2 ** -24 + 2 ** -50);
  const special = Float64Array.of(1, NaN, 1e39, -Infinity, 3.4028235677973366e38);
  for (const values of [plain, special, Float32Array.from(special)])
    for (const options of [{}, { overflow: "saturate" }, { rounding: "trunc" }, { overflow: "nan", infinity: "keep" }] as const) {
      const codes = encodeArray(f, values, undefined, options);
      expect([...codes]).toEqual([...values].map((v) => f.encode(v, options)));
      for (const out of [new Float32Array(codes.length), new Float64Array(codes.length + 2)])
        expect([...decodeArray(f, codes, out)].slice(0, codes.length)).toEqual([...codes].map((c) => f.decode(c)));
    }
  expect(() => encodeArray(f, special, undefined, { overflow: "error" })).toThrow(/float32: expected a value/);
});

test("a refused value is named by its index, also in the fast loops", () => {
  const f = format("float4_e2m1fn") as NumberFormat;
  const x = new Float32Array(10_000);
  x[7777] = NaN;
  expect(() => encodeArray(f, x)).toThrow(/values\[7777\].*NaN/);
  expect(() => encodeArray(f, Float64Array.of(1, NaN))).toThrow(/values\[1\]/);
  const h = format("float16") as NumberFormat;
  expect(() => encodeArray(h, Float32Array.of(1, 1e9), undefined, { overflow: "error" })).toThrow(/values\[1\]/);
  expect(() => encodeArray(h, new Float32Array(3), new Uint16Array(2))).toThrow(/room for 3/);
  expect(() => encodeArray(h, new Float32Array(3), new Uint8Array(3))).toThrow(/Uint8Array/);
});
