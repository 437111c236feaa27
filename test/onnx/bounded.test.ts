// Work in bounded memory: values between stages and packed weights on disk are those that memory would have held, and
// nothing stays behind.
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { keeper } from "../../src/onnx/calibrate/keep.ts";
import { inputGroups, passesOf, STRETCH } from "../../src/onnx/calibrate/statistics.ts";
import { modelRunner } from "../../src/onnx/calibrate/taps.ts";
import { decideInto } from "../../src/onnx/decide.ts";
import { decideWeights, modelLayers, readModelBytes, type Feeds } from "../../src/onnx/index.ts";
import { spillStore } from "../../src/onnx/journal/runs.ts";
import { format } from "../../formats/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-bounded-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
// a temporary folder of its own: files of others are none of this test's
const outside = process.env.TMPDIR;
const temporary = mkdtempSync(join(tmpdir(), "lowbit-bounded-tmp-"));
process.env.TMPDIR = temporary;
afterAll(() => {
  if (outside === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = outside;
  rmSync(temporary, { recursive: true, force: true });
});
const valueFiles = (): string[] => readdirSync(temporary).filter((name) => name.startsWith("lowbit-values-"));

test("kept values come back from disk as they were, whatever their type", () => {
  const kept = [
    { type: "float32", data: Float32Array.of(1, -2.5, NaN, Infinity), dims: [2, 2] },
    { type: "float16", data: Uint16Array.of(1, 2, 65535), dims: [3] },
    { type: "int64", data: BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n), dims: [2] },
    { type: "bool", data: Uint8Array.of(1, 0), dims: [2] },
    // a view into a larger buffer
    { type: "float64", data: Float64Array.of(9, 8, 7, 6).subarray(1, 3), dims: [2] },
    { type: "float32", data: new Float32Array(0), dims: [0] },
    { type: "string", data: ["a", "b"], dims: [2] },
  ];
  for (const budget of [0, 20, 1 << 20]) {
    const store = keeper(budget);
    const reads = kept.map((one) => store.put(one as never));
    for (const _ of [1, 2]) expect(reads.map((read) => read())).toEqual(kept);
    expect(valueFiles().length).toBe(budget > 100 ? 0 : 1);
    store.close();
    expect(valueFiles()).toEqual([]);
  }
});

const K = 32;
const chain = () =>
  readModelBytes(
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["batch", K])],
          output: [value("y", T.FLOAT, ["batch", K])],
          initializer: [0, 1, 2, 3].map((i) =>
            raw(
              `w${i}`,
              [K, K],
              weights(K * K, i + 1).map((x) => 3 * x),
            ),
          ),
          node: [0, 1, 2, 3].flatMap((i) => [
            node("MatMul", [i === 0 ? "x" : `h${i - 1}`, `w${i}`], [`p${i}`], {}, `mm${i}`),
            node("Tanh", [`p${i}`], [i === 3 ? "y" : `h${i}`]),
          ]),
        }),
      ),
    ),
  );
const feeds: Feeds[] = [1, 2, 3, 4].map((seed) => ({ x: { type: "float32", data: weights(64 * K, seed), dims: [64, K] } }));

test("stages over values on disk give the numbers of stages in memory", async () => {
  const numbers = async (memoryBytes?: number): Promise<unknown[]> => {
    const runner = modelRunner(chain(), feeds, memoryBytes === undefined ? {} : { memoryBytes });
    const out: unknown[] = [];
    for (const [names, later] of [
      [["h0"], ["h1", "h2", "y"]],
      [["h1"], ["h2", "y"]],
      [["h2"], ["y"]],
      [["y"], []],
    ])
      for await (const values of runner.stage(names, later))
        out.push(...[...values.values()].map(({ data }) => [...(data as Float32Array)]));
    if (memoryBytes === 0) expect(valueFiles().length).toBeLessThanOrEqual(1);
    runner.close();
    return out;
  };
  expect(await numbers(0)).toEqual(await numbers());
  expect(valueFiles()).toEqual([]);
});

test.each([false, true])("weights decided into a file are those decided into memory (sequential: %s)", async (sequential) => {
  const m = chain();
  const layers = modelLayers(m);
  const decide = () => ({ format: format("int3_b16"), algorithm: "gptq" as const });
  const memory = await decideWeights(m, layers, decide, feeds, { sequential });
  const output = join(folder, "out.onnx");
  writeFileSync(output, "");
  const { store, close } = spillStore(output);
  store.begin(m, layers, (layer) => layer);
  await decideInto(store, m, layers, decide, feeds, { sequential });
  for (const layer of layers) {
    const [a, b] = [memory.get(layer)!, store.get(layer)!];
    expect(Buffer.from(b.packed.codes).equals(a.packed.codes)).toBe(true);
    expect(Buffer.from(b.packed.scales!).equals(a.packed.scales!)).toBe(true);
    expect([b.signal, b.noise, b.outputSqnr]).toEqual([a.signal, a.noise, a.outputSqnr]);
    expect(b.biasShift).toEqual(a.biasShift);
    expect(b.packed.recipe).toEqual(a.packed.recipe);
  }
  close();
  expect(readdirSync(folder)).toEqual(["out.onnx"]);
  expect(existsSync(output)).toBe(true);
});

test("a model run in stretches gives the weights of one run, and passes end where a stretch is full", async () => {
  const read = chain();
  const layers = modelLayers(read);
  const { groups } = inputGroups(read, layers);
  const names = (stretch?: number): string[] =>
    passesOf(groups, Infinity, 1, stretch).map((pass) => pass.map((group) => group.layers[0].name).join(" "));
  const bytes = 4 * K * K;
  expect(names()).toEqual(["mm0 mm1 mm2 mm3"]);
  expect(names(2 * bytes)).toEqual(["mm0 mm1", "mm2 mm3"]);
  expect(names(3 * bytes - 1)).toEqual(["mm0 mm1", "mm2 mm3"]);
  // one that has more than a stretch alone is a pass of its own
  expect(names(1)).toEqual(["mm0", "mm1", "mm2", "mm3"]);
  const feeds: Feeds[] = [1, 2, 3].map((seed) => ({ x: { type: "float32", data: weights(16 * K, seed), dims: [16, K] } }));
  const decide = () => ({ format: format("int4_b32"), algorithm: "gptq" as const });
  const whole = await decideWeights(read, layers, decide, feeds);
  const before = { ...STRETCH };
  Object.assign(STRETCH, { from: 2 * bytes, bytes: 2 * bytes });
  try {
    const cut = await decideWeights(read, layers, decide, feeds);
    for (const layer of layers) expect(cut.get(layer)).toEqual(whole.get(layer));
  } finally {
    Object.assign(STRETCH, before);
  }
  expect(valueFiles()).toEqual([]);
});
