// Which names and definitions there are: bounds of parametric names, ggml's own names, codes and fields at their ends.
import { expect, test } from "vitest";
import { allFormats, arithmetic, defineFormat, format, isLowbitError, type NumberFormat, type OpaqueFormat } from "../../formats/index.ts";

test("parametric names hold exactly what their definitions allow", () => {
  const known = (name: string): boolean => {
    try {
      return format(name).name !== "";
    } catch (error) {
      if (isLowbitError(error)) return false;
      throw error;
    }
  };
  for (const name of ["q1_1", "uq0_2", "uq16_16", "q16_16", "lns16_f6", "lns16_f14", "lns3_f0", "lns3_f1", "lns8_f0"])
    expect([name, known(name)]).toEqual([name, true]);
  for (const name of ["q0_4", "uq0_1", "uq17_16", "q17_16", "lns16_f5", "lns16_f15", "lns17_f9", "lns2_f0", "lns12_f1"])
    expect([name, known(name)]).toEqual([name, false]);
});

test("formats of ggml go by their types' names, with the number of the type in their spec", () => {
  const types = allFormats.filter((f) => f.name.startsWith("ggml_"));
  expect(types.length).toBeGreaterThan(20);
  for (const f of types) {
    const type = f.name.slice("ggml_".length);
    expect(format(`gguf_${type}`), f.name).toBe(f);
    expect((f as OpaqueFormat).spec, f.name).toMatch(/\S/);
  }
});

test("corner cases of test vectors have the codes at both ends", () => {
  const operands = [...arithmetic(format("float16")).vectors("add", { count: 4000 })].flatMap((vector) => vector.operands);
  for (const code of [0, 0x7fff, 0x8000, 0xffff]) expect(operands).toContain(code);
});

test("fields of every code of a tapered format add up to its bits", () => {
  for (const name of ["posit8_es0", "posit8_es2", "takum8", "takum_linear8", "hifloat8"]) {
    const f = format(name) as NumberFormat;
    for (let code = 0; code < 2 ** f.bits; code++)
      expect([name, code, f.fieldsOf!(code).reduce((sum, { bits }) => sum + bits, 0)]).toEqual([name, code, f.bits]);
  }
});

test("what is no definition is refused as one", () => {
  for (const none of [null, undefined, "float", {}, { kind: "constructor" }])
    expect(() => defineFormat(none as never), String(none)).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
});
