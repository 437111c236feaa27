// Statistics as files: quantizing from one gives the bytes of quantizing from the data; shards of the data add up to
// it; shards of others are refused by name.
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, test } from "vitest";
import { replaceCalls, type FileCalls } from "../../src/files/calls.ts";
import { openStatistics } from "../../src/onnx/calibrate/file.ts";
import { inputGroups } from "../../src/onnx/calibrate/statistics.ts";
import {
  calibrateToFile,
  mergeShards,
  mergeStatisticsFiles,
  modelLayers,
  quantizeModel,
  readModel,
  type Feeds,
  type QuantizeModelOptions,
} from "../../src/onnx/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-stats-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const unsynced = (calls: FileCalls): FileCalls => ({ ...calls, fsync: () => undefined });
beforeEach(() => {
  replaceCalls(unsynced);
  return () => replaceCalls();
});
const at = (name: string): string => join(folder, name);

const K = 32;
const proto = (seed: number) =>
  model(
    graph({
      input: [value("x", T.FLOAT, ["batch", K])],
      output: [value("y", T.FLOAT, ["batch", K])],
      initializer: [0, 1, 2].map((i) =>
        raw(
          `w${i}`,
          [K, K],
          weights(K * K, seed + i).map((x) => 3 * x),
        ),
      ),
      node: [
        node("MatMul", ["x", "w0"], ["p"], {}, "a"),
        node("Tanh", ["p"], ["h"]),
        node("MatMul", ["h", "w1"], ["q"], {}, "b"),
        node("MatMul", ["h", "w2"], ["r"], {}, "c"),
        node("Mul", ["q", "r"], ["y"]),
      ],
    }),
  );
const input = at("model.onnx");
writeFileSync(input, encode(proto(1)));
const feeds: Feeds[] = [1, 2, 3, 4, 5, 6, 7, 8, 9].map((seed) => ({
  x: { type: "float32", data: weights(48 * K, 10 + seed), dims: [48, K] },
}));
const error = (work: Promise<unknown>): Promise<{ code?: string; message: string }> =>
  work.then(
    () => ({ message: "no error" }),
    (reason) => reason,
  );

test("quantizing from the file gives the bytes of quantizing from the data, also in shards", async () => {
  const report = await calibrateToFile(input, feeds, at("whole.stats"));
  expect(report).toMatchObject({ output: at("whole.stats"), batches: 9, of: 9, inputs: 2 });
  const options: QuantizeModelOptions = { dtype: "q4", algorithm: "gptq" };
  await quantizeModel(input, at("data.onnx"), { ...options, calibration: feeds });
  await quantizeModel(input, at("stats.onnx"), { ...options, statistics: at("whole.stats") });
  expect(readFileSync(at("stats.onnx")).equals(readFileSync(at("data.onnx")))).toBe(true);
  for (const shard of ["1/2", "2/2"])
    await quantizeModel(input, at("spread.onnx"), { ...options, statistics: at("whole.stats"), shard, resume: true });
  await mergeShards(input, at("spread.onnx"));
  expect(readFileSync(at("spread.onnx")).equals(readFileSync(at("data.onnx")))).toBe(true);
});

