// Weights of a checkpoint put into graphs: what each format becomes in float32 and float16 graphs, what of the floats
// fits where, and why the rest is left; the graphs are kept.
import { describe, expect, test } from "vitest";
import { format } from "../../formats/index.ts";
import { quantize, tensor } from "../../src/index.ts";
import { modelLayers, placeWeights, readModelBytes, readWeight, type ForeignWeights, type OnnxModel, type PlaceOptions } from "../../src/onnx/index.ts"; // prettier-ignore
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import { keep } from "./kept.ts";
import { SPECIMENS } from "./specimens.ts";

const FORMATS = ["int4_b32", "uint4_b32_zp", "uint4_b64_zp", "uint8_b32_zp", "int8_row", "int8", "int4_row", "uint4_row_zp", "int2_b32", "int3_b32", "int5_b64_float16", "mxfp4", "nf4_b64", "float8_e4m3fn_row", "ggml_q4_0", "nvfp4", "bfloat16", "int4_b16_float16"]; // prettier-ignore

/** The weight of every layer of a model in a format, under the layer's name. */
const packed = (opened: OnnxModel, name: string, columns?: Int32Array): ForeignWeights["layers"] =>
  new Map(
    modelLayers(opened).map((layer) => {
      const w = readWeight(opened, layer);
      return [layer.name, async () => ({ packed: quantize(w, format(name)), ...(columns === undefined ? {} : { columns }) })];
    }),
  );
async function placed(bytes: Uint8Array, weightsOf: (opened: OnnxModel) => ForeignWeights, options: PlaceOptions = {}) {
  const opened = readModelBytes(bytes);
  try {
    const report = await placeWeights(opened, weightsOf(readModelBytes(bytes)), options);
    const text = JSON.stringify({ ...report, placed: report.placed.map((one) => ({ ...one, cosine: one.cosine.toFixed(6) })) });
    keep(opened, text);
    return report;
  } catch (error) {
    keep(bytes, (error as Error).message);
    return (error as Error).message;
  }
}

describe.each([
  "product",
  "float16 product",
  "Gemm, transposed, bias",
  "Gemm with factors",
  "table",
  "weight on the left",
  "two readers of a weight",
  "table and Gemm",
])("%s", (name) => {
  // prettier-ignore
  const bytes = encode(SPECIMENS.get(name)!());
  test("in every format", async () => {
    for (const [i, made] of FORMATS.entries())
      for (const target of i < 2 ? (["auto", "matmulnbits", "stored"] as const) : (["auto"] as const))
        await placed(bytes, (opened) => ({ layers: packed(opened, made) }), { target, accuracyLevel: 1 });
  });
  test("with columns in another order", async () => {
    for (const opset of [8, 17]) {
      const proto = SPECIMENS.get(name)!();
      proto.opsetImport[0].version = BigInt(opset);
      const k = modelLayers(readModelBytes(encode(proto)))[0].k;
      const columns = Int32Array.from({ length: k }, (_, i) => (i * 7 + 3) % k);
      await placed(encode(proto), (opened) => ({ layers: packed(opened, "int4_b32", columns) }), { rules: [{ match: "*", to: modelLayers(opened0(proto))[0].name }] }); // prettier-ignore
    }
  });
});
const opened0 = (proto: Parameters<typeof encode>[0]): OnnxModel => readModelBytes(encode(proto));

