// bfloat16 initializers as lossless tensors, in whichever field of the message they are.
import { create, toBinary } from "@bufbuild/protobuf";
import { expect, it } from "vitest";
import { losslessBits } from "../../src/index.ts";
import { losslessInitializers, readModelBytes } from "../../src/onnx/index.ts";
import { GraphProtoSchema, ModelProtoSchema, TensorProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";

it("reads raw and typed data, small and large, and leaves other types", () => {
  const bits = Uint16Array.from({ length: 2000 }, (_, i) => (i * 33) & 0xffff);
  const raw = (n: number) => new Uint8Array(bits.buffer.slice(0, 2 * n));
  const typed = [0x3f80, 0xbf80, 0x8000, 1, 0x7f80, 0x4049];
  const initializer = [
    create(TensorProtoSchema, { name: "large", dataType: 16, dims: [40n, 50n], rawData: raw(2000) }),
    create(TensorProtoSchema, { name: "small", dataType: 16, dims: [4n], rawData: raw(4) }),
    create(TensorProtoSchema, { name: "typed", dataType: 16, dims: [2n, 3n], int32Data: typed }),
    create(TensorProtoSchema, { name: "float", dataType: 1, dims: [1n], floatData: [1] }),
  ];
  const model = create(ModelProtoSchema, {
    irVersion: 8n,
    opsetImport: [{ version: 17n }],
    graph: create(GraphProtoSchema, { name: "g", initializer }),
  });
  const found = losslessInitializers(readModelBytes(toBinary(ModelProtoSchema, model)));
  expect([...found.keys()].sort()).toEqual(["large", "small", "typed"]);
  expect(losslessBits(found.get("large")!)).toEqual(bits);
  expect(losslessBits(found.get("small")!)).toEqual(bits.slice(0, 4));
  expect([...losslessBits(found.get("typed")!)]).toEqual(typed);
  expect(found.get("typed")!.shape).toEqual([2, 3]);
});
