// Models of which a part runs in onnxruntime, the rest on a device: also beside onnxruntime's native kernels.
import { fromBinary } from "@bufbuild/protobuf";
import * as ort from "onnxruntime-node";
import { expect, it } from "vitest";
import { decoderModel } from "../../bench/decode-model.ts";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { f32, numbers } from "../runtime/make.ts";
import { describeBackend } from "./adapter.ts";

const near = (a: Float32Array, b: Float32Array): void => {
  expect(a).toHaveLength(b.length);
  for (const [i, v] of a.entries()) expect(Math.abs(v - b[i])).toBeLessThan(1e-4);
};

describeBackend("parts", (on) => {
  it("products on the device between parts in onnxruntime", async () => {
    const plain = encode(
      model(
        graph({
          input: [value("x", T.FLOAT, [3, 64])],
          output: [value("y", T.FLOAT, [3, 96]), value("z", T.FLOAT, [3, 96])],
          initializer: [raw("w", [64, 96], numbers(1, 6144, -0.3, 0.3))],
          node: [
            node("Shrink", ["x"], ["a"], { lambd: 0.5 }),
            node("MatMul", ["a", "w"], ["y"], {}, "product"),
            node("Hardmax", ["y"], ["z"]),
          ],
        }),
      ),
    );
    const { bytes } = await quantizeModelBytes(plain, { dtype: "q4" });
    const session = await loadModel(bytes, { ...on, fallback: "onnxruntime" });
    expect(session.explain().steps.map(({ kernel }) => kernel === "onnxruntime")).toEqual([true, false, true]);
    const x = f32(2, [3, 64]);
    const judge = await ort.InferenceSession.create(bytes);
    const [got, wanted] = [await session.run({ x }), await judge.run({ x: new ort.Tensor("float32", x.data, x.dims) })];
    near(got.y.data as Float32Array, wanted.y.data as Float32Array);
    expect(got.z.data).toEqual(wanted.z.data);
    await session.release();
    await judge.release();
  });

  it("a decoder whose logits go on in onnxruntime", async () => {
    const bytes = decoderModel({ hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 1, vocabulary: 96, positions: 32, level: 0 });
    const proto = fromBinary(ModelProtoSchema, bytes);
    proto.graph!.node.push(node("Hardmax", ["logits"], ["choice"]));
    proto.graph!.output.push(value("choice", T.FLOAT, [1, "tokens", 96]));
    const session = await loadModel(encode(proto), { ...on, fallback: "onnxruntime" });
    const judge = await loadModel(bytes);
    near(await session.decoder({ capacity: 16 }).prefill([1, 2, 3]), judge.decoder({ capacity: 16 }).prefill([1, 2, 3]));
    await session.release();
    await judge.release();
  });
});
