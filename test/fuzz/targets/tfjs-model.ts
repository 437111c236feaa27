// Folders of TensorFlow.js models: model.json with weights of every storage, in shards.
import { dequantize, quantize, tensor, toBytes } from "../../../src/index.ts";
import { format, type BlockFormat } from "../../../formats/index.ts";
import { rowAxes } from "../../../src/tfjs/model/consumers.ts";
import { readTfjsModel } from "../../../src/tfjs/model/read.ts";
import { floatValues, packedWeight } from "../../../src/tfjs/model/values.ts";
import type { FuzzTarget } from "../fuzz.ts";
import { archive, damageFolder, filled, json, withFolder, type Folder } from "./folder.ts";
import { normalArray } from "../../helpers/random.ts";

const WORDS = [
  ...["float32", "int32", "bool", "string", "complex64", "uint8", "uint16", "float16", "lowbit", "weights", "paths", "name", "shape"],
  ...["../model.json", "/etc/passwd", "http://localhost:9/x", "a.bin", "b.bin", "kernel", "layers-model", "graph-model", "MatMul"],
  ...["dtype", "quantization", "scale", "min", "rows", "bytes", "inputs", "constructor", "__proto__"],
];

const packed = toBytes(quantize(tensor(normalArray(8 * 32, 3), [8, 32]), format("int4_b32") as BlockFormat));

const weights = [
  { name: "dense/kernel", shape: [32, 8], dtype: "float32" },
  { name: "dense/bias", shape: [8], dtype: "float32", quantization: { dtype: "float16", original_dtype: "float32" } },
  { name: "a", shape: [4, 4], dtype: "float32", quantization: { dtype: "uint8", scale: 0.1, min: -1, original_dtype: "float32" } },
  { name: "b", shape: [6], dtype: "int32", quantization: { dtype: "uint16", scale: 1, min: 0, original_dtype: "int32" } },
  { name: "words", shape: [2], dtype: "string" },
  { name: "packed", shape: [32, 8], dtype: "float32", quantization: { dtype: "lowbit", bytes: packed.length, rows: 1 } },
];
const data = new Uint8Array([
  ...new Uint8Array(normalArray(256, 1).buffer),
  ...filled(16, 2).map((v, i) => (i % 2 === 1 ? 0x30 : v)),
  ...filled(16, 3),
  ...filled(12, 4),
  ...[1, 0, 0, 0, 65, 2, 0, 0, 0, 66, 67],
  ...packed,
]);
const cut = 1000;
const node = (name: string, op: string, input: string[] = []) => ({ name, op, input, attr: {} });
const layer = { class_name: "Dense", config: { name: "dense", units: 8, batch_input_shape: [null, 32] } };

const topologies = [
  { format: "layers-model", modelTopology: { model_config: { class_name: "Sequential", config: { name: "s", layers: [layer] } } } },
  {
    format: "graph-model",
    modelTopology: {
      node: [node("x", "Placeholder"), node("dense/kernel", "Const"), node("packed", "Const"), node("y", "MatMul", ["x", "packed"])],
    },
  },
];

const seeds: Folder[] = topologies.map((topology) => ({
  "model.json": json({ ...topology, weightsManifest: [{ paths: ["a.bin", "b.bin"], weights }] }),
  "a.bin": data.subarray(0, cut),
  "b.bin": data.subarray(cut),
}));

export const tfjsModel: FuzzTarget = {
  name: "tfjs-model",
  runs: 300,
  make(rng) {
    const folder = seeds[rng.integer(seeds.length)];
    return rng.next() < 0.03 ? archive(folder) : damageFolder(rng, folder, WORDS);
  },
  run: (input) =>
    withFolder(input, async (folder) => {
      const model = await readTfjsModel(folder);
      const axisOf = rowAxes(model.json);
      for (const weight of model.groups.flat()) {
        const { dtype, quantization } = weight.entry;
        axisOf(weight.entry);
        if (dtype === "float32") void (quantization?.dtype === "lowbit" ? dequantize(packedWeight(weight)) : floatValues(weight));
      }
      return undefined;
    }),
};
