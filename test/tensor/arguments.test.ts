// Plain mistakes in arguments are refused by name, and every kind of array that holds the right bytes gives the same
// numbers.
import { expect, test } from "vitest";
import {
  decodeArray,
  defineFloat,
  encodeArray,
  format,
  packCodes,
  unpackCodes,
  type FloatSpecials,
  type NumberFormat,
  type OpaqueFormat,
} from "../../formats/index.ts";
import * as define from "../../formats/define/index.ts";
import * as laws from "../../src/testing/index.ts";
import { dequantize, fromBytes, quantize, tensor, toBytes } from "../../src/index.ts";

const scalars = ["int4", "float4_e2m1fn", "float8_e4m3fn", "posit8_es2", "nf4", "bfloat16", "float32", "posit32_es2"].map(
  (n) => format(n) as NumberFormat,
);
const wrong: unknown[] = ["x", "1", 1n, null, undefined, [1], {}, true];

test.each(scalars.map((f) => [f.name, f] as const))("%s.encode and decode refuse other types and policies that do not exist", (_, f) => {
  for (const value of wrong) expect(() => f.encode(value as number), String(value)).toThrow(TypeError);
  for (const code of [...wrong, -1, 0.5, NaN, 2 ** f.bits]) expect(() => f.decode(code as number), String(code)).toThrow(RangeError);
  for (const key of ["rounding", "overflow", "infinity", "nan"])
    for (const policy of ["x", "", 1, null, "toString"]) {
      const options = { [key]: policy } as object;
      expect(() => f.encode(1, options), `${key} ${policy}`).toThrow(`${f.name} ${key}: expected one of`);
      expect(() => encodeArray(f, new Float32Array(1), undefined, options)).toThrow(TypeError);
    }
  expect(() => f.encode(1, "halfEven" as never)).toThrow(TypeError);
  for (const values of ["12", [1], new Int8Array(1), new DataView(new ArrayBuffer(4)), null])
    expect(() => encodeArray(f, values as never)).toThrow("encodeArray values: expected a Float32Array or Float64Array");
  expect(() => encodeArray(f, new Float32Array(1), [0] as never)).toThrow(TypeError);
  for (const codes of ["12", null, 3]) expect(() => decodeArray(f, codes as never)).toThrow("decodeArray codes");
  expect(() => decodeArray(f, [0], [0] as never)).toThrow(TypeError);
});

test("definitions refuse specials and default policies that do not exist", () => {
  const base = { name: "mine", exponentBits: 3, mantissaBits: 2 };
  expect(() => defineFloat({ ...base, specials: "x" as FloatSpecials })).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
  expect(() => defineFloat({ ...base, specials: "fn", defaults: { overflow: "x" as never } })).toThrow(
    expect.objectContaining({ code: "E_FORMAT" }),
  );
});

const nothing: unknown[] = ["4", null, NaN, 1.5, 1n, [4], {}, true];
const int4 = format("int4") as NumberFormat;
const float16 = format("float16") as NumberFormat;
const block = { element: int4, scales: [{ format: float16, span: 32 }] };
/** Sound options of each builder, and the fields that take none of `nothing` but the types named. */
const builders: Record<string, [sound: object, fields: Record<string, string[]>]> = {
  defineInt: [
    { bits: 5, signed: true },
    { bits: [], signed: ["boolean"], narrow: ["boolean"], name: [], aliases: [] },
  ],
  defineFloat: [
    { name: "m", exponentBits: 3, mantissaBits: 2, specials: "fn" },
    { name: [], exponentBits: [], bias: [], specials: [], signed: ["boolean"], subnormals: ["boolean"], padding: [], defaults: ["object"] },
  ],
  definePosit: [
    { bits: 8, es: 1 },
    { bits: [], es: [], name: [], aliases: [] },
  ],
  defineBipolarInt: [{ bits: 3 }, { bits: [], name: [] }],
  defineFixed: [
    { bits: 8, fraction: 4 },
    { bits: [], fraction: [], narrow: ["boolean"] },
  ],
  defineCodebook: [
    { name: "c", values: [-1, 0, 1, 2] },
    { name: [], values: [], bits: [], thresholds: [], defaults: ["object"] },
  ],
  defineOpaque: [
    { name: "o", spec: "", blockSize: 4, blockBytes: 4, encodeBlock: () => undefined, decodeBlock: () => undefined },
    { name: [], blockSize: [], blockBytes: [], encodeBlock: [], decodeBlock: [] },
  ],
  defineBlock: [
    block,
    { element: [], scales: [], offset: [], scaleRule: [], rangeRule: [], tail: [], nonFinite: [], name: [], aliases: [] },
  ],
};
const E_FORMAT = expect.objectContaining({ code: "E_FORMAT", message: expect.stringMatching(/expected [^]+, got /) });

