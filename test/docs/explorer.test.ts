// The number explorer of the site shows what the library computes, and its links bring everything back.
import fc from "fast-check";
import { blockView } from "../../docs/.vitepress/explorer/block.ts";
import { describe, expect, test } from "vitest";
import { flip, fromHash, scaleOf, shortest, START, table, toHash, view, type ExplorerState } from "../../docs/.vitepress/explorer/state.ts";
import { allFormats, defineFloat, format, type NumberFormat } from "../../formats/index.ts";

const scalars = allFormats.filter((f): f is NumberFormat => f.kind !== "block" && f.kind !== "opaque");
const seen = (state: Partial<ExplorerState>) => view({ ...START, ...state }, blockView);

describe("links", () => {
  test("any text comes back", () => {
    const text = fc.string({ unit: "grapheme" });
    fc.assert(
      fc.property(
        fc.record(Object.fromEntries(Object.keys(START).map((field) => [field, text])) as { [K in keyof ExplorerState]: typeof text }),
        (state) => {
          expect(fromHash(`#${toHash(state)}`)).toEqual(state);
        },
      ),
    );
  });
  test("the start has an empty link; foreign keys are ignored", () => {
    expect(toHash(START)).toBe("");
    expect(fromHash("#q=1&f=nf4")).toEqual({ ...START, format: "nf4" });
  });
});

test("200 values in random formats: the code and value of the library", () => {
  fc.assert(
    fc.property(fc.constantFrom(...scalars), fc.double({ noNaN: true, noDefaultInfinity: true, min: -1e6, max: 1e6 }), (f, x) => {
      const v = seen({ format: f.name, value: String(x) });
      let code: number;
      try {
        code = f.encode(x);
      } catch (error) {
        expect(v).toEqual({ kind: "error", message: (error as Error).message });
        return;
      }
      expect(v).toMatchObject({ kind: "scalar", code, format: { name: f.name } });
      const digits = v.kind === "scalar" ? v.fields.map(({ bits }) => bits).join("") : "";
      expect(digits).toBe(code.toString(2).padStart(f.bits, "0"));
    }),
    { numRuns: 200 },
  );
});

test("the shortest decimal of a float32", () => {
  for (const x of [0.1, -1e-8, 3.4028235e38, 16777216, 0.33333334]) expect(Number(shortest(Math.fround(x)))).toBe(x);
});

test("own formats, turned bits, tables, the line", () => {
  const definition = { kind: "float", name: "mine", exponentBits: 3, mantissaBits: 2, bias: 5, specials: "finite" };
  const mine = defineFloat({ name: "mine", exponentBits: 3, mantissaBits: 2, bias: 5, specials: "finite" });
  const v = seen({ format: JSON.stringify(definition), value: "0.7" });
  expect(v).toMatchObject({ kind: "scalar", code: mine.encode(0.7) });
  expect(flip(mine, 0, 5)).toBe("-0");
  expect(Number(flip(mine, 0b000101, 1))).toBe(mine.decode(0b000111));
  expect(table(mine, "csv").split("\n")).toHaveLength(66);
  expect(JSON.parse(table(mine, "json"))).toMatchObject({ format: "mine", bits: 6 });
  expect(table(format("float8_e4m3fn"), "c")).toContain("  NAN,");
  expect(table(format("float8_e5m2"), "readmemh").split("\n")[1 + 0x3c]).toBe("3ff0000000000000");
  const { values } = mine.order!;
  const places = [...values].map(scaleOf(values));
  expect([places[0], places[places.length - 1]]).toEqual([0, 1]);
  expect(places).toEqual([...places].sort((a, b) => a - b));
});

test("a block waits for what computes it", () => {
  expect(view({ ...START, format: "mxfp4" }, null)).toMatchObject({ kind: "waiting" });
});

test("blocks; and errors in the library's words", () => {
  expect(seen({ format: "mxfp4", block: "1, -2 3" })).toMatchObject({ kind: "block", rows: [[1, 1, 0], [-2, -2, 0], [3, 3, 0]] }); // prettier-ignore
  expect(seen({ format: "ggml_q4_0", block: "1 2" })).toMatchObject({ kind: "block", packed: { k: 32 } });
  for (const state of [
    { format: "mxfp5" },
    { format: "{" },
    { format: '{"kind":"x"}' },
    { value: "x" },
    { overflow: "none" },
    { format: "mxfp4", block: "1 x" },
  ])
    expect(seen(state)).toMatchObject({ kind: "error", message: expect.stringMatching(/\S/) as string });
});
