// Files around a conversion: arrays of every type as calibration data, config.json of a folder, layers of experts.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { readSafetensorsFeeds } from "../../src/onnx/calibrate/npy.ts";
import { quantizeFolder, quantizeModelBytes, readModelBytes } from "../../src/onnx/index.ts";
import { encode, graph, matmulModel, model, node, raw, T, value, weights } from "./build.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-feeds-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("safetensors as feeds", () => {
  const file = (dtype: string, data: ArrayBufferView, count: number): Uint8Array => {
    const header = new TextEncoder().encode(JSON.stringify({ x: { dtype, shape: [count], data_offsets: [0, data.byteLength] } }).padEnd(80)); // prettier-ignore
    const out = new Uint8Array(8 + header.length + data.byteLength);
    new DataView(out.buffer).setBigUint64(0, BigInt(header.length), true);
    out.set(header, 8);
    out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 8 + header.length);
    return out;
  };
  test.each<[string, string, ArrayBufferView & ArrayLike<number | bigint>]>([
    ["F32", "float32", Float32Array.of(1, -2)],
    ["F64", "float64", Float64Array.of(1, -2)],
    ["F16", "float16", Uint16Array.of(0x3c00, 0xc000)],
    ["I64", "int64", BigInt64Array.of(1n, -2n)],
    ["I32", "int32", Int32Array.of(1, -2)],
    ["I16", "int16", Int16Array.of(1, -2)],
    ["I8", "int8", Int8Array.of(1, -2)],
    ["U64", "uint64", BigUint64Array.of(1n, 2n)],
    ["U32", "uint32", Uint32Array.of(1, 2)],
    ["U16", "uint16", Uint16Array.of(1, 2)],
    ["U8", "uint8", Uint8Array.of(1, 2)],
    ["BOOL", "bool", Uint8Array.of(1, 0)],
  ])("%s is %s", async (dtype, type, data) => {
    const x = (await readSafetensorsFeeds(file(dtype, data, 2), "a.safetensors")).get("x")!;
    expect([x.type, x.dims]).toEqual([type, [2]]);
    expect(Array.from(x.data as ArrayLike<number | bigint>)).toEqual(Array.from(data));
  });
  test("others are refused with the types that there are", async () => {
    await expect(readSafetensorsFeeds(file("BF16", Uint16Array.of(1, 2), 2), "a")).rejects.toThrow(/a: expected one of F32 F64 F16 .* for x, got BF16/); // prettier-ignore
  });
});

describe("config.json of a folder", () => {
  const made = async (name: string, config: unknown): Promise<Record<string, unknown> | null> => {
    const at = join(folder, name, "onnx");
    mkdirSync(at, { recursive: true });
    writeFileSync(join(at, "model.onnx"), encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32)));
    if (config !== undefined) writeFileSync(join(folder, name, "config.json"), JSON.stringify(config));
    await quantizeFolder(at, { dtypes: ["q4"], externalData: true });
    const path = join(folder, name, "config.json");
    return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>) : null;
  };
  test("says where data lies outside, and keeps what it said of other files", async () => {
    const named = { "encoder.onnx": 2, decoder: 1 };
    expect(await made("named", { a: 1, "transformers.js_config": { use_external_data_format: named, b: 2 } })).toEqual({
      a: 1,
      "transformers.js_config": { use_external_data_format: { ...named, "model_q4.onnx": 1 }, b: 2 },
    });
    for (const nothing of [null, "text", undefined])
      expect((await made(`nothing-${String(nothing)}`, { "transformers.js_config": { use_external_data_format: nothing } }))!["transformers.js_config"]).toEqual({ use_external_data_format: { "model_q4.onnx": 1 } }); // prettier-ignore
    expect((await made("all", { "transformers.js_config": { use_external_data_format: 3 } }))!["transformers.js_config"]).toEqual({
      use_external_data_format: { model: 3, "model_q4.onnx": 1 },
    });
  });
});

test("experts of which one weight stays all stay, with the reason; without a name the node is called by its output", async () => {
  const moe = (name: string) => {
    const proto = model(graph({ input: [value("x", T.FLOAT, ["t", 32]), value("p", T.FLOAT, ["t", 2])], output: [value("y", T.FLOAT, ["t", 32])], initializer: [raw("u", [2, 64, 32], weights(4096)), raw("d", [2, 32, 64], weights(4096, 2))], node: [Object.assign(node("MoE", ["x", "p", "u", "", "d"], ["y"], { k: 1n, activation_type: "relu" }, name), { domain: "com.microsoft" })] })); // prettier-ignore
    proto.opsetImport.push({ ...proto.opsetImport[0], domain: "com.microsoft", version: 1n });
    return encode(proto);
  };
  const whole = await quantizeModelBytes(moe("experts"), { dtype: "q4" });
  const names = whole.report.layers.map((layer) => layer.name);
  expect(names).toHaveLength(2);
  expect(readModelBytes(whole.bytes).proto.graph!.node.map(({ opType, name }) => [opType, name])).toEqual([
    ["Softmax", "experts_router_weights"],
    ["QMoE", "experts_Q4"],
  ]);
  const unnamed = await quantizeModelBytes(moe(""), { dtype: "q4" });
  expect(readModelBytes(unnamed.bytes).proto.graph!.node.map(({ name }) => name)).toEqual(["y_router_weights", "y_Q4"]);
  const part = await quantizeModelBytes(moe("experts"), { dtype: "q4", exclude: [names[0]], allowUnchanged: true });
  expect(part.report.layers.map(({ reason }) => reason)).toEqual([
    `excluded by ${names[0]}`,
    "QMoE has all weights of its experts in codes, and another one stays",
  ]);
  const mixed = await quantizeModelBytes(moe("experts"), { format: "int4_b32", rules: [{ match: names[0], format: "int8_b32" }], allowUnchanged: true, target: "matmulnbits" }); // prettier-ignore
  expect(mixed.report.layers.map(({ reason }) => reason)).toEqual(Array(2).fill("QMoE has one number of bits and one block size for all weights")); // prettier-ignore
});
