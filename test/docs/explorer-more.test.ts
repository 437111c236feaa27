// What the explorer shows beside one value: policies, formats side by side, errors by magnitude, blocks, own tensors.
import { describe, expect, it } from "vitest";
import { drift, profileOf, sampleRows } from "../../docs/.vitepress/explorer/analyse.ts";
import { blockCodes, blockView, drawBlock } from "../../docs/.vitepress/explorer/block.ts";
import { FORM, formFields, formText, type FormKind } from "../../docs/.vitepress/explorer/form.ts";
import { errorCurve, policies, sideBySide } from "../../docs/.vitepress/explorer/more.ts";
import { formatOf, START, view } from "../../docs/.vitepress/explorer/state.ts";
import { bfloat16, float4_e2m1fn, float8_e4m3fn, format, int8, type NumberFormat } from "../../formats/index.ts";
import { dequantize, quantize, tensor } from "../../src/index.ts";
import { histogramOf } from "../../src/onnx/report/histogram.ts";
import { histogramHtml } from "../../src/onnx/report/html.ts";
import { seededRandom } from "../../src/quantize/index.ts";

describe("policies", () => {
  it("are the format's own codes for every mode, and say why", () => {
    const [roundings, overflows, infinities, nans] = policies(float4_e2m1fn, 2.5).map(({ rows }) => rows);
    const of = (mode: string) => roundings.find((row) => row.policy === mode)!;
    expect([of("halfEven").value, of("halfExpand").value, of("ceil").value, of("floor").value, of("trunc").value]).toEqual(["2", "3", "3", "2", "2"]); // prettier-ignore
    expect(of("halfEven").why).toMatch(/boundary between two values/);
    expect(of("ceil").why).toMatch(/rounded by "ceil"/);
    expect(of("stochastic").why).toMatch(/^3 \(0x5\) in 50 % of draws, 2 \(0x4\) in 50 %/);
    expect(policies(float4_e2m1fn, 2.5)[1].title).toBe("overflow, of 12");
    for (const row of [...roundings, ...overflows, ...infinities, ...nans]) expect(row.why).toMatch(/\S/);
    expect(overflows.find((row) => row.policy === "saturate")!.value).toBe("6");
    expect(overflows.find((row) => row.policy === "error")!.code).toBe("-");
    expect(nans.map((row) => row.value)).toEqual(["-", "-", "0", "-0", "6"]);
  });
  it("of stochastic rounding are the share of draws that go up", () => {
    const f = format("posit8_es2") as NumberFormat;
    const [{ rows }] = policies(f, 0.3);
    const share = Number(/in ([\d.]+) % of draws/.exec(rows.find((row) => row.policy === "stochastic")!.why)![1]);
    const random = seededRandom(9);
    const up = Array.from({ length: 20000 }, () => f.decode(f.encode(0.3, { rounding: "stochastic", random }))).filter((v) => v > 0.3);
    expect(Math.abs((100 * up.length) / 20000 - share)).toBeLessThan(1.5);
    expect(policies(f, 0.25)[0].rows.at(-1)).toMatchObject({ value: "0.25" });
  });
  it("say what became of infinity, and what no policy changes", () => {
    const why = (name: string, group: number, policy: string) => policies(format(name) as NumberFormat, 500)[group].rows.find((row) => row.policy === policy)!.why; // prettier-ignore
    expect(why("posit8_es2", 2, "keep")).toBe('an infinite input: policy "keep"');
    for (const name of ["float6_e3m2fn", "int8", "int24", "nf4"])
      expect(why(name, 2, "keep")).toBe(
        `${name}: expected a number, got Infinity. Clean the data, or choose a policy ({ nan: "zero" }, { infinity: "overflow" }).`,
      );
    expect(why("posit8_es2", 1, "nan")).toMatch(/the last value \(rounding "halfEven", overflow "nan"\)/);
    expect(why("float8_e4m3fn", 0, "trunc")).toMatch(/the last value \(rounding "trunc"/);
    expect(why("float8_e4m3fn", 0, "halfEven")).toMatch(/overflow "nan"$/);
  });
});

it("side by side: names in any form, and errors in the library's words", () => {
  const rows = sideBySide("float8_e4m3fn, int8  mxfp4 nonsense", 0.3, {});
  expect(rows.map((row) => row.format)).toEqual(["float8_e4m3fn", "int8", "mxfp4", "nonsense"]);
  expect(rows[0]).toMatchObject({ value: "0.3125", code: "0x2a", error: "4.2 %", spacing: "0.0313" });
  expect(rows[2].value).toMatch(/depends on its block/);
  expect(rows[3].value).toMatch(/expected/);
  const own = formatOf('{"kind":"float","name":"mine","exponentBits":3,"mantissaBits":2,"bias":5,"specials":"finite"}') as NumberFormat;
  expect(sideBySide("mine float32", 0.3, {}, own).map(({ code, range }) => `${code} ${range}`)).toEqual([
    "0x0d -7 .. 7",
    "0x3e99999a -3.40282e+38 .. 3.40282e+38",
  ]);
});

it("the error curve is the largest relative error, and ends where the range does", () => {
  const { magnitudes, errors, names } = errorCurve([bfloat16, float8_e4m3fn, int8]);
  expect(names).toEqual(["bfloat16", "float8_e4m3fn", "int8"]);
  const at = (i: number, m: number) => errors[i][magnitudes.findIndex((x) => x > m)];
  expect(at(0, 0)).toBeLessThan(100 * 2 ** -8);
  expect(at(0, 0)).toBeGreaterThan(100 * 2 ** -10);
  expect(at(1, 0)).toBeGreaterThan(at(0, 0)!);
  expect(at(2, 8)).toBeNull();
  expect(at(1, -12)).toBe(100); // below the least value, rounds to zero
});

it("codes and scales of a block give its values back", () => {
  const values = drawBlock(32, "outlier", 3).split(" ").map(Number);
  expect(drawBlock(32, "outlier", 3)).toBe(drawBlock(32, "outlier", 3));
  for (const name of ["mxfp4", "int4_b16", "uint4_b16_zp"]) {
    const packed = quantize(tensor(Float32Array.from(values), [1, 32]), format(name));
    const { codes, scales, offsets, span } = blockCodes(packed)!;
    const { element } = packed.format as { element: NumberFormat } & typeof packed.format;
    const stored = dequantize(packed);
    codes.forEach((code, i) => {
      const block = Math.floor(i / span);
      expect(Math.fround((element.decode(parseInt(code, 16)) - (offsets[block] ?? 0)) * scales[block])).toBeCloseTo(stored[i], 5);
    });
  }
  expect(blockCodes(quantize(tensor(Float32Array.from(values), [1, 32]), format("ggml_q4_0")))).toBeNull();
});

it("every form begins with a format that the page takes", () => {
  for (const kind of Object.keys(FORM) as FormKind[]) {
    const text = formText(kind, Object.fromEntries(FORM[kind].map(([name, , start]) => [name, start])));
    expect(["scalar", "block"], text).toContain(view({ ...START, format: text }, blockView).kind);
  }
  for (const name of ["float8_e4m3fn", "posit8_es2", "int5", "nf4", "uint3"]) {
    const { kind, fields } = formFields((formatOf(name) as NumberFormat).definition)!;
    const same = formatOf(formText(kind, fields)) as NumberFormat;
    expect([...same.table!], name).toEqual([...(formatOf(name) as NumberFormat).table!]);
  }
  expect(formFields(formatOf("mxfp4").definition)).toBeUndefined();
  expect(formatOf(formText("float", { exponentBits: "3", mantissaBits: "2", bias: "5", specials: "finite" })).name).toBe("mine");
});

describe("own tensors", () => {
  const random = seededRandom(5);
  const values = Float32Array.from({ length: 64 * 96 }, () => random() - 0.5);

  it("have moments of all values, and say what is not finite", () => {
    const odd = Float32Array.of(1, -3, 0, NaN, Infinity, 2);
    expect(profileOf(odd)).toMatchObject({ values: 6, min: -3, max: 2, zeros: 1, notFinite: 2, rms: Math.sqrt(14 / 4) });
    expect(profileOf(values).kurtosis).toBeCloseTo(1.8, 1);
  });
  it("are sampled by evenly spaced rows", () => {
    expect(sampleRows(10, 4, 8)).toEqual([0, 5]);
    expect(sampleRows(3, 1000, 8)).toEqual([0]);
    expect(sampleRows(0, 4, 8)).toEqual([]);
  });
  it("drift less in wider accumulators, and more with length", () => {
    const rows = drift(values, 64, 96);
    expect(rows.map((row) => row.length)).toEqual([16, 64, 256, 1024, 4096]);
    for (const { errors } of rows) {
      expect(errors.float32).toBeLessThan(errors.float16);
      expect(errors.float16).toBeLessThan(errors.bfloat16);
    }
    expect(rows[4].errors.bfloat16).toBeGreaterThan(rows[0].errors.bfloat16);
  });
  it("have a histogram over the code points, as the report draws it", () => {
    const found = histogramOf("w<1>", values, { rows: 64, k: 96 }, format("int4_b32"))!;
    expect(found.counts.reduce((a, b) => a + b, 0)).toBe(values.length);
    expect(found.points).toHaveLength(16);
    expect(histogramHtml(found)).toContain("w&lt;1&gt;");
    expect(histogramOf("w", values, { rows: 64, k: 96 }, float8_e4m3fn)).toBeNull();
  });
});
