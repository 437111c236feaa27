// No infinity and no NaN from finite weights, at either end of float32, in every format and under every rule; or a
// clear refusal of the scale.
import { describe, expect, it } from "vitest";
import { allFormats, format, type Format } from "../../formats/index.ts";
import { dequantize, quantize, tensor, wasm, type QuantizeOptions } from "../../src/index.ts";

const MAX = (2 - 2 ** -23) * 2 ** 127;
const MIN = 2 ** -149;
const K = 256;
const weights: Record<string, (i: number) => number> = {
  "both ends": (i) => (i % 2 ? MAX : -MAX),
  "the largest": () => MAX,
  "the least": () => -MAX,
  "one largest": (i) => (i === 5 ? MAX : 0),
  "one least among ones": (i) => (i === 5 ? -MAX : 1),
  "near the ends": (i) => (i % 2 ? 1 : -1) * MAX * (1 - (i % 100) / 400),
  "one denormal": (i) => (i === 7 ? MIN : 0),
  "one negative denormal": (i) => (i === 7 ? -MIN : 0),
  denormals: (i) => MIN * (i % 5),
  "denormals beside the largest": (i) => (i % 16 === 0 ? MAX : MIN),
  "one least normal": (i) => (i === 3 ? 2 ** -126 : 0),
};
const parametric = ["int4_b32", "int8_row", "uint4_b32_zp", "uint8_row_zp", "int4_b32_bfloat16", "uint4_b32_bfloat16_zp", "float8_e4m3fn_row", "posit8_es1_b32", "int2_b32", "bfloat16_b32", "int1_b32", "uint1_b32_zp", "nf4_b16"]; // prettier-ignore
const formats: Format[] = [...allFormats, ...parametric.map(format)];
const rules: QuantizeOptions[] = [{ arithmetic: "ort" }, { arithmetic: "onnx" }, { rangeRule: "gptq" }, { rangeRule: "full" }];
const backend = await wasm();

describe.each(formats.map((f) => [f.name, f] as const))("%s", (_, f) => {
  it("gives finite values", () => {
    const integers = f.kind === "block" && f.element.kind === "int" && f.scaleRule === "max" && f.offset === undefined;
    for (const [name, value] of Object.entries(weights)) {
      const w = tensor(Float32Array.from({ length: 2 * K }, (_, i) => value(i)), [2, K]); // prettier-ignore
      for (const options of integers ? [{}, ...rules] : [{}]) {
        let packed;
        try {
          packed = quantize(w, f, options);
        } catch (error) {
          expect(error).toMatchObject({ code: expect.stringMatching(/E_VALUE|E_UNSUPPORTED/) as string });
          expect((error as Error).message).not.toMatch(/NaN|Infinity/);
          continue;
        }
        expect(dequantize(packed).every(Number.isFinite), `${name} ${JSON.stringify(options)}`).toBe(true);
        if (f.kind !== "opaque") expect(quantize(w, f, { ...options, backend }), name).toEqual(packed);
      }
    }
  });
});

it("the value nearest to the largest float32 that is one stays near", () => {
  const back = dequantize(quantize(tensor(Float32Array.of(-MAX, MAX, 1e38, 0), [1, 4]), format("int4_b4"), { rangeRule: "full" }));
  for (const v of back) expect(Math.abs(v)).toBeLessThanOrEqual(MAX);
  expect(Math.abs(back[0])).toBeGreaterThan(0.8 * MAX);
});