test.each([2, 4, 9])("%i shards of the data add up to the whole", async (count) => {
  const output = at(`${count}.stats`);
  await calibrateToFile(input, feeds, at(`whole${count}.stats`), { holdOut: 0.25 });
  for (let i = count; i >= 1; i--) await calibrateToFile(input, feeds, output, { holdOut: 0.25, shard: `${i}/${count}` });
  expect(await mergeStatisticsFiles(output)).toEqual({ output, shards: count, inputs: 2 });
  using opened = readModel(input);
  const { groups } = inputGroups(opened, modelLayers(opened));
  const [whole, sum] = [openStatistics(at(`whole${count}.stats`), opened), openStatistics(output, opened)];
  const given = feeds.flatMap(({ x }) => [...(x.data as Float32Array)]);
  expect(groups.map((group) => group.input)).toEqual(["x", "h"]);
  for (const group of groups) {
    const [a, b] = [whole.of(group), sum.of(group)];
    expect(b.range).toEqual(a.range);
    if (group.input === "x") expect(a.range).toEqual({ min: Math.min(...given), max: Math.max(...given) });
    for (const part of ["statistics", "heldOut"] as const) {
      const [left, right] = [a[part]![0], b[part]![0]];
      expect([right.rows, right.weight]).toEqual([left.rows, left.weight]);
      expect(left.rows).toBe(48 * (part === "heldOut" ? 2 : 7));
      expect([...right.min, ...right.max]).toEqual([...left.min, ...left.max]);
      for (const name of ["sum", "sumAbs", "sumSquares", "hessian"] as const) {
        const scale = Math.max(...left[name]!.map(Math.abs));
        // float64 sums in another order; the products themselves are those of the runtime's float32
        expect(Math.max(...left[name]!.map((x, i) => Math.abs(x - right[name]![i]))) / scale).toBeLessThan(1e-12);
      }
    }
  }
  whole.close();
  sum.close();
});

test("what does not belong together is refused by name", async () => {
  const output = at("bad.stats");
  const shard = (i: number) => `${output}.${i}-of-2.shard`;
  await calibrateToFile(input, feeds, output, { shard: "1/2" });
  expect((await error(mergeStatisticsFiles(output))).message).toContain("got none of bad.stats.2-of-2.shard");
  await calibrateToFile(input, feeds.slice(0, 8), output, { shard: "2/2" });
  expect((await error(mergeStatisticsFiles(output))).message).toContain(`${shard(2)}: expected the same calibration as ${shard(1)}`);
  expect((await error(calibrateToFile(input, feeds, output, { shard: "2/2" }))).code).toBe("E_EXISTS");
  await calibrateToFile(input, feeds, output, { shard: "2/2", maxTokens: 100, force: true });
  expect((await error(mergeStatisticsFiles(output))).message).toContain("expected the same options");
  const other = at("other.onnx");
  writeFileSync(other, encode(proto(50)));
  await calibrateToFile(other, feeds, output, { shard: "2/2", force: true });
  expect((await error(mergeStatisticsFiles(output))).message).toContain("expected the same model");
  await calibrateToFile(input, feeds, output, { shard: "2/2", force: true });
  const size = readFileSync(shard(2)).length;
  truncateSync(shard(2), size - 10);
  expect((await error(mergeStatisticsFiles(output))).message).toContain(
    "expected whole statistics of lowbit calibrate, got an end too early",
  );
  await calibrateToFile(input, feeds, output, { shard: "2/2", force: true });
  await mergeStatisticsFiles(output);
  const gptq = (from: string, options: QuantizeModelOptions) =>
    error(quantizeModel(from, at("never.onnx"), { dtype: "q4", algorithm: "gptq", ...options }));
  expect(await gptq(other, { statistics: output })).toMatchObject({ code: "E_CALIBRATION" });
  expect((await gptq(input, { statistics: output, sequential: true })).message).toContain("which needs the data themselves");
  expect((await gptq(input, { statistics: output, passes: ["fold-norm"] })).message).toContain("expected none beside passes");
  expect((await gptq(input, { statistics: output, calibration: feeds })).message).toContain("expected one of them, got both");
  expect((await gptq(input, { statistics: at("none.stats") })).code).toBe("E_IO");
  expect((await gptq(input, { statistics: input })).code).toBe("E_CONTAINER");
  await calibrateToFile(input, feeds, at("part.stats"), { layers: ["a"] });
  expect((await gptq(input, { statistics: at("part.stats") })).message).toContain("expected statistics for layer b, got none");
  expect((await error(calibrateToFile(input, feeds, at("x.stats"), { shard: "10/12" }))).message).toContain("there are 9. Divide by fewer");
});
