// Stages of calibration: what is kept from one to the next, what is held at a time, and when a stage begins anew.
import { expect, test } from "vitest";
import { collectPasses, inputGroups, STRETCH } from "../../src/onnx/calibrate/statistics.ts";
import { keeper } from "../../src/onnx/calibrate/keep.ts";
import { modelRunner } from "../../src/onnx/calibrate/taps.ts";
import { modelLayers, readModelBytes, writeWeight, type Feeds, type OnnxModel } from "../../src/onnx/index.ts";
import type { NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";

const opened = (input: ValueInfoProto[], initializer: TensorProto[], nodes: NodeProto[]): OnnxModel =>
  readModelBytes(encode(model(graph({ input, output: [value("y", T.FLOAT, [])], initializer, node: nodes }))));

const K = 8;
const chain = (): OnnxModel =>
  opened(
    [value("x", T.FLOAT, ["batch", K])],
    [0, 1, 2].map((i) => raw(`w${i}`, [K, K], weights(K * K, i + 1).map((v) => 3 * v))), // prettier-ignore
    [0, 1, 2].map((i) => node("MatMul", [i === 0 ? "x" : `h${i - 1}`, `w${i}`], [i === 2 ? "y" : `h${i}`], {}, `mm${i}`)),
  );
const feeds: Feeds[] = [1, 2].map((seed) => ({ x: { type: "float32", data: weights(4 * K, seed), dims: [4, K] } }));

async function stage(runner: ReturnType<typeof modelRunner>, name: string, later: string[]): Promise<number[]> {
  const out: number[] = [];
  for await (const values of runner.stage([name], later)) out.push(...(values.get(name)!.data as Float32Array));
  return out;
}

test.each([
  ["kept on disk", { memoryBytes: 0 }, true],
  ["kept in memory", {}, true],
  ["with room for all but a byte", { keepBytes: 2 * 4 * 4 * K - 1 }, false],
  ["with room for all", { keepBytes: 2 * 4 * 4 * K }, true],
  ["with no room", { keepBytes: 0 }, false],
])("a later stage goes on from what an earlier one computed: %s", async (_, options, kept) => {
  const [m, untouched] = [chain(), chain()];
  const runner = modelRunner(m, feeds, options);
  await stage(runner, "h0", ["h1"]);
  writeWeight(m, modelLayers(m)[0], new Float32Array(K * K));
  const got = await stage(runner, "h1", []);
  runner.close();
  const want = await stage(modelRunner(untouched, feeds), "h1", []);
  expect(got).toEqual(kept ? want : want.map(() => 0));
});

test.each<[string, number, number]>([
  ["float32", T.FLOAT, 4],
  ["float64", T.DOUBLE, 8],
  ["float16", T.FLOAT16, 2],
  ["int64", T.INT64, 8],
  ["int32", T.INT32, 4],
  ["int16", T.INT16, 2],
  ["uint16", T.UINT16, 2],
  ["int8", T.INT8, 1],
  ["uint8", T.UINT8, 1],
  ["bool", T.BOOL, 1],
])("values of %s are kept up to the bytes that they have", async (_, type, bytes) => {
  const same = async (room: number): Promise<boolean> => {
    const m = opened([value("x", T.FLOAT, ["batch", K])], [], [node("Abs", ["x"], ["a"]), node("Cast", ["a"], ["c"], { to: BigInt(type) }), node("Cast", ["c"], ["y"], { to: 1n })]); // prettier-ignore
    const runner = modelRunner(m, [{ x: { type: "float32", data: new Float32Array(2 * K).fill(-1), dims: [2, K] } }], { keepBytes: room });
    await stage(runner, "c", ["y"]);
    m.proto.graph!.node[0].opType = "Relu"; // what was kept is not computed again
    const got = await stage(runner, "y", []);
    runner.close();
    return got.every((v) => v === 1);
  };
  expect([await same(2 * K * bytes - 1), await same(2 * K * bytes)]).toEqual([false, true]);
});

test("of a sequence, which the runtime does not give, what it is made of is kept", async () => {
  const m = opened(
    [value("x", T.FLOAT, [2, K])],
    [raw("zero", [], BigInt64Array.of(0n), T.INT64), raw("one", [], BigInt64Array.of(1n), T.INT64)],
    [
      node("Neg", ["x"], ["n"]),
      node("SplitToSequence", ["n"], ["s"], { axis: 0n }),
      node("SequenceAt", ["s", "zero"], ["a"]),
      node("SequenceAt", ["s", "one"], ["y"]),
    ],
  );
  const [{ x }] = [{ x: { type: "float32", data: weights(2 * K, 3), dims: [2, K] } }];
  const runner = modelRunner(m, [{ x }]);
  const minus = [...x.data].map((v) => -v);
  expect(await stage(runner, "a", ["y"])).toEqual(minus.slice(0, K));
  expect(await stage(runner, "y", [])).toEqual(minus.slice(K));
  runner.close();
});

test("values without bytes count eight each against the memory; after the end all of it is free again", () => {
  const store = keeper(20);
  const four = (): { type: string; data: Float32Array; dims: number[] } => ({ type: "float32", data: Float32Array.of(1), dims: [1] });
  const inMemory = (one: ReturnType<typeof four>): boolean => (store.put(one as never)().data as unknown) === one.data;
  for (const _ of [1, 2]) {
    store.put({ type: "string", data: ["a", "b"], dims: [2] } as never);
    expect([inMemory(four()), inMemory(four())]).toEqual([true, false]);
    store.close();
  }
});

/** Products of `k` inputs, one after the other or apart. */
const wide = (k: number): { m: OnnxModel; one: (count: number) => Feeds[] } => ({
  m: opened(
    [value("x", T.FLOAT, [1, k]), value("z", T.FLOAT, [1, k])],
    [raw("w0", [k, 1], weights(k)), raw("w1", [k, 1], weights(k, 2))],
    [node("MatMul", ["x", "w0"], ["p"], {}, "a"), node("MatMul", ["z", "w1"], ["q"], {}, "b"), node("Add", ["p", "q"], ["y"])],
  ),
  one: (count) =>
    Array.from({ length: count }, (_, i) => {
      const tensor = (seed: number) => ({ type: "float32", data: weights(k, seed + i), dims: [1, k] });
      return { x: tensor(5), z: tensor(50) };
    }),
});
async function passes(k: number, batches: number, options: object): Promise<number> {
  const { m, one } = wide(k);
  const { groups } = inputGroups(m, modelLayers(m));
  let count = 0;
  for await (const pass of collectPasses(m, one(batches), groups, options)) count += Math.sign(pass.size);
  return count;
}

test("sums fit the memory that was given, held-out ones with them", async () => {
  const hessian = 8 * 16 * 16;
  expect(await passes(16, 1, { memory: 2 * hessian })).toBe(1);
  expect(await passes(16, 1, { memory: 2 * hessian - 1 })).toBe(2);
  // two batches: one is held out, and has sums of its own
  expect(await passes(16, 2, { memory: 4 * hessian })).toBe(1);
  expect(await passes(16, 2, { memory: 4 * hessian - 1 })).toBe(2);
  expect(await passes(16, 2, { memory: 2 * hessian, holdOut: 0 })).toBe(1);
  await expect(passes(16, 2, { memory: hessian })).rejects.toThrow(/layer a: expected room for its Hessian of 16 inputs/);
  // ranges alone need none
  expect(await passes(16, 2, { memory: 1, hessian: false })).toBe(1);
});

test("of a model that is not held in memory, sums have a bound too, but room for the largest", async () => {
  const hessian = 8 * 16 * 16;
  const before = { ...STRETCH };
  try {
    for (const [from, hessians, count] of [
      [2 ** 25, 1, 1],
      [-1, 2 * hessian, 1],
      [-1, 2 * hessian - 1, 2],
      [-1, 1, 2],
    ]) {
      Object.assign(STRETCH, { from, bytes: 2 ** 40, hessians });
      expect([from, hessians, await passes(16, 1, {})]).toEqual([from, hessians, count]);
    }
  } finally {
    Object.assign(STRETCH, before);
  }
});
