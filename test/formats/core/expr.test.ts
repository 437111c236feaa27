// Expressions equal the table and the scalar encoder: every code of every format of at most 16 bits, every boundary
// with its neighbours, specials and random words, under several policies.
import { describe, expect, test } from "vitest";
import { compileExpr, decodeExpr, encodeExpr, exprNodes, REFUSED } from "../../../formats/core/expr.ts";
import { allFormats, LowbitError, type EncodeOptions, type NumberFormat } from "../../../formats/index.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");
const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

describe("decode", () => {
  test.each(scalars.filter((f) => f.bits <= 16).map((f) => [f.name, f] as const))("%s", (_, f) => {
    const decode = compileExpr(decodeExpr(f)!);
    for (let code = 0; code < 2 ** f.bits; code++) {
      u32[0] = decode(code);
      const want = Math.fround(f.table![code]);
      if (!Object.is(f32[0], want)) throw new Error(`${f.name} code ${code}: expected ${want}, got ${f32[0]}`);
    }
  });
});

function words(f: NumberFormat): Uint32Array {
  const list: number[] = [0, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 1, 0x80000001, 0x7f7fffff, 0xff7fffff];
  const { values, boundaries } = f.order!;
  const stride = Math.max(1, Math.floor(values.length / 2000));
  for (let i = 0; i < values.length; i += stride)
    for (const x of [values[i], boundaries[i] ?? 2 * values[i]]) {
      f32[0] = x;
      for (const step of [-2, -1, 0, 1, 2]) list.push((u32[0] + step) >>> 0);
    }
  for (let e = 0; e < 512; e++) for (const m of [0, 1, 0x3fffff, 0x400000, 0x400001, 0x7fffff]) list.push(((e << 23) | m) >>> 0);
  let seed = 12345;
  for (let i = 0; i < 3000; i++) list.push((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0));
  return Uint32Array.from(list);
}

const policies = (f: NumberFormat): EncodeOptions[] => [
  {},
  { overflow: "saturate", nan: f.limits.hasNaN ? "nan" : "max" },
  { overflow: "saturate", rounding: "halfExpand", nan: "max" },
  { overflow: "error", rounding: "floor", nan: "error" },
];

describe("encode", () => {
  test.each(scalars.filter((f) => f.bits <= 16).map((f) => [f.name, f] as const))("%s", (_, f) => {
    for (const options of policies(f)) {
      const encode = compileExpr(encodeExpr(f, options)!);
      for (const w of words(f)) {
        u32[0] = w;
        const x = f32[0];
        let want: number;
        try {
          want = f.encode(x, options);
        } catch (error) {
          if (!(error instanceof LowbitError)) throw error;
          want = REFUSED;
        }
        const got = encode(w);
        if (got !== want) throw new Error(`${f.name} ${JSON.stringify(options)} ${x} (0x${w.toString(16)}): expected ${want}, got ${got}`);
      }
    }
  });
});

test("formats that are no function of the value, or too wide, have no expression", () => {
  const wide = scalars.find((f) => f.bits > 16)!;
  expect(decodeExpr(wide)).toBeNull();
  expect(encodeExpr(wide)).toBeNull();
  const narrow = scalars.find((f) => f.bits === 8)!;
  expect(encodeExpr(narrow, { rounding: "stochastic", random: Math.random })).toBeNull();
});

test("nodes come after their arguments, each once", () => {
  for (const f of scalars) {
    const expr = decodeExpr(f);
    if (expr === null) continue;
    const nodes = exprNodes(expr);
    expect(new Set(nodes).size).toBe(nodes.length);
    nodes.forEach((e, i) => e.args.forEach((arg) => expect(nodes.indexOf(arg)).toBeLessThan(i)));
  }
});
