// Expressions equal the table and the scalar encoder: every code of every format of at most 16 bits, every boundary
// with its neighbours, specials and random words, under several policies.
import { describe, expect, test } from "vitest";
import { compileExpr, decodeExpr, encodeExpr, exprNodes, REFUSED } from "../../../formats/core/expr.ts";
import { allFormats, LowbitError, type EncodeOptions, type NumberFormat } from "../../../formats/index.ts";
import { words } from "../../helpers/float-words.ts";

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
