// Shapes and values that no honest model has: clear errors, the session still works, nothing stays behind.
import { expect, test } from "vitest";
import { wasm } from "../../src/index.ts";
import { loadModel, type RuntimeTensor } from "../../src/runtime/index.ts";
import { decoderModel } from "../../bench/decode-model.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";

const dims = (...values: (number | bigint)[]) => ({ type: "int64", dims: [values.length], data: BigInt64Array.from(values, BigInt) });
const shaped = (opType: string, output = T.FLOAT) =>
  encode(
    model(
      graph({
        input: [
          ...(opType === "Expand" || opType === "Reshape" || opType === "Tile" ? [value("x", T.FLOAT, [1, 1])] : []),
          value("s", T.INT64, ["n"]),
        ],
        output: [value("y", output, ["a", "b"])],
        node: [node(opType, opType === "ConstantOfShape" ? ["s"] : ["x", "s"], ["y"])],
      }),
    ),
  );
const x = { type: "float32", dims: [1, 1], data: Float32Array.of(3) };

test.each(["Expand", "Reshape", "Tile", "ConstantOfShape"])("%s to a shape that no memory holds", async (opType) => {
  const session = await loadModel(shaped(opType));
  const feeds = (s: ReturnType<typeof dims>) => (opType === "ConstantOfShape" ? { s } : { x, s }) as Record<string, RuntimeTensor>;
  for (const s of [dims(2n ** 31n, 2n ** 31n), dims(2n ** 62n, 2n ** 62n), dims(-5, 7)])
    await expect(session.run(feeds(s))).rejects.toMatchObject({ code: expect.stringMatching(/E_SHAPE|E_VALUE/) });
  expect((await session.run(feeds(dims(1, 1)))).y.dims).toEqual([1, 1]);
  await session.release();
});

test("runs wait for each other; a release ends those that wait", async () => {
  const nodes = Array.from({ length: 40 }, (_, i) => node("MatMul", [i === 0 ? "x" : `v${i}`, "w"], [i === 39 ? "y" : `v${i + 1}`]));
  const w = new Float32Array(64 * 64).fill(1 / 64);
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", 64])],
        output: [value("y", T.FLOAT, ["n", 64])],
        initializer: [raw("w", [64, 64], w)],
        node: nodes,
      }),
    ),
  );
  const session = await loadModel(bytes);
  const feed = (v: number) => ({ x: { type: "float32", dims: [300, 64], data: new Float32Array(300 * 64).fill(v) } });
  const answers = await Promise.all([1, 2, 3].map((v) => session.run(feed(v))));
  expect(answers.map(({ y }) => (y.data as Float32Array)[5])).toEqual([1, 2, 3]);
  const waiting = session.run(feed(1));
  const end = session.release();
  await expect(waiting).rejects.toMatchObject({ code: "E_DISPOSED" });
  await end;
});

test("a failure in the middle leaves no values behind", async () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", 300]), value("s", T.INT64, ["k"])],
        output: [value("y", T.FLOAT, ["a", "b"])],
        node: [node("Neg", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Reshape", ["b", "s"], ["y"])],
      }),
    ),
  );
  const backend = await wasm();
  const session = await loadModel(bytes, { backend });
  const run = (s: ReturnType<typeof dims>) => session.run({ x: { type: "float32", dims: [4, 300], data: new Float32Array(1200) }, s });
  expect((await run(dims(300, 4))).y.dims).toEqual([300, 4]);
  const held = backend.bytes;
  for (let i = 0; i < 20; i++) await expect(run(dims(7, 7))).rejects.toMatchObject({ code: "E_SHAPE" });
  expect(backend.bytes).toBe(held);
  expect((await run(dims(300, 4))).y.data).toEqual(new Float32Array(1200).fill(1));
  await session.release();
  backend.dispose();
});

test("models and decoders that come and go leave the memory as it was", async () => {
  const bytes = decoderModel({ hidden: 64, heads: 4, kvHeads: 2, size: 16, ffn: 96, layers: 1, vocabulary: 96, positions: 32, level: 0 });
  const backend = await wasm();
  const round = async (): Promise<number> => {
    const session = await loadModel(bytes, { backend });
    const decoder = session.decoder({ capacity: 16 });
    decoder.prefill([1, 2, 3]);
    decoder.step(4);
    await session.release();
    expect(() => decoder.step(5)).toThrow(expect.objectContaining({ code: "E_DISPOSED" }));
    return backend.bytes;
  };
  const first = await round();
  for (let i = 0; i < 8; i++) expect(await round()).toBe(first);
  backend.dispose();
});
