// Models of integerOnly in the runtime: onnxruntime's numbers bit for bit, and a plan without floats.
import * as ort from "onnxruntime-node";
import { expect, test } from "vitest";
import { reference } from "../../src/backends/reference.ts";
import { wasm } from "../../src/backends/wasm/backend.ts";
import { integerOnly, readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { execute } from "../../src/runtime/machine/execute.ts";
import { makePlan, readGraph } from "../../src/runtime/compile/plan.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encoderFeeds, encoderModel, FORMS } from "../onnx/encoder.ts";

test.each([
  [FORMS[0], "table"],
  [FORMS[2], "shift"],
] as const)("%j by %s", async (form, functions) => {
  const { bytes } = await integerOnly(encoderModel(form), { calibration: encoderFeeds(2), functions });
  const [feeds] = encoderFeeds(1, 2, 9);
  const ids = { type: "int64" as const, data: feeds.ids.data, dims: feeds.ids.dims };
  const judge = await ort.InferenceSession.create(bytes, { logSeverityLevel: 3, intraOpNumThreads: 1, graphOptimizationLevel: "disabled" });
  const want = Object.values(await judge.run({ ids: new ort.Tensor("int64", ids.data, ids.dims) }))[0].data;
  const backend = await wasm();
  const session = await loadModel(bytes, { backend });
  expect(Object.values(await session.run({ ids }))[0].data).toEqual(want);
  session.release();
  const loops = await loadModel(bytes, { backend: "reference" });
  expect(Object.values(await loops.run({ ids }))[0].data).toEqual(want);
  loops.release();
  backend.dispose();
});

test("no step but the last makes a float", async () => {
  const { bytes } = await integerOnly(encoderModel(FORMS[0]), { calibration: encoderFeeds(2) });
  const model = readModelBytes(bytes);
  const plan = await makePlan(model, readGraph(model), { backend: reference, activations: "auto" });
  const [feeds] = encoderFeeds(1);
  const fed = new Map([["ids", { type: "int64" as const, data: feeds.ids.data, dims: feeds.ids.dims }]]);
  // nothing is let go, so that every value can be looked at
  const whole = { ...plan, steps: plan.steps.map((step) => ({ ...step, frees: [] })) };
  const read = await execute({ machine: null, plan: whole, fed });
  const floats = plan.steps.filter(({ node }) => node.output.some((name) => read(name)?.type === "float32"));
  expect(floats.map(({ operator }) => operator)).toEqual(["DequantizeLinear"]);
  expect([...plan.constants.values()].filter(({ type }) => type === "float32")).toHaveLength(1);
  for (const layer of plan.layers) layer.dispose();
});

test("functions of this domain with another body are not run as ours", async () => {
  const { bytes } = await integerOnly(encoderModel(FORMS[0]), { calibration: encoderFeeds(1) });
  const model = readModelBytes(bytes);
  model.proto.functions[0].node.at(-1)!.opType = "Identity";
  await expect(loadModel(writeModelBytes(model), { backend: "reference" })).rejects.toThrow(/of another body/);
});
