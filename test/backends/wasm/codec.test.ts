// Bulk conversion on the WebAssembly backend against the library's scalar codecs and loops, bit for bit: every code of
// every format of at most 16 bits, every boundary with its neighbours, specials and random words under several
// policies, every width of packing, blocks of every awkward length.
import { describe, expect, test } from "vitest";
import { compileExpr, encodeExpr, input, type Expr } from "../../../formats/core/expr.ts";
import {
  allFormats,
  decodeArray,
  defineCodebook,
  encodeArray,
  format,
  type EncodeOptions,
  type NumberFormat,
} from "../../../formats/index.ts";
import { packCodes, unpackCodes } from "../../../formats/core/pack.ts";
import { ModuleBuilder } from "../../../kernels/wasm/engine/asm.ts";
import { engine } from "../../../kernels/wasm/engine/engine.ts";
import { wasmFeatures } from "../../../kernels/wasm/engine/features.ts";
import { exprPrinter, planExpr } from "../../../kernels/wasm/convert/expr.ts";
import { wasm } from "../../../src/index.ts";
import { awkwardBlock, random } from "../../helpers/random.ts";

const backend = await wasm();
const { codec } = backend;
/** Beside what this engine has, baseline kernels. */
const plain = wasmFeatures().relaxed ? [(await wasm({ features: "simd" })).codec] : [];
const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");
const narrow = scalars.filter((f) => f.bits <= 16);
const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

function same(got: ArrayLike<number>, want: ArrayLike<number>, what: string): void {
  expect(got.length, what).toBe(want.length);
  for (let i = 0; i < want.length; i++)
    if (!Object.is(got[i], want[i])) throw new Error(`${what}, ${i}: expected ${want[i]}, got ${got[i]}`);
}

describe("decode: every code", () => {
  test.each(narrow.map((f) => [f.name, f] as const))("%s", (_, f) => {
    const count = 2 ** f.bits;
    const codes = f.bits <= 8 ? Uint8Array.from({ length: count }, (_, c) => c) : Uint16Array.from({ length: count }, (_, c) => c);
    const want = Float32Array.from(codes, (c) => f.decode(c));
    for (const each of [codec, ...plain]) same(each.decode(f, codes), want, f.name);
    // odd lengths, and more than one piece
    same(backend.decode(f, codes.subarray(1, Math.min(count, 30))), want.subarray(1, Math.min(count, 30)), f.name);
    const long = codes.constructor === Uint8Array ? new Uint8Array(16384 * 2 + 7) : new Uint16Array(16384 * 2 + 7);
    long.forEach((_, i) => (long[i] = (i * 7919) % count));
    same(
      codec.decode(f, long),
      Float32Array.from(long, (c) => want[c]),
      f.name,
    );
    if (f.bits % 8 !== 0) {
      long[16384 * 2] = count;
      expect(() => codec.decode(f, long)).toThrow(RangeError);
    }
  });
});

/**
 * Words of float32: values and boundaries with their neighbours, specials, every exponent, random ones; longer than one
 * piece.
 */
function words(f: NumberFormat): Float32Array {
  const list: number[] = [
    0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0x7fffffff, 0xffffffff, 1, 0x80000001, 0x7f7fffff,
    0xff7fffff,
  ];
  const { values, boundaries } = f.order!;
  const stride = Math.max(1, Math.floor(values.length / 4000));
  for (let i = 0; i < values.length; i += stride)
    for (const x of [values[i], boundaries[i] ?? 2 * values[i]]) {
      f32[0] = x;
      for (const step of [-1, 0, 1]) list.push((u32[0] + step) >>> 0);
    }
  for (let e = 0; e < 512; e++) for (const m of [0, 1, 0x3fffff, 0x400000, 0x400001, 0x7fffff]) list.push(((e << 23) | m) >>> 0);
  let seed = 2024;
  while (list.length < 17_001) list.push((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0));
  return new Float32Array(Uint32Array.from(list).buffer);
}

const policies = (f: NumberFormat): EncodeOptions[] => {
  const nan = f.limits.hasNaN ? ("nan" as const) : ("max" as const);
  return [
    { nan },
    { overflow: "saturate", nan },
    { overflow: "saturate", rounding: "halfExpand", nan: "max" },
    { overflow: "saturate", rounding: "trunc", nan: "max" },
    f.limits.hasNaN ? ({ overflow: "nan", infinity: "keep" } as const) : { infinity: "keep", nan },
  ];
};

describe("encode: boundaries, specials, random words", () => {
  test.each(narrow.map((f) => [f.name, f] as const))("%s", (_, f) => {
    const x = words(f);
    for (const options of policies(f)) {
      const want = encodeArray(f, x, undefined, options);
      for (const each of [codec, ...plain]) same(each.encode(f, x, options), want, `${f.name} ${JSON.stringify(options)}`);
      // the loop of encodeArray is itself checked against the scalar encoder here, on a sample
      for (let i = 0; i < x.length; i += 97) expect(want[i]).toBe(f.encode(x[i], options));
    }
    same(backend.encode(f, x.subarray(0, 13), policies(f)[1]), encodeArray(f, x.subarray(0, 13), undefined, policies(f)[1]), f.name);
  });
});