test.each(Object.keys(builders))("%s refuses fields of other types, misspelt fields and no options", (name) => {
  const [sound, fields] = builders[name];
  const build = (define as unknown as Record<string, (options: unknown) => unknown>)[name];
  build(sound);
  build({ ...sound, aliases: ["other"], spec: undefined });
  for (const [field, types] of Object.entries(fields))
    for (const value of nothing) {
      const kind = Array.isArray(value) || value === null ? "none" : typeof value;
      if (types.includes(kind)) continue;
      expect(() => build({ ...sound, [field]: value }), `${field}: ${String(value)}`).toThrow(E_FORMAT);
    }
  expect(() => build({ ...sound, nmae: "x" })).toThrow(/got nmae/);
  for (const options of [null, "x", 4, [sound]]) expect(() => build(options)).toThrow(E_FORMAT);
});

test("levels of blocks and defaults of elements are looked at too", () => {
  for (const value of nothing) {
    expect(() => define.defineBlock({ ...block, scales: [value as never] })).toThrow(E_FORMAT);
    expect(() => define.defineBlock({ ...block, scales: [{ format: value as never, span: 32 }] })).toThrow(E_FORMAT);
    expect(() => define.defineBlock({ ...block, scales: [{ format: float16, span: value as never }] })).toThrow(E_FORMAT);
    expect(() => define.defineBlock({ ...block, offset: { role: value as never, levels: block.scales } })).toThrow(E_FORMAT);
  }
  const base = { name: "mine", exponentBits: 3, mantissaBits: 2, specials: "fn" } as const;
  expect(() => defineFloat({ ...base, defaults: { overflw: "saturate" } as never })).toThrow(E_FORMAT);
});

test("quantize, dequantize, laws and arbitraries refuse what is none of their arguments", () => {
  const t = tensor(new Float32Array(64), [2, 32]);
  const f = format("int4_b32") as never;
  const w = quantize(t, f);
  const none = expect.objectContaining({ name: "TypeError", message: expect.stringMatching(/expected [^]+, got /) });
  for (const value of nothing) {
    for (const option of ["scalerule", "nan", "seed"]) expect(() => quantize(t, f, { [option]: value } as never)).toThrow(none);
    for (const option of ["into", "codec"]) expect(() => dequantize(w, { [option]: value } as never)).toThrow(none);
    expect(() => dequantize(value as never)).toThrow(none);
    for (const option of ["backend", "dtype"]) expect(() => dequantize(w, { [option]: value } as never)).toThrow(none);
    for (const use of [laws.formatLaws, laws.blockLaws, laws.arbitraryValue, laws.arbitraryCode] as ((x: never) => unknown)[])
      expect(() => use(value as never)).toThrow(none);
    expect(() => laws.formatLaws(int4, { run: value } as never)).toThrow(none);
    if (typeof value !== "object") expect(() => dequantize(w, value as never)).toThrow(none);
  }
  expect(() => quantize(t, f, { scaleRule: null } as never)).toThrow(none);
  expect(() => laws.arbitraryBlock(1.5)).toThrow(RangeError);
});

