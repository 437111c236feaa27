// Models of very many nodes: q4, q8 and fp16 of 10,000 and 100,000 nodes (element-wise chains with a product every
// hundred, all of one name), in time and memory. What counts is the time of a node, which should not grow with the
// model.
import { create } from "@bufbuild/protobuf";
import { quantizeModelBytes } from "../src/onnx/index.ts";
import type { NodeProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema } from "../src/onnx/file/gen/onnx_pb.ts";
import { T, encode, graph, model, raw, value, weights } from "../test/onnx/build.ts";
import type { Row } from "./measure.ts";

function chain(count: number): Uint8Array {
  const nodes: NodeProto[] = [];
  for (let i = 0; i < count; i++) {
    const from = i === 0 ? "x" : `v${i - 1}`;
    const product = i % 100 === 50;
    const input = product ? [from, `w${i % 1000}`] : [from];
    nodes.push(
      create(NodeProtoSchema, { opType: product ? "MatMul" : "Relu", name: "same", input, output: [i === count - 1 ? "y" : `v${i}`] }),
    );
  }
  const initializer = Array.from({ length: 10 }, (_, i) => raw(`w${100 * i + 50}`, [32, 32], weights(1024, i + 1)));
  return encode(model(graph({ input: [value("x", T.FLOAT, [1, 32])], output: [value("y", T.FLOAT, [1, 32])], initializer, node: nodes })));
}

export async function nodes(): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const rows: Row[] = [];
  const ratios: Record<string, number> = {};
  for (const dtype of ["q4", "q8", "fp16"] as const) {
    const perNode: number[] = [];
    for (const count of [10_000, 100_000]) {
      const bytes = chain(count);
      const times: number[] = [];
      const from = process.cpuUsage();
      for (let run = 0; run < 3; run++) {
        const start = performance.now();
        await quantizeModelBytes(bytes, { dtype });
        times.push(performance.now() - start);
      }
      const { user, system } = process.cpuUsage(from);
      times.sort((a, b) => a - b);
      rows.push({ name: `${dtype}, ${count} nodes`, bestMs: times[0], medianMs: times[1], cpuMs: (user + system) / 3000, runs: 3 });
      perNode.push((user + system) / count);
      ratios[`${dtype}: MiB held by ${count} nodes of ${(bytes.length / 2 ** 20).toFixed(1)} MiB`] =
        process.memoryUsage().heapUsed / 2 ** 20;
    }
    ratios[`${dtype}: processor time of a node, 100,000 over 10,000`] = perNode[1] / perNode[0];
  }
  return { rows, ratios, missing: [] };
}
