// inspect: what a summary says of layers, plain, quantized and stored, wherever they are.
import { create } from "@bufbuild/protobuf";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { OperatorSetIdProtoSchema, TypeProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { dataTypeName, DATA_TYPES } from "../../src/onnx/file/types.ts";
import { inspectModel, modelLayers, quantizeModelBytes, readModelBytes, summarizeModel, writeModel } from "../../src/onnx/index.ts";
import { T, encode, graph, matmulModel, model, node, raw, value, weights } from "./build.ts";

const opened = (nodes: NodeProto[], initializer: TensorProto[]) => {
  const proto = model(graph({ input: [value("x", T.FLOAT, ["n", 4]), value("c", T.BOOL, [])], output: [value("y", T.FLOAT, [])], initializer, node: nodes })); // prettier-ignore
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return readModelBytes(encode(proto));
};
const contrib = (op: string, inputs: string[], attributes = {}): NodeProto =>
  Object.assign(node(op, inputs, ["y"], attributes, "op"), { domain: "com.microsoft" });
const q = (name: string, dims: number[], type: number = T.UINT8): TensorProto =>
  raw(name, dims, new Uint8Array(dims.reduce((a, b) => a * b, 1)), type);
const s = (name: string, count: number): TensorProto => raw(name, [count], new Float32Array(count));
const NBITS = { K: 64n, N: 8n, bits: 4n, block_size: 32n };

describe("weights that are quantized already", () => {
  test.each<[string, NodeProto, TensorProto[], object]>([
    ["MatMulNBits", contrib("MatMulNBits", ["x", "q", "s"], NBITS), [q("q", [8, 2, 16]), s("s", 16)], { weight: "q", dataType: "uint8", format: "int4_b32", shape: [64, 8], bytes: 256 + 64 }], // prettier-ignore
    ["MatMulNBits with zero points", contrib("MatMulNBits", ["x", "q", "s", "z"], { ...NBITS, bits: 8n }), [q("q", [8, 2, 32]), s("s", 16), q("z", [16])], { format: "uint8_b32_zp", shape: [64, 8], bytes: 512 + 64 + 16 }], // prettier-ignore
    ["MatMulBnb4", contrib("MatMulBnb4", ["x", "q", "s"], { K: 64n, N: 8n, block_size: 64n, quant_type: 1n }), [q("q", [256]), s("s", 8)], { weight: "q", format: "uint8", shape: [64, 8] }], // prettier-ignore
    ["GatherBlockQuantized", contrib("GatherBlockQuantized", ["q", "i", "s"], { bits: 4n }), [q("q", [6, 16]), s("s", 6)], { weight: "q", dataType: "uint8", shape: [6, 16] }], // prettier-ignore
    ["DynamicQuantizeMatMul", contrib("DynamicQuantizeMatMul", ["x", "q", "s"]), [q("q", [4, 3], T.INT8), s("s", 3)], { weight: "q", format: "int8", shape: [4, 3], bytes: 24 }], // prettier-ignore
    ["DynamicQuantizeLSTM", contrib("DynamicQuantizeLSTM", ["x", "q", "r"]), [q("q", [1, 4, 8]), q("r", [1, 2, 8])], { weight: "q", shape: [1, 4, 8] }], // prettier-ignore
    ["QMoE", contrib("QMoE", ["x", "p", "q", "s", "", "r"]), [q("q", [2, 4, 8]), s("s", 8), q("r", [2, 4, 8])], { weight: "q", shape: [2, 4, 8] }], // prettier-ignore
    ["MatMulIntegerToFloat", contrib("MatMulIntegerToFloat", ["x", "q", "s", "t"]), [q("q", [4, 3]), s("s", 1), s("t", 1)], { weight: "q", bytes: 20 }], // prettier-ignore
    ["QGemm", contrib("QGemm", ["x", "s", "z", "q", "t", "z"]), [q("q", [4, 3], T.INT8), s("s", 1), s("t", 1), q("z", [1])], { weight: "q", format: "int8" }], // prettier-ignore
    ["MatMulInteger", node("MatMulInteger", ["x", "q"], ["y"], {}, "op"), [q("q", [4, 3])], { weight: "q", format: "uint8" }],
    ["MatMulInteger, its weight on the left", node("MatMulInteger", ["q", "x"], ["y"], {}, "op"), [q("q", [4, 3])], { weight: "q" }],
    ["ConvInteger", node("ConvInteger", ["x", "q"], ["y"], {}, "op"), [q("q", [4, 3, 3, 3])], { weight: "q", shape: [4, 3, 3, 3] }],
    ["QLinearMatMul", node("QLinearMatMul", ["x", "s", "z", "q", "s", "z", "s", "z"], ["y"], {}, "op"), [q("q", [4, 3]), s("s", 1), q("z", [1])], { weight: "q" }], // prettier-ignore
    ["QLinearConv", node("QLinearConv", ["x", "s", "z", "q", "s", "z", "s", "z"], ["y"], {}, "op"), [q("q", [4, 3, 1, 1]), s("s", 1), q("z", [1])], { weight: "q" }], // prettier-ignore
    ["DequantizeLinear", node("DequantizeLinear", ["q", "s"], ["y"], {}, "op"), [raw("q", [4, 4], new Uint8Array(8), T.INT4), s("s", 1)], { weight: "q", format: "int4" }], // prettier-ignore
    ["Gather", node("Gather", ["q", "i"], ["y"], {}, "op"), [q("q", [9, 3], T.INT8)], { weight: "q", format: "int8" }],
  ])("%s", (what, made, init, wanted) => {
    const { layers, operators } = summarizeModel(opened([made], init));
    expect(layers).toHaveLength(1);
    expect(layers[0]).toMatchObject({ name: "op", opType: what.split(/[ ,]/)[0], graph: "", ...wanted });
    expect(Object.keys(operators)).toEqual([made.domain === "" ? made.opType : `com.microsoft.${made.opType}`]);
  });

  test("zero points, biases and indices of one dimension are none, nor are tables of wide integers", () => {
    const init = [
      q("z", [4]),
      raw(
        "ids",
        [4, 2],
        BigInt64Array.from({ length: 8 }, () => 0n),
        T.INT64,
      ),
      s("s", 1),
    ];
    const nodes = [node("DequantizeLinear", ["z", "s"], ["a"], {}, "d"), node("Gather", ["ids", "i"], ["y"], {}, "g")];
    expect(summarizeModel(opened(nodes, init)).layers).toEqual([]);
  });
});

test("plain layers: what they are, in which graph, and those without a constant", () => {
  const branch = (name: string, init: TensorProto[]) =>
    graph({ output: [value(`${name}_y`, T.FLOAT, [])], initializer: init, node: [node("MatMul", ["x", init.length > 0 ? init[0].name : "w"], [`${name}_y`], {}, `${name}_mm`)] }); // prettier-ignore
  const inner = graph({ output: [value("deep", T.FLOAT, [])], node: [node("If", ["c"], ["deep"], { then_branch: branch("t2", []), else_branch: branch("e2", []) }, "nested")] }); // prettier-ignore
  const read = opened(
    [node("If", ["c"], ["h"], { then_branch: branch("t", [raw("own", [4, 4], weights(16))]), else_branch: inner }, "cond"), node("MatMul", ["h", "x"], ["y"], {}, "attention")], // prettier-ignore
    [raw("w", [4, 4], weights(16))],
  );
  const summary = summarizeModel(read);
  expect(summary.layers.map(({ name, graph: at, weight, dataType, format, bytes }) => [name, at, weight, dataType, format, bytes])).toEqual(
    [
      ["attention", "", "", "", "", 0],
      ["t_mm", "cond.then_branch", "own", "float", "", 64],
      ["t2_mm", "cond.else_branch/nested.then_branch", "w", "float", "", 64],
      ["e2_mm", "cond.else_branch/nested.else_branch", "w", "float", "", 64],
    ],
  );
  expect(summary.operators).toEqual({ If: 2, MatMul: 4 });
  expect(Object.keys(summary.operators)).toEqual(["If", "MatMul"]);
  expect(summary.tensorBytes).toEqual({ float: 128 });
  expect(modelLayers(read).map(({ scope }) => scope.path)).toEqual(summary.layers.slice(1).map(({ graph: at }) => at));
});

test("stored weights through the nodes that give them their shape; embeddings once", async () => {
  const proto = model(
    graph({
      input: [value("ids", T.INT64, [3]), value("x", T.FLOAT, [2, 3, 8])],
      output: [value("y", T.FLOAT, [3, 4]), value("z", T.FLOAT, [2, 3, 5])],
      initializer: [raw("t", [10, 8], weights(80)), raw("w", [8, 4], weights(32)), raw("v", [2, 8, 5], weights(80))],
      node: [node("Gather", ["t", "ids"], ["e"], {}, "embed"), node("MatMul", ["e", "w"], ["y"], {}, "mm"), node("MatMul", ["x", "v"], ["z"], {}, "batched")], // prettier-ignore
    }),
  );
  const made = await quantizeModelBytes(encode(proto), { format: "int3_b8", target: "stored", opTypes: ["Gather", "MatMul"] });
  const { layers } = summarizeModel(readModelBytes(made.bytes));
  expect(layers.map(({ name, opType, format, dataType, shape }) => [name, opType, format, dataType, shape])).toEqual([
    ["embed", "Gather", "int3_b8", "int3_b8", [10, 8]],
    ["mm", "MatMul", "int3_b8", "int3_b8", [4, 8]],
    ["batched", "MatMul", "int3_b8", "int3_b8", [10, 8]],
  ]);
  const part = await quantizeModelBytes(encode(proto), { format: "int3_b8", target: "stored", include: ["mm"] });
  expect(summarizeModel(readModelBytes(part.bytes)).layers.map(({ name, format }) => [name, format])).toEqual([
    ["embed", ""],
    ["mm", "int3_b8"],
    ["batched", ""],
  ]);
});

test("inputs, outputs and what made the file", () => {
  const proto = matmulModel(raw("w", [64, 32], weights(2048)), 64, 32);
  proto.graph!.input.push(value("w", T.FLOAT, [64, 32]), { ...value("seq", T.FLOAT, []), type: create(TypeProtoSchema, {}) });
  proto.graph!.input.push(value("half", T.FLOAT16, ["a", 2]));
  Object.assign(proto, { producerName: "maker", producerVersion: "1.2" });
  const summary = summarizeModel(readModelBytes(encode(proto)));
  expect(summary.inputs.map(({ name, type, dims }) => [name, type, dims])).toEqual([
    ["x", "float", ["batch", 64]],
    ["seq", "type 0", []],
    ["half", "float16", ["a", 2]],
  ]);
  expect(summary).toMatchObject({ producer: "maker 1.2", irVersion: 8, opsets: { "ai.onnx": 17 } });
});

test("bytes of all files of a model", async () => {
  const folder = mkdtempSync(join(tmpdir(), "lowbit-inspect-"));
  try {
    const at = (name: string): string => join(folder, name);
    writeFileSync(at("in.onnx"), encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32)));
    await writeModel(readModelBytes(readFileSync(at("in.onnx"))), at("out.onnx"), { externalData: true });
    const { files, fileBytes } = inspectModel(at("out.onnx"));
    expect(files).toEqual([at("out.onnx"), at("out.onnx_data")]);
    expect(fileBytes).toBe(readFileSync(at("out.onnx")).length + 8192);
    // a file that is there stays, also where two write it at once
    const model = readModelBytes(readFileSync(at("in.onnx")));
    await expect(writeModel(model, at("out.onnx"))).rejects.toMatchObject({ code: "E_EXISTS" });
    const both = await Promise.allSettled([writeModel(model, at("new.onnx")), writeModel(model, at("new.onnx"))]);
    expect(both.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    expect(both.find(({ status }) => status === "rejected")).toMatchObject({ reason: { code: "E_EXISTS" } });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("element types have the names and widths of onnx.proto", () => {
  const widths: Record<string, number> = { FLOAT: 32, UINT8: 8, INT8: 8, UINT16: 16, INT16: 16, INT32: 32, INT64: 64, STRING: 0, BOOL: 8, FLOAT16: 16, DOUBLE: 64, UINT32: 32, UINT64: 64, COMPLEX64: 64, COMPLEX128: 128, BFLOAT16: 16, FLOAT8E4M3FN: 8, FLOAT8E4M3FNUZ: 8, FLOAT8E5M2: 8, FLOAT8E5M2FNUZ: 8, UINT4: 4, INT4: 4, FLOAT4E2M1: 4, FLOAT8E8M0: 8, UINT2: 2, INT2: 2, FLOAT6E2M3: 6, FLOAT6E3M2: 6 }; // prettier-ignore
  const typed: Record<string, number> = { COMPLEX64: 10, COMPLEX128: 10, UINT4: 3, INT4: 3, FLOAT4E2M1: 3, UINT2: 2, INT2: 2 };
  for (const [name, type] of Object.entries(T).filter((entry): entry is [string, T] => typeof entry[1] === "number")) {
    if (name === "UNDEFINED") continue;
    const { bits, typedCount } = DATA_TYPES[type];
    expect([name, dataTypeName(type), bits, typedCount(5)]).toEqual([name, name.toLowerCase(), widths[name], typed[name] ?? 5]);
  }
  expect(dataTypeName(999)).toBe("type 999");
});
