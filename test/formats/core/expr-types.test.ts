// Expressions are typed as their printers read them; formats without subnormals, which no format of the package is but
// scales.
import { expect, test } from "vitest";
import { compileExpr, decodeExpr, encodeExpr, exprNodes } from "../../../formats/core/expr.ts";
import { allFormats, defineFloat, type NumberFormat } from "../../../formats/index.ts";
import { words } from "../../helpers/float-words.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");
const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

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
