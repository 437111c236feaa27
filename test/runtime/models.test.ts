// Whole models against onnxruntime-node, and what a session says to bad input.
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "../onnx/build.ts";
import { encoderFeeds, encoderModel, FORMS } from "../onnx/encoder.ts";
import { compare } from "./judge.ts";

const fashion = readFileSync(new URL("../fixtures/fashion-cnn/fashion_cnn.onnx", import.meta.url));
const image = { type: "float32", dims: [2, 1, 28, 28], data: weights(2 * 784).map(Math.abs) };

test.each(FORMS)("encoder %j", async (form) => {
  await compare(encoderModel(form), encoderFeeds(1)[0], 2e-5);
});

test("encoder in 4-bit blocks", async () => {
  const { bytes } = await quantizeModelBytes(encoderModel(), { dtype: "q4" });
  const session = await loadModel(bytes);
  expect(session.explain().steps.filter(({ operator }) => operator === "com.microsoft.MatMulNBits").length).toBeGreaterThan(5);
  await compare(bytes, encoderFeeds(1)[0], 2e-5, session);
  await session.release();
});

test("encoder in dynamic int8", async () => {
  const { bytes } = await quantizeModelBytes(encoderModel(), { dtype: "uint8" });
  const session = await loadModel(bytes);
  expect(session.explain().steps.map(({ operator }) => operator)).toContain("lowbit.Scaled");
  await compare(bytes, encoderFeeds(1)[0], 2e-2, session);
  await session.release();
});

test("fashion-cnn", async () => {
  await compare(fashion, { image }, 2e-5);
});

const y = (nodes: ReturnType<typeof node>[]) =>
  encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", 4])],
        output: [value("y", T.FLOAT, ["n", 4])],
        initializer: [raw("two", [], Float32Array.of(2)), raw("three", [], Float32Array.of(3))],
        node: nodes,
      }),
    ),
  );

describe("session", () => {
  const x = { type: "float32", dims: [1, 4], data: Float32Array.of(1, 2, 3, 4) };
  const plain = y([node("Mul", ["two", "three"], ["six"]), node("Neg", ["x"], ["unused"]), node("Mul", ["x", "six"], ["y"], {}, "last")]);

  test("folds constants, drops dead nodes, describes itself", async () => {
    const session = await loadModel(new Blob([new Uint8Array(plain)]), { profile: true });
    expect((await session.run({ x })).y.data).toEqual(Float32Array.of(6, 12, 18, 24));
    expect(session.inputMetadata).toEqual([{ name: "x", isTensor: true, type: "float32", shape: ["n", 4] }]);
    expect(session.explain()).toMatchObject({
      runtime: "lowbit",
      folded: 1,
      dead: 1,
      steps: [{ name: "last", operator: "Mul", kernel: "loops" }],
    });
    await session.release();
    await expect(session.run({ x })).rejects.toMatchObject({ code: "E_DISPOSED" });
  });

  test.each([
    [{}, /expected "x", got no "x"/],
    [{ x, z: x }, /got also "z"/],
    [{ x: { ...x, type: "int64" } }, /expected float32 in its typed array, got int64/],
    [{ x: { ...x, dims: [4] } }, /expected \[n, 4\], got \[4\]/],
    [{ x: { ...x, dims: [2, 4] } }, /expected 8 elements/],
  ])("refuses feeds %#", async (feeds, message) => {
    const session = await loadModel(plain);
    await expect(session.run(feeds as never)).rejects.toThrow(message);
    await expect(session.run({ x }, ["z"])).rejects.toThrow(/expected some of "y", got "z"/);
    await session.release();
  });

  test("lists missing operators, or gives them to onnxruntime", async () => {
    const other = y([node("LpNormalization", ["x"], ["a"]), node("Hardmax", ["a"], ["y"])]);
    await expect(loadModel(other)).rejects.toMatchObject({
      code: "E_UNSUPPORTED",
      message: expect.stringContaining("Hardmax, LpNormalization"),
    });
    const session = await loadModel(other, { fallback: "onnxruntime" });
    expect(session.explain()).toMatchObject({ runtime: "onnxruntime", missing: ["Hardmax", "LpNormalization"] });
    expect((await session.run({ x })).y.dims).toEqual([1, 4]);
    await session.release();
  });
});

describe("branches", () => {
  const branch = (nodes: ReturnType<typeof node>[], output: string, initializer = [raw("k", [], Float32Array.of(10))]) =>
    graph({ name: "b", output: [value(output, T.FLOAT, ["n", 4])], initializer, node: nodes });
  const made = (condition: ReturnType<typeof raw> | null) =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["n", 4]), ...(condition === null ? [value("use_cache_branch", T.BOOL, [1])] : [])],
          output: [value("y", T.FLOAT, ["n", 4])],
          initializer: condition === null ? [] : [condition],
          node: [
            node("If", ["use_cache_branch"], ["p"], {
              then_branch: branch([node("Mul", ["x", "k"], ["t"]), node("Neg", ["t"], ["r"])], "r"),
              // a branch that only hands on a value from outside, and one of its own names again
              else_branch: branch([node("Add", ["x", "k"], ["t"]), node("Identity", ["t"], ["r"])], "r"),
            }),
            node("Add", ["p", "x"], ["y"]),
          ],
        }),
      ),
    );
  const x = { type: "float32", dims: [1, 4], data: Float32Array.of(1, 2, 3, 4) };

  test.each([0, 1])("of a condition that is fed: %i", async (flag) => {
    await compare(made(null), { x, use_cache_branch: { type: "bool", dims: [1], data: Uint8Array.of(flag) } }, 1e-6);
  });

  test.each([0, 1])("of a constant condition: %i", async (flag) => {
    const bytes = made(raw("use_cache_branch", [1], Uint8Array.of(flag), T.BOOL));
    const session = await loadModel(bytes);
    expect(session.explain().steps.map(({ operator }) => operator)).not.toContain("lowbit.Pick");
    await compare(bytes, { x }, 1e-6, session);
  });
});

test.each([
  ["fp16", {}],
  ["q4f16", {}],
  ["mxfp4 stored", { format: "mxfp4", target: "stored" }],
  ["nf4 bnb4", { dtype: "bnb4" }],
  ["int4 qdq", { format: "int4_b32", target: "qdq" }],
] as const)("encoder as %s", async (name, options) => {
  const { bytes } = await quantizeModelBytes(encoderModel(), (Object.keys(options).length > 0 ? options : { dtype: name }) as never);
  await compare(bytes, encoderFeeds(1)[0], name.includes("16") ? 2e-2 : 2e-5);
});
