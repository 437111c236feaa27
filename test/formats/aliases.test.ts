// What formats are called elsewhere (ml_dtypes, ONNX, torch, MLIR, papers), their types in ONNX's TensorProto, and what
// follows from a definition without being asked for.
import { describe, expect, test } from "vitest";
import {
  defineBlock,
  float16,
  float32,
  format,
  int4,
  isLowbitError,
  uint4,
  type BlockFormat,
  type NumberFormat,
} from "../../formats/index.ts";
import { isA } from "../../formats/core/check.ts";

const scalar = (name: string): NumberFormat => format(name) as NumberFormat;

const ALIASES: Readonly<Record<string, string>> = {
  float32: "f32 fp32 binary32",
  tfloat32: "tf32",
  float16: "f16 fp16 half binary16",
  bfloat16: "bf16",
  float8_e4m3: "f8_e4m3_ieee",
  float8_e4m3fn: "e4m3fn float8e4m3fn fp8_e4m3 f8_e4m3",
  float8_e4m3fnuz: "e4m3fnuz float8e4m3fnuz f8_e4m3fnuz",
  float8_e4m3b11fnuz: "e4m3b11fnuz e4m3b11",
  float8_e5m2: "e5m2 float8e5m2 fp8_e5m2 f8_e5m2",
  float8_e5m2fnuz: "e5m2fnuz float8e5m2fnuz f8_e5m2fnuz",
  float8_e3m4: "e3m4",
  float8_e8m0fnu: "e8m0 ue8m0 e8m0fnu float8e8m0 f8_e8m0",
  float8_e5m3fnu: "ue5m3",
  float8_e7m0: "e7m0 pow2_8",
  float7_e4m3fnu: "ue4m3 float_ue4m3 e4m3fnu",
  float7_e5m1: "e5m1",
  float7_e4m2: "e4m2 float7_e4m2fn",
  float7_e3m3: "e3m3 float7_e3m3fn",
  float7_e2m4: "e2m4 float7_e2m4fn",
  float6_e3m2fn: "e3m2 e3m2fn fp6_e3m2 float6_e3m2",
  float6_e2m3fn: "e2m3 e2m3fn fp6_e2m3 float6_e2m3",
  float6_e4m1: "e4m1 float6_e4m1fn",
  float5_e3m1: "e3m1 float5_e3m1fn",
  float5_e2m2: "e2m2 float5_e2m2fn",
  float5_e1m3: "e1m3 float5_e1m3fn",
  float5_e4m0: "e4m0 pow2_5",
  float4_e2m1fn: "e2m1 e2m1fn float4e2m1 float4_e2m1 fp4_e2m1",
  float4_e1m2: "e1m2 float4_e1m2fn",
  float4_e3m0: "e3m0 pow2_4",
  float3_e1m1: "e1m1 float3_e1m1fn",
  float3_e2m0: "e2m0 pow2_3",
  posit8_es2: "posit8",
  posit16_es2: "posit16",
  posit32_es2: "posit32",
  af4: "abnormalfloat4",
  nf3: "normalfloat3",
  nf4: "normalfloat4",
  nf4_b64_dq: "nf4_dq",
  bnb_fp4: "fp4_bnb",
  iq4_nl: "kvalues_iq4nl",
  binary: "sign1",
  ternary: "b1.58 trit",
  msfp12: "bfp12",
  msfp16: "bfp16",
  mxfp4: "mxfp4_e2m1",
  mxfp6_e2m3: "mxfp6",
  mxfp8_e4m3: "mxfp8",
};

test.each(Object.entries(ALIASES))("%s", (name, aliases) => {
  expect(format(name).name).toBe(name);
  for (const alias of aliases.split(" ")) expect([alias, format(alias)]).toEqual([alias, format(name)]);
});

test("a name that stands for two formats is refused, with both", () => {
  expect(() => format("e4m3")).toThrow(/names float8_e4m3 and float8_e4m3fn/);
});

test("types of ONNX by their numbers in TensorProto.DataType", () => {
  const numbers = { float32: 1, uint8: 2, int8: 3, float16: 10, bfloat16: 16, float8_e4m3fn: 17, float8_e4m3fnuz: 18, float8_e5m2: 19 };
  const more = { float8_e5m2fnuz: 20, uint4: 21, int4: 22, float4_e2m1fn: 23, float8_e8m0fnu: 24, uint2: 25, int2: 26 };
  for (const [name, onnx] of Object.entries({ ...numbers, ...more })) expect([name, scalar(name).onnx]).toEqual([name, onnx]);
});

describe("what follows from a definition", () => {
  test("codes of at most 16 bits are tabled; equal steps of at most 8 bits are a lattice", () => {
    for (const [name, tabled] of [
      ["int16", true],
      ["int17", false],
      ["posit16_es1", true],
      ["posit17_es1", false],
    ] as const)
      // prettier-ignore
      expect([name, scalar(name).table !== null]).toEqual([name, tabled]);
    for (const name of ["binary", "ternary", "int8", "uint1", "binary8p7se", "bipolar8"])
      expect([name, scalar(name).access.kind]).toEqual([name, "lattice"]);
    for (const name of ["nf4", "posit8_es2", "lns8_f3"]) expect(scalar(name).access.kind).not.toBe("lattice");
  });

  test("fixed point is narrow unless its name says that it is full", () => {
    expect([scalar("fixed8_f6").limits.min, scalar("fixed8_f6").limits.max]).toEqual([-127 / 64, 127 / 64]);
    expect(scalar("fixed8_f6_full").limits.min).toBe(-2);
    expect(scalar("ufixed8_f8").limits).toMatchObject({ min: 0, max: 255 / 256 });
  });

  test("bipolar values overflow half a step beyond the last", () => {
    const f = scalar("bipolar4");
    const refused = (x: number): boolean => {
      try {
        f.encode(x, { overflow: "error" });
        return false;
      } catch (error) {
        if (isLowbitError(error)) return true;
        throw error;
      }
    };
    expect([15.9, 16.2, -15.9, -16.2].map(refused)).toEqual([false, true, false, true]);
  });

  test("scale rules by name, and ranges by the offset's role", () => {
    const scales = [{ format: float32, span: 32 }];
    for (const scaleRule of [
      "max",
      "floor",
      "ceil",
      "rceil",
      "nearest",
      "even",
      "fourThirds",
      "mse",
      "mseSweep",
      "quest",
      "torchao",
      "te",
      "modelopt",
      "fourOverSix",
    ] as const)
      // prettier-ignore
      expect(defineBlock({ element: int4, scales, scaleRule }).scaleRule).toBe(scaleRule);
    expect(() => defineBlock({ element: int4, scales, scaleRule: "least" as never })).toThrow(
      expect.objectContaining({ code: "E_FORMAT" }),
    );
    const levels = (element: NumberFormat) => [{ format: element, span: 32 }];
    const rule = (f: BlockFormat): string => f.rangeRule;
    expect(rule(defineBlock({ element: int4, scales }))).toBe("narrow");
    expect(rule(defineBlock({ element: uint4, scales, offset: { role: "zeroPoint", levels: levels(uint4) } }))).toBe("minmax");
    expect(rule(defineBlock({ element: int4, scales, offset: { role: "mean", levels: levels(float16) } }))).toBe("narrow");
  });
});

test("what a value is, in messages", () => {
  expect([null, undefined, "x", 1, [], new Int8Array(1), Object.create(null), () => 0].map(isA)).toEqual([
    "null",
    "undefined",
    "a string",
    "a number",
    "Array",
    "Int8Array",
    "an object",
    "a function",
  ]);
});