test("loops over arrays make no checks of each element", () => {
  // Their policies are looked at once: an object that counts says so.
  let reads = 0;
  const options = {
    get rounding() {
      reads++;
      return "stochastic" as const;
    },
    random: () => 0.5,
  };
  encodeArray(format("posit32_es2") as NumberFormat, new Float32Array(16), undefined, options);
  const once = reads;
  encodeArray(format("posit32_es2") as NumberFormat, new Float32Array(1016), undefined, options);
  expect(reads - 2 * once).toBeLessThan(1.5 * 1000);
});

test("tensors refuse shapes and strides that are none", () => {
  expect(() => tensor(new Float32Array(4), 4 as never)).toThrow(TypeError);
  const t = tensor(new Float32Array(16), [4, 4]);
  for (const stride of [
    [1.5, 1],
    ["1", 1],
    [NaN, 1],
  ])
    expect(() => quantize({ ...t, shape: [2, 2], stride: stride as number[] }, format("int4_b4") as never)).toThrow(RangeError);
  expect(() => packCodes("12" as never, 4)).toThrow(TypeError);
  expect(() => unpackCodes([1, 2] as never, 4, 2)).toThrow(TypeError);
});

type Kind = readonly [name: string, make: (bytes: Uint8Array) => Uint8Array];
const into = (buffer: ArrayBufferLike, bytes: Uint8Array, at = 0) => {
  const view = new Uint8Array(buffer, at, bytes.length);
  view.set(bytes);
  return view;
};
const Resizable = ArrayBuffer as unknown as new (n: number, options: { maxByteLength: number }) => ArrayBuffer;
const kinds: readonly Kind[] = [
  ["plain", (b) => new Uint8Array(b)],
  ["Buffer", (b) => Buffer.from(b)],
  ["subarray", (b) => into(new ArrayBuffer(b.length + 16), b, 8)],
  ["shared", (b) => into(new SharedArrayBuffer(b.length), b)],
  ["resizable", (b) => into(new Resizable(b.length, { maxByteLength: b.length * 2 }), b)],
];

test.each(kinds)("bytes in a %s array", (_, make) => {
  const x = Float32Array.from({ length: 512 }, (_, i) => Math.sin(i));
  const raw = make(new Uint8Array(x.buffer));
  // A Buffer comes from a pool at any byte; a Float32Array needs a multiple of four.
  const values = raw.byteOffset % 4 === 0 ? new Float32Array(raw.buffer, raw.byteOffset, x.length) : x;
  for (const f of scalars) {
    const codes = encodeArray(f, values);
    expect(codes).toEqual(encodeArray(f, x));
    const packed = packCodes(codes, f.bits);
    expect(unpackCodes(make(packed), f.bits, codes.length)).toEqual(codes);
    const own = make(new Uint8Array(codes.buffer));
    if (f.bits <= 8) expect(decodeArray(f, own)).toEqual(decodeArray(f, codes));
  }
  for (const name of ["int4_b32", "mxfp4", "ggml_q4_0"]) {
    const f = format(name);
    const w = quantize(tensor(values, [2, 256]), f as never);
    expect(w.codes).toEqual(quantize(tensor(x, [2, 256]), f as never).codes);
    const back = fromBytes(make(toBytes(w)));
    expect(back.codes.constructor).toBe(Uint8Array);
    expect(dequantize(back)).toEqual(dequantize(w));
    const foreign = { ...w, codes: make(w.codes), scales: w.scales === null ? null : make(w.scales) };
    expect(dequantize(foreign)).toEqual(dequantize(w));
    expect(toBytes(foreign)).toEqual(toBytes(w));
  }
  const q = format("ggml_q8_0") as OpaqueFormat;
  expect(q.encodeBytes(values)).toEqual(q.encodeBytes(x));
  expect(q.decodeBytes(make(q.encodeBytes(x)))).toEqual(q.decodeBytes(q.encodeBytes(x)));
});
