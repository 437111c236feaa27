// Inputs of float16 in onnxruntime-node, in this process and in another one, on engines with a Float16Array too (whose
// tensors its binding reads as empty; npm run test:node24 runs this file).
import { expect, test } from "vitest";
import { openSession } from "../../src/onnx/session.ts";
import { verifyModels } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, T, value } from "./build.ts";

const CODES = Uint16Array.of(0x3c00, 0x4000, 0xc200); // 1, 2, -3
const Half = (globalThis as unknown as { Float16Array?: new (from: Iterable<number>) => Uint16Array }).Float16Array;
const FEEDS = [CODES, ...(Half === undefined ? [] : [new Half([1, 2, -3])])];
const half = (name: string) => value(name, T.FLOAT16, [3]);
const nodes = (opType: string, attributes = {}) => [node(opType, ["x"], ["h"], attributes), node("Cast", ["h"], ["y"], { to: 1n })];
const doubled = encode(model(graph({ input: [half("x")], output: [value("y", T.FLOAT, [3])], node: [node("Add", ["x", "x"], ["h"]), node("Cast", ["h"], ["y"], { to: 1n })] }))); // prettier-ignore

test.each(FEEDS)("runs of calibration: %o", async (data) => {
  const session = await openSession(doubled, { label: "model", remedy: "" });
  const { y } = await session.run({ x: { type: "float16", data: data as Uint16Array, dims: [3] } });
  expect([...(y.data as Float32Array)]).toEqual([2, 4, -6]);
  await session.release();
});

test("verification", async () => {
  const { ok, outputs } = await verifyModels(doubled, doubled, { samples: 2 });
  expect([ok, outputs[0].sqnrDb, outputs[0].noEvidence]).toEqual([true, Infinity, null]);
});

test.each(FEEDS)("models with an operator that the runtime lacks: %o", async (data) => {
  const bytes = encode(model(graph({ input: [half("x")], output: [value("y", T.FLOAT, [3])], node: nodes("Hardmax", { axis: 0n }) }))); // prettier-ignore
  const session = await loadModel(bytes, { fallback: "onnxruntime" });
  expect(session.explain().runtime).toBe("onnxruntime");
  const { y } = await session.run({ x: { type: "float16", data, dims: [3] } });
  expect([...(y.data as Float32Array)]).toEqual([0, 1, 0]);
  await session.release();
});
