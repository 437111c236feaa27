// llama-quantize's choices of types, against llama.cpp's own tables; importance matrices.
import { describe, expect, test } from "vitest";
import { tensor } from "../../src/index.ts";
import { floatModel, ggufBytes, ggufTargets, ggufTypes, quantizeGguf, readGguf, readImatrix } from "../../src/interop/index.ts";
import type { FloatModel } from "../../src/interop/gguf/quantize.ts";

describe("llama.cpp's tables", () => {
  const model = (shapes: Record<string, number[]>, dtype = "F32"): FloatModel => ({
    metadata: new Map(),
    tensors: new Map(
      Object.entries(shapes).map(([name, shape]) => [
        name,
        { dtype, shape, values: (row = 0, count = shape.slice(0, -1).reduce((a, b) => a * b, 1)) => Promise.resolve(new Float32Array((row * 0 + count) * shape[shape.length - 1]).fill(0.5)) },
      ]),
    ),
  }); // prettier-ignore
  const types = (made: { tensors: unknown }): Record<string, string> =>
    Object.fromEntries([...(made.tensors as Map<string, { type: string }>)].map(([name, t]) => [name, t.type]));
  const up = "blk.0.ffn_up.weight";

  // src/llama-quant.cpp: rows that are no whole super-blocks
  const rowsOf32: Record<string, string> = {
    q2_k: "Q4_0", q3_k: "Q4_0", q4_k: "Q5_0", q5_k: "Q5_1", q6_k: "Q8_0", tq1_0: "Q4_0", tq2_0: "Q4_0", iq4_xs: "IQ4_NL", iq3_s: "IQ4_NL", iq3_xxs: "IQ4_NL", iq2_s: "IQ4_NL", iq2_xs: "IQ4_NL", iq2_xxs: "IQ4_NL", iq1_s: "IQ4_NL", iq1_m: "IQ4_NL",
  }; // prettier-ignore
  // enum llama_ftype of include/llama.h
  const fileTypes: Record<string, number> = {
    f32: 0, f16: 1, q4_0: 2, q4_1: 3, q8_0: 7, q5_0: 8, q5_1: 9, q2_k: 10, q3_k: 11, q3_k_m: 12, q4_k: 14, q4_k_m: 15, q5_k: 16, q5_k_m: 17, q6_k: 18, iq2_xxs: 19, iq2_xs: 20, iq3_xxs: 23, iq1_s: 24, iq4_nl: 25, iq3_s: 26, iq2_s: 28, iq4_xs: 30, iq1_m: 31, bf16: 32, tq1_0: 36, tq2_0: 37, mxfp4: 38,
  }; // prettier-ignore
  test.each(ggufTargets())("%s: rows of 256, of 32 and of 5; the number of the file", (type) => {
    const base = type.replace(/_m$/, type === "iq1_m" ? "_m" : "").toUpperCase();
    const made = quantizeGguf(model({ [up]: [2, 256], "blk.1.ffn_up.weight": [2, 32], "blk.2.ffn_up.weight": [2, 5] }), { type });
    const size = [...ggufTypes().values()].find((t) => t.name === base)!.blockSize;
    const odd = size === 1 ? base : "F16";
    const few = 32 % size === 0 ? base : (rowsOf32[base.toLowerCase()] ?? "F16");
    expect(types(made)).toEqual({ [up]: base, "blk.1.ffn_up.weight": few, "blk.2.ffn_up.weight": odd });
    const metadata = made.metadata as Map<string, unknown>;
    expect(metadata.get("general.file_type")).toEqual(type in fileTypes ? { type: "uint32", value: fileTypes[type] } : undefined);
    expect(metadata.get("general.quantization_version")).toEqual({ type: "uint32", value: 2 });
  });

  test("targets are the types with a format but int8, and the mixes; others are refused with the nearest", () => {
    const formats = [...ggufTypes().values()].filter((t) => t.format !== undefined && t.name !== "I8").map((t) => t.name.toLowerCase());
    expect(ggufTargets()).toEqual([...formats, "q3_k_m", "q4_k_m", "q5_k_m"]);
    for (const type of ["i8", "i32", "q4_k_s", ""]) expect(() => quantizeGguf(model({ [up]: [1, 32] }), { type })).toThrow(/GGUF type: expected one of f32, f16/); // prettier-ignore
    expect(() => quantizeGguf(model({}), { type: "q4_k_x" })).toThrow(/got "q4_k_x"\. Nearest: q4_k/);
    expect(() => quantizeGguf(model({}), { type: "q8_0", rules: [{ match: "*", type: "I8" }] })).toThrow(/got "I8"/);
  });

  test("what stays float32, and the output matrix", () => {
    const shapes = { "blk.0.attn_norm.weight": [2, 256], "blk.0.ffn_gate_inp.weight": [2, 256], "blk.0.attn_q.bias": [2, 256], "output_norm.weight": [256], "output.weight": [4, 256], "token_embd.weight": [4, 256] }; // prettier-ignore
    const kept = { "blk.0.attn_norm.weight": "F32", "blk.0.ffn_gate_inp.weight": "F32", "blk.0.attn_q.bias": "F32", "output_norm.weight": "F32" }; // prettier-ignore
    const made = (type: string, pure?: boolean) => types(quantizeGguf(model(shapes), { type, ...(pure === undefined ? {} : { pure }) }));
    expect(made("q4_k")).toEqual({ ...kept, "output.weight": "Q6_K", "token_embd.weight": "Q4_K" });
    expect(made("q4_k", true)).toEqual({ ...kept, "output.weight": "Q4_K", "token_embd.weight": "Q4_K" });
    expect(made("q6_k")["output.weight"]).toBe("Q6_K");
    for (const wide of ["q8_0", "f16", "bf16", "f32"]) expect(made(wide)["output.weight"], wide).toBe(wide.toUpperCase());
  });

  // use_more_bits of llama-quant.cpp: the first and last eighth of the layers, and every third between
  test.each([
    ["q3_k_m", "Q3_K", "Q5_K"],
    ["q4_k_m", "Q4_K", "Q6_K"],
    ["q5_k_m", "Q5_K", "Q6_K"],
  ])("%s: attn_v and ffn_down of some layers have more bits", (type, base, more) => {
    for (const layers of [1, 7, 16, 24]) {
      const names = Array.from({ length: layers }, (_, i) =>
        ["attn_v", "ffn_down", "ffn_up"].map((part) => `blk.${i}.${part}.weight`),
      ).flat();
      const made = types(
        quantizeGguf(model({ ...Object.fromEntries(names.map((n) => [n, [1, 256]])), "attn_v.weight": [1, 256] }), { type }),
      );
      const eighth = Math.trunc(layers / 8);
      for (const name of names) {
        const layer = Number(name.split(".")[1]);
        const many = layer < eighth || layer >= Math.trunc((7 * layers) / 8) || (layer - eighth) % 3 === 2;
        expect(made[name], `${name} of ${layers}`).toBe(many && !name.includes("ffn_up") ? more : base);
      }
      expect(made["attn_v.weight"]).toBe(base);
    }
  });

  test("rules: the first that fits, as a glob of the whole name; keep; told before each is made", async () => {
    const told: string[] = [];
    const made = quantizeGguf(model({ "a.b.weight": [1, 32], "aXb.weight": [1, 32], "b.weight": [1, 32], "b.weight2": [1, 32], norm: [32] }), {
      type: "q8_0",
      rules: [{ match: "a.b.*", type: "Q4_0" }, { match: "a*", type: "q5_0" }, { match: "norm", type: "f16" }, { match: "b.weight", type: "KEEP" }, { match: "*.weight", type: "q4_1" }],
      onTensor: (name, type) => told.push(`${name} ${type}`),
    }); // prettier-ignore
    expect(types(made)).toEqual({ "a.b.weight": "Q4_0", "aXb.weight": "Q5_0", "b.weight": "F32", "b.weight2": "F32", norm: "F16" });
    expect(told).toEqual([]);
    const file = await readGguf(await ggufBytes(made));
    expect(told).toEqual(["a.b.weight Q4_0", "aXb.weight Q5_0", "b.weight F32", "b.weight2 F32", "norm F16"]);
    for (const t of file.tensors.values()) for (const v of await t.values()) expect(v).toBeCloseTo(0.5, 2);
  });

  test("floats of any width are quantized, what is quantized is not unless allowed; bytes that fit are passed on", async () => {
    for (const dtype of ["F32", "F16", "BF16", "F64"]) expect(types(quantizeGguf(model({ [up]: [1, 32] }, dtype), { type: "q8_0" }))).toEqual({ [up]: "Q8_0" }); // prettier-ignore
    expect(() => quantizeGguf(model({ [up]: [1, 32] }, "Q4_0"), { type: "q8_0" })).toThrow(`${up}: expected float weights, got Q4_0.`);
    expect(types(quantizeGguf(model({ [up]: [1, 32] }, "Q4_0"), { type: "q8_0", allowRequantize: true }))).toEqual({ [up]: "Q8_0" });
    const q8 = await ggufBytes(quantizeGguf(model({ [up]: [2, 32], norm: [32] }), { type: "q8_0" }));
    const told: string[] = [];
    const again = quantizeGguf(floatModel(await readGguf(q8)), { type: "q8_0", onTensor: (name) => told.push(name) });
    expect(await ggufBytes(again)).toEqual(q8);
    expect(told).toEqual([]);
  });
});