test("values that the policies refuse are named as by encodeArray", () => {
  const e2m1 = format("float4_e2m1fn") as NumberFormat;
  const x = new Float32Array(20_000);
  x[17_777] = NaN;
  expect(() => codec.encode(e2m1, x)).toThrow(/values\[17777\].*NaN/);
  x[17_777] = 1e9;
  expect(() => codec.encode(e2m1, x, { overflow: "error" })).toThrow(/values\[17777\]/);
  expect(() => codec.encode(e2m1, x, {}, new Uint8Array(3))).toThrow(/room for 20000/);
  expect(() => codec.encode(e2m1, [1] as unknown as Float32Array)).toThrow(TypeError);
});

test("formats and policies without a kernel run the library's loops", () => {
  const wide = format("posit32") as NumberFormat;
  const x = Float32Array.of(1, -2.5, 3e7);
  same(codec.encode(wide, x), encodeArray(wide, x), "posit32");
  same(codec.decode(wide, encodeArray(wide, x)), x, "posit32");
  const int8 = format("int8") as NumberFormat;
  const draw = () => 0.25;
  const options = { rounding: "stochastic", random: draw } as const;
  same(
    codec.encode(int8, Float32Array.of(1.5, 2.1), options),
    encodeArray(int8, Float32Array.of(1.5, 2.1), undefined, options),
    "stochastic",
  );
  same(codec.decode(int8, [1, 255]), Float32Array.of(1, -1), "plain array");
});

test("a user's own codebook: unsorted values of 3 and of 6 bits", () => {
  const rng = random(5);
  for (const bits of [3, 6]) {
    const own = defineCodebook({ name: `own${bits}`, values: Array.from({ length: 2 ** bits }, () => rng.normal()) });
    const codes = Uint8Array.from({ length: 100 }, () => rng.integer(2 ** bits));
    same(codec.decode(own, codes), decodeArray(own, codes), own.name);
    const x = Float32Array.from({ length: 5000 }, () => 2 * rng.normal());
    same(codec.encode(own, x), encodeArray(own, x), own.name);
  }
});

test("the printer equals the evaluator for every operation", () => {
  const node = (op: Expr["op"], type: Expr["type"], args: Expr[], extra: Partial<Expr> = {}): Expr => ({ op, type, args, ...extra });
  const word = (value: number) => node("const", "u32", [], { value: value >>> 0 });
  const real = (value: number) => node("const", "f32", [], { value });
  const low = node("and", "u32", [input, word(15)]);
  const small = node("and", "u32", [input, word(0xffff)]);
  const thresholds = Uint32Array.from({ length: 700 }, (_, i) => -2_000_000_000 + i * i * 8000);
  const exprs: Expr[] = [
    node("or", "u32", [input, word(0x0f0f0f0f)]),
    node("sub", "u32", [node("add", "u32", [input, word(0x7fffffff)]), node("shl", "u32", [input, word(3)])]),
    node("xor", "u32", [node("shrS", "u32", [input, word(31)]), node("shrU", "u32", [input, word(7)])]),
    node("minU", "u32", [input, word(0x80000001)]),
    node("roundShift", "u32", [small, low]),
    node("roundShift", "u32", [node("and", "u32", [input, word(0x7fffff)]), node("add", "u32", [low, word(5)])]),
    node("lookup", "u32", [low], { table: Uint32Array.from({ length: 16 }, (_, i) => Math.imul(i + 3, 0x9e3779b1)) }),
    node("lookup", "u32", [small], { table: Uint32Array.from({ length: 65536 }, (_, i) => Math.imul(i, 0x9e3779b1)) }),
    node("rank", "u32", [input], { table: Uint32Array.of(0x80000001, 0xffffffff, 0, 5, 0x7fffffff) }),
    node("rank", "u32", [node("xor", "u32", [input, word(1)])], { table: thresholds }),
    node("bits", "u32", [node("fadd", "f32", [node("fmul", "f32", [node("toFloat", "f32", [small]), real(2 ** -140)]), real(-0)])]),
    ...(["eq", "ltU", "ltS"] as const).map((op) => node("select", "u32", [node(op, "bool", [input, word(0x80000000)]), input, low])),
    node("select", "u32", [node("ltU", "bool", [low, small]), word(1), word(2)]),
  ];
  const list = [0, 1, 2, 5, 15, 16, 0x7fffffff, 0x80000000, 0x80000001, 0xffffffff, 0x7ffffffe];
  const rng = random(11);
  while (list.length < 512) list.push(Math.floor(rng.next() * 2 ** 32) >>> 0);
  const memory = new engine.Memory({ initial: 8, maximum: 65536 });
  for (const expr of exprs) {
    const plan = planExpr(expr, false);
    const m = new ModuleBuilder();
    m.func("run", ["i32", "i32", "i32"], [], (f) => {
      const v = f.local("v128");
      f.set(v, f.load("v128.load", f.param(0)));
      f.store("v128.store", f.param(1), 0, exprPrinter(f, plan, f.param(2), wasmFeatures().relaxed)(v));
    });
    const { run } = new engine.Instance(new engine.Module(m.bytes()), { m: { m: memory } }).exports;
    const view = new Uint32Array(memory.buffer);
    view.set(plan.tables, 16);
    const evaluate = compileExpr(expr);
    for (let i = 0; i < list.length; i += 4) {
      view.set(list.slice(i, i + 4), 0);
      run(0, 16, 64);
      for (let j = 0; j < 4; j++) if (view[4 + j] !== evaluate(list[i + j])) throw new Error(`${expr.op} ${list[i + j]}: ${view[4 + j]}`);
    }
  }
  expect(planExpr(encodeExpr(format("posit8_es2") as NumberFormat, {})!, false).tables.length).toBeGreaterThan(200);
});

