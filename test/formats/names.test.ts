// The type of format(name) follows from the name; checked by the compiler (npm run types) and, against what comes back,
// here.
import { expect, expectTypeOf, test } from "vitest";
import { format, type BlockFormat, type Format, type FormatName, type NumberFormat, type OpaqueFormat } from "../../formats/index.ts";

test("names that are written out have their kind", () => {
  expectTypeOf(format("mxfp4")).toEqualTypeOf<BlockFormat>();
  expectTypeOf(format("float8_e4m3fn")).toEqualTypeOf<NumberFormat>();
  expectTypeOf(format("ggml_q4_k")).toEqualTypeOf<OpaqueFormat>();
  expectTypeOf(format("int5_b64")).toEqualTypeOf<BlockFormat>();
  expectTypeOf(format("uint4_b32_float16_zp")).toEqualTypeOf<BlockFormat>();
  expectTypeOf(format("nf4_row")).toEqualTypeOf<BlockFormat>();
  expectTypeOf(format("e4m3fn")).toEqualTypeOf<Format>();
  expectTypeOf(format("mxfp4" as string)).toEqualTypeOf<Format>();
  expectTypeOf<"nvfp4">().toExtend<FormatName>();
  for (const name of ["int5_b64", "uint4_b32_float16_zp", "nf4_row", "int4_tensor", "posit8_es1_b32"] as const)
    expect(format(name).kind).toBe("block");
});

test("parametric scalars", () => {
  const scalars = [
    format("int5"),
    format("uint12"),
    format("posit6_es1"),
    format("binary6p3se"),
    format("float_e3m2"),
    format("float_e3m4_ieee"),
    format("fixed8_f6"),
    format("takum12"),
    format("takum_linear12"),
    format("lns8_f3"),
    format("bipolar9"),
  ];
  expectTypeOf(scalars).toEqualTypeOf<NumberFormat[]>();
  for (const f of scalars) expect(["block", "opaque"]).not.toContain(f.kind);
});