describe("floats beside the layers", () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, [1, 8, 6, 6]), value("i", T.INT64, ["n"])],
        output: [value("y", T.FLOAT, []), value("e", T.FLOAT, []), value("z", T.FLOAT, [])],
        initializer: [raw("conv.weight", [8, 8, 3, 3], weights(576)), raw("conv.bias", [8], weights(8, 2)), raw("emb.weight", [20, 32], weights(640, 3)), raw("fc.weight", [32, 16], weights(512, 4)), raw("norm.weight", [1, 16], weights(16, 5)), raw("half.bias", [16], Uint16Array.from({ length: 16 }, (_, j) => 0x3c00 + j), T.FLOAT16)], // prettier-ignore
        node: [
          node("Conv", ["x", "conv.weight", "conv.bias"], ["y"], {}, "/conv/Conv"),
          node("Gather", ["emb.weight", "i"], ["e"], {}, "/emb/Gather"),
          node("MatMul", ["e", "fc.weight"], ["f"], {}, "/fc/MatMul"),
          node("Cast", ["half.bias"], ["h"], { to: 1n }),
          node("Mul", ["f", "norm.weight"], ["g"]),
          node("Add", ["g", "h"], ["z"]),
        ],
      }),
    ),
  );
  const floats = (entries: [string, number[], number][]): ForeignWeights["tensors"] =>
    new Map(entries.map(([name, shape, seed]) => [name, { dtype: "F32", shape, values: async () => weights(shape.reduce((a, b) => a * b, 1), seed) }])); // prettier-ignore
  const layers = (): ForeignWeights["layers"] => {
    const w = weights(512, 4);
    const turned = Float32Array.from(w, (_, at) => w[(at % 32) * 16 + Math.floor(at / 32)]);
    return new Map([["model.fc", async () => ({ packed: quantize(tensor(turned, [16, 32]), format("int4_b32")) })]]);
  };
  const CASES: Record<string, [string, number[], number][]> = {
    "as they are": [["conv.weight", [8, 8, 3, 3], 1], ["conv.bias", [8], 2], ["emb.weight", [20, 32], 3], ["norm.weight", [16], 5]], // prettier-ignore
    "with other values": [["conv.weight", [8, 8, 3, 3], 11], ["conv.bias", [8], 12], ["emb.weight", [20, 32], 13], ["norm.weight", [16], 15], ["half.bias", [16], 16]], // prettier-ignore
    "of other shapes": [["conv.weight", [8, 8, 9], 1], ["conv.bias", [9], 2], ["emb.weight", [32, 20], 3], ["norm.weight", [2, 8], 5]], // prettier-ignore
    "of other rows": [
      ["conv.weight", [4, 16, 3, 3], 1],
      ["emb.weight", [40, 16], 3],
    ],
    "of nothing": [
      ["pos.weight", [4, 4], 1],
      ["conv.other", [3], 2],
    ],
  };
  test.each(Object.entries(CASES))("%s", async (_, entries) => {
    for (const options of [{}, { keepFloats: true }, { rules: [{ match: "conv.*", to: "keep" }] }]) {
      const report = await placed(bytes, () => ({ layers: layers(), tensors: floats(entries) }), options);
      if (typeof report === "string") throw new Error(report);
      expect(report.placed.map(({ nodes }) => nodes)).toEqual([["/fc/MatMul"]]);
      if ("keepFloats" in options) expect(report.floats).toEqual([]);
    }
  });
  test("a float layer that is written holds the numbers", async () => {
    const opened = readModelBytes(bytes);
    const report = await placeWeights(opened, { layers: layers(), tensors: floats(CASES["with other values"]) });
    expect(report.floats.map(({ tensor: name, changed }) => `${name} ${changed}`).sort()).toEqual(["conv.bias true", "conv.weight true", "emb.weight true", "half.bias true", "norm.weight true"]); // prettier-ignore
    const conv = modelLayers(opened).find(({ opType }) => opType === "Conv")!;
    const { data, shape } = readWeight(opened, conv);
    expect([shape, [...data]]).toEqual([[8, 72], [...weights(576, 11)]]);
  });
  test("zeros stand for zeros, and for nothing else", async () => {
    const zero = (values: Float32Array) => encode(model(graph({ input: [value("x", T.FLOAT, ["b", 32])], output: [value("y", T.FLOAT, [])], initializer: [raw("fc.weight", [32, 16], values)], node: [node("MatMul", ["x", "fc.weight"], ["y"], {}, "/fc/MatMul")] }))); // prettier-ignore
    const of = (values: Float32Array): ForeignWeights => ({ layers: new Map([["fc", async () => ({ packed: quantize(tensor(values, [16, 32]), format("int4_b32")) })]]) }); // prettier-ignore
    const [none, some] = [new Float32Array(512), weights(512)];
    const both = await placed(zero(none), () => of(none));
    expect(typeof both === "string" ? both : both.placed[0].cosine).toBe(1);
    for (const [graphs, given] of [[none, some], [some, none]]) expect(await placed(zero(graphs), () => of(given))).toMatch(/cosine 0\.000/); // prettier-ignore
  });
});
