// fp16 of every operator with float inputs, in every opset where its form changed: the file loads in onnxruntime and
// gives what it gave.
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema, ValueInfoProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { QuantizeBytesOptions } from "../../src/onnx/index.ts";

import { encodeHalf, halfTable } from "../../src/onnx/file/half.ts";
import { T, encode, graph, model, node, raw, value, weights } from "./build.ts";
import type { Specimen } from "./zoo.ts";
import { ZOO } from "./zoo.ts";
import { quantizeModelBytes } from "./kept.ts";

function specimenModel(specimen: Specimen, opset: number): Uint8Array {
  // Around the operator: nodes that become float16 whatever it does.
  const proto = model(
    graph({
      input: [value("x0", T.FLOAT, specimen.x)],
      output: [create(ValueInfoProtoSchema, { name: "y0" })],
      initializer: [...specimen.init, raw("gain", [], Float32Array.of(0.5))],
      node: [node("Mul", ["x0", "gain"], ["x"]), ...specimen.nodes.map((made) => structuredClone(made)), node("Identity", ["y"], ["y0"])],
    }),
    { opset, ir: 9 },
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}

async function run(bytes: Uint8Array, dims: number[]): Promise<{ type: string; values: number[] }> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  try {
    const half = (session.inputMetadata[0] as { type: string }).type === "float16";
    const data = weights(
      dims.reduce((a, b) => a * b, 1),
      3,
    );
    const x = half ? new Tensor("float16", Uint16Array.from(data, encodeHalf), dims) : new Tensor("float32", data, dims);
    const { y0 } = await session.run({ x0: x });
    const table = halfTable();
    const values = Array.from(y0.data as ArrayLike<number>, (v) => (y0.type === "float16" ? table[v] : Number(v)));
    return { type: y0.type, values };
  } finally {
    await session.release();
  }
}

function decibels(a: readonly number[], b: readonly number[]): number {
  if (a.length !== b.length) return -Infinity;
  let signal = 0;
  let noise = 0;
  a.forEach((v, i) => {
    signal += v * v;
    noise += (v - b[i]) ** 2;
  });
  return noise === 0 ? Infinity : 10 * Math.log10(signal / noise);
}

/** Everything that is wrong with the conversion of one specimen; "" where nothing is. */
async function fault(specimen: Specimen, opset: number, options: Partial<QuantizeBytesOptions>): Promise<string> {
  const bytes = specimenModel(specimen, opset);
  const label = `${specimen.what}, opset ${opset}`;
  let before: Awaited<ReturnType<typeof run>>;
  try {
    before = await run(bytes, specimen.x);
  } catch {
    return ""; // this runtime has no float32 form either
  }
  try {
    const converted = await quantizeModelBytes(bytes, { dtype: "fp16", ...options });
    const after = await run(converted.bytes, specimen.x);
    const db = decibels(before.values, after.values);
    if (options.keepIoTypes !== false && after.type !== before.type) return `${label}: ${after.type}, was ${before.type}`;
    return db >= 45 || (specimen.what === "DynamicQuantizeLinear" && db > 35) ? "" : `${label}: ${db.toFixed(1)} dB`;
  } catch (error) {
    return `${label}: ${(error as Error).message.slice(0, 200)}`;
  }
}

describe.each([
  ["", {}, [10, 17, 24]],
  [" with float16 inputs and outputs", { keepIoTypes: false }, [12]],
  [" that may all be converted", { blockedOps: [] }, [21]],
])("operators%s", (_, options, opsets) => {
  it.each(opsets)("opset %i", async (opset) => {
    const faults: string[] = [];
    for (const specimen of ZOO) {
      if (opset < specimen.from || opset >= specimen.until) continue;
      const found = await fault(specimen, opset, options);
      if (found !== "") faults.push(found);
    }
    expect(faults).toEqual([]);
  });
});

it("a product below float16's range: the float32 result, rounded to float16", async () => {
  // The zoo has ReduceProd over two values: eight of the size of 0.1 are 1e-8, which is none of float16's numbers.
  // Nothing is wrong then but the format.
  const product = ZOO.find(({ what }) => what === "ReduceProd")!;
  const nodes = product.nodes.map((made) => structuredClone(made));
  nodes.find(({ opType }) => opType === "ReduceProd")!.attribute[0].ints = [1n, 3n];
  const bytes = specimenModel({ ...product, nodes }, 13);
  const [before, after] = [await run(bytes, product.x), await run((await quantizeModelBytes(bytes, { dtype: "fp16" })).bytes, product.x)];
  expect(Math.min(...before.values.map(Math.abs))).toBeLessThan(2 ** -24);
  before.values.forEach((v, i) => expect(Math.abs(after.values[i] - v)).toBeLessThanOrEqual(Math.abs(v) * 2 ** -7 + 2 ** -24));
});