test("importance matrices: experts are averaged over what they have seen; what is none is named", async () => {
  const file = (tensors: Record<string, [number[], number[]]>) =>
    ggufBytes({ metadata: {}, tensors: Object.fromEntries(Object.entries(tensors).map(([name, [x, shape]]) => [name, tensor(Float32Array.from(x), shape)])) }); // prettier-ignore
  const read = await readImatrix(await file({ "a.in_sum2": [[2, 4, 6, 8, 10, 12], [2, 3]], "a.counts": [[1, 3], [2, 1]], other: [[1], [1]], "z.in_sum2": [[5, 5], [1, 2]], "z.counts": [[0], [1, 1]] })); // prettier-ignore
  expect([...read]).toEqual([
    ["a", Float32Array.of(10 / 4, 14 / 4, 18 / 4)],
    ["z", Float32Array.of(5, 5)],
  ]);
  await expect(readImatrix(await file({ "a.in_sum2": [[1, 2], [1, 2]] }))).rejects.toThrow("imatrix a: expected a count for each of its 1 matrices, got none."); // prettier-ignore
  await expect(readImatrix(await file({ "a.in_sum2": [[1, 2], [1, 2]], "a.counts": [[1, 1], [2, 1]] }))).rejects.toThrow("imatrix a: expected a count for each of its 1 matrices, got 2."); // prettier-ignore
  await expect(readImatrix(await file({ a: [[1], [1]] }))).rejects.toThrow("imatrix: expected tensors named *.in_sum2, got none. Make it with llama-imatrix (GGUF)."); // prettier-ignore
});