describe("packing", () => {
  test.each(Array.from({ length: 16 }, (_, i) => i + 1))("%i bits", (bits) => {
    const rng = random(bits);
    for (const count of [0, 1, 2, 3, 7, 8, 15, 16, 17, 33, 255, 16384, 16385, 40_001]) {
      const codes = bits <= 8 ? new Uint8Array(count) : new Uint16Array(count);
      for (let i = 0; i < count; i++) codes[i] = i % 5 === 0 ? 2 ** bits - 1 : rng.integer(2 ** bits);
      const bytes = codec.pack(codes, bits);
      same(bytes, packCodes(codes, bits), "bytes");
      same(codec.unpack(bytes, bits, count), codes, "codes");
      // bytes beyond the codes do not matter
      const more = new Uint8Array(bytes.length + 3).fill(255);
      more.set(bytes);
      same(codec.unpack(more, bits, count), unpackCodes(more, bits, count), "codes of more bytes");
    }
    if (bits % 8 !== 0) {
      const bad = bits <= 8 ? new Uint8Array(100) : new Uint16Array(100);
      bad[77] = 2 ** bits;
      expect(() => codec.pack(bad, bits)).toThrow(/codes\[77\]/);
    }
    expect(() => codec.unpack(new Uint8Array(1), bits, 100)).toThrow(/unpackCodes: expected at least/);
  });
});

describe("statistics of blocks", () => {
  test.each([1, 2, 3, 4, 5, 7, 16, 31, 32, 100, 128, 20_000])("blocks of %i", (size) => {
    const rng = random(size);
    for (const count of [size, 3 * size, 3 * size + Math.ceil(size / 2), 40_000]) {
      const x = new Float32Array(count);
      for (let at = 0, kind = 0; at < count; at += 48, kind++) x.set(awkwardBlock(rng, 48, kind).subarray(0, count - at), at);
      x[count >> 1] = -0;
      if (count > 100) {
        x[10] = NaN;
        new Uint32Array(x.buffer)[60] = 0xffc00000;
        x[90] = -Infinity;
      }
      const blocks = Math.ceil(count / size);
      const [least, largest] = [new Float32Array(blocks), new Float32Array(blocks)];
      codec.range(x, size, least, largest);
      const want = Array.from({ length: blocks }, (_, b) => x.subarray(b * size, (b + 1) * size));
      same(codec.absmax(x, size), want.map((block) => block.reduce((m, v) => Math.max(m, Math.abs(v)), 0)), "absmax");
      same(least, want.map((block) => block.reduce((m, v) => Math.min(m, v), Infinity)), "least");
      same(largest, want.map((block) => block.reduce((m, v) => Math.max(m, v), -Infinity)), "largest");
    }
  }); // prettier-ignore

  test("refuses what makes no sense", () => {
    expect(() => codec.absmax(new Float32Array(4), 0)).toThrow(RangeError);
    expect(() => codec.range(new Float32Array(4), 2, new Float32Array(1), new Float32Array(2))).toThrow(/room for 2 blocks/);
    expect(codec.absmax(new Float32Array(0), 4)).toEqual(new Float32Array(0));
  });
});

test("a backend with threads gives the same, and a disposed one says so", async () => {
  const two = await wasm({ threads: 2 });
  const e4m3 = format("float8_e4m3fn") as NumberFormat;
  const x = words(e4m3).map((v) => (Number.isNaN(v) ? 0 : v));
  same(two.codec.encode(e4m3, x), encodeArray(e4m3, x), "threads");
  two.dispose();
  expect(() => two.codec.encode(e4m3, x)).toThrow(/disposed/);
  expect(() => two.codec.absmax(x, 4)).toThrow(/disposed/);
});
