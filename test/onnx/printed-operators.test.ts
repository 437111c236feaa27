// Every operator of the zoo as float16 and at later opsets, as text against stored text. That the files run and compute
// the same is in fp16-operators and opset tests; here nothing of them may change unseen.
import { describe, test } from "vitest";
import { buildScopes, collectNames, sortNodes } from "../../src/onnx/graph/graph.ts";
import { raiseOpset } from "../../src/onnx/graph/opset.ts";
import { quantizeModelBytes, readModelBytes, summarizeModel } from "../../src/onnx/index.ts";
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, encode, graph, model, value } from "./build.ts";
import { modelText, reportText, storedTexts } from "./printed.ts";
import { ZOO, type Specimen } from "./zoo.ts";

function build({ nodes, init, x }: Specimen, opset: number): Uint8Array {
  const proto = model(graph({ input: [value("x", T.FLOAT, x)], output: [value("y", T.FLOAT, [])], initializer: init, node: nodes }), { opset, ir: opset < 11 ? 4 : 8 }); // prettier-ignore
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}

const titles = new Map<string, number>();
const specimens = ZOO.map((specimen) => {
  const nth = titles.get(specimen.what) ?? 0;
  titles.set(specimen.what, nth + 1);
  return { specimen, title: nth === 0 ? specimen.what : `${specimen.what} ${nth + 1}` };
});

describe("float16", () => {
  const stored = storedTexts("fp16");
  test("every operator at the first opset of its form and a late one", async () => {
    for (const { specimen, title } of specimens) {
      const opsets = [...new Set([specimen.from, Math.max(specimen.from, Math.min(specimen.until - 1, 21))])];
      for (const opset of opsets) {
        const { bytes, report } = await quantizeModelBytes(build(specimen, opset), { dtype: "fp16", allowUnchanged: true });
        stored(`${title} at ${opset}`, `${modelText(bytes)}\n${reportText(report)}`);
      }
    }
  });
  test("inputs and outputs of float16, operators kept", async () => {
    for (const { specimen, title } of specimens.filter((_, i) => i % 5 === 0)) {
      const options = { dtype: "fp16", keepIoTypes: false, blockedOps: ["Add", "MatMul", "Conv"], keepOps: ["Relu", "Abs"], clamp: [1e-4, 1000] } as const; // prettier-ignore
      const { bytes, report } = await quantizeModelBytes(build(specimen, specimen.from), { ...options, blockedOps: [...options.blockedOps], keepOps: [...options.keepOps], clamp: [1e-4, 1000], allowUnchanged: true }); // prettier-ignore
      stored(`${title}, all float16`, `${modelText(bytes)}\n${reportText(report)}`);
    }
  });
});

const raisedTexts = storedTexts("opsets");
test("opsets raised", () => {
  for (const { specimen, title } of specimens) {
    for (const from of new Set([specimen.from, Math.min(specimen.until - 1, 13)]))
      for (const to of [11, 13, 18, 21].filter((version) => version > from)) {
        const opened = readModelBytes(build(specimen, from));
        const scopes = buildScopes(opened);
        sortNodes(scopes);
        const reason = raiseOpset({ model: opened, scopes, names: collectNames(scopes) }, to);
        raisedTexts(`${title} from ${from} to ${to}`, reason ?? modelText(opened));
      }
  }
});

const summaries = storedTexts("summaries");
test("summaries", () => {
  for (const { specimen, title } of specimens)
    summaries(title, JSON.stringify(summarizeModel(readModelBytes(build(specimen, specimen.from)))));
});
