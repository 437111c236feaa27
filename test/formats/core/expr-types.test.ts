// Expressions are typed as their printers read them; formats without subnormals, which no format of the package is but
// scales.
import { expect, test } from "vitest";
import { compileExpr, decodeExpr, encodeExpr, exprNodes } from "../../../formats/core/expr.ts";
import { allFormats, defineFloat, type NumberFormat } from "../../../formats/index.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");
const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

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

/** Types of the results of operators, where they are not those of an argument. */
const RESULTS: Readonly<Record<string, string>> = { toFloat: "f32", fmul: "f32", fadd: "f32", eq: "bool", ltU: "bool", ltS: "bool" };
const FLOATS = new Set(["fmul", "fadd", "bits"]);

test("every node has the type of its operator, and takes what it needs", () => {
  for (const f of scalars)
    for (const expr of [decodeExpr(f), encodeExpr(f), encodeExpr(f, { overflow: "saturate", nan: "max" })]) {
      for (const e of expr === null ? [] : exprNodes(expr)) {
        if (e.op === "const") continue;
        expect([f.name, e.op, e.type]).toEqual([f.name, e.op, e.op === "select" ? e.args[1].type : (RESULTS[e.op] ?? "u32")]);
        const takes = e.op === "select" ? ["bool", e.type, e.type] : e.args.map(() => (FLOATS.has(e.op) ? "f32" : "u32"));
        expect([f.name, e.op, ...e.args.map(({ type }) => type)]).toEqual([f.name, e.op, ...takes]);
      }
    }
});

test("formats without subnormals", () => {
  for (const f of [
    defineFloat({ name: "normals_e4m3", exponentBits: 4, mantissaBits: 3, specials: "finite", subnormals: false, signed: false }),
    defineFloat({ name: "normals_e3m2", exponentBits: 3, mantissaBits: 2, bias: 4, specials: "fn", subnormals: false, signed: false }),
  ]) {
    const decode = compileExpr(decodeExpr(f)!);
    for (let code = 0; code < 2 ** f.bits; code++) {
      u32[0] = decode(code);
      expect(f32[0]).toBe(Math.fround(f.table![code]));
    }
    const encode = compileExpr(encodeExpr(f, { overflow: "saturate", nan: "max" })!);
    for (const w of words(f)) {
      u32[0] = w;
      const x = f32[0];
      expect([x, encode(w)]).toEqual([x, f.encode(x, { overflow: "saturate", nan: "max" })]);
    }
  }
});
