// gather-outliers: the function stays, the channels with outliers are in front and in the model's record, and
// lowbit/runtime keeps 8 bits for them beside 4.
import { describe, expect, test } from "vitest";
import { wasm } from "../../src/index.ts";
import { applyPasses, modelLayers, readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { readOutliers, recordOutliers } from "../../src/onnx/outliers.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { changed, encoderFeeds, encoderModel } from "./encoder.ts";
import { calibrationOn } from "./statistics.ts";
import { quantizeModelBytes } from "./kept.ts";

const calibration = calibrationOn(encoderFeeds(3));
const bytes = encoderModel({ outlier: 40 });
const pass = { name: "gather-outliers", block: 16 };

const run = async (model: Uint8Array, activations: "float32" | "int4" | "int8"): Promise<Float32Array> => {
  const backend = await wasm();
  const session = await loadModel(model, { backend, activations });
  const [feeds] = encoderFeeds(1, 2, 9);
  const y = (await session.run(feeds as never))[session.outputNames[0]].data as Float32Array;
  const copy = y.slice();
  await session.release();
  backend.dispose();
  return copy;
};
const noise = (y: Float32Array, want: Float32Array): number => Math.sqrt(y.reduce((sum, v, i) => sum + (v - want[i]) ** 2, 0));

describe("gather-outliers", () => {
  test("outputs stay; what products read is in falling order of magnitude as far as it is wide", async () => {
    const { model, notes, difference } = await changed(bytes, [pass], { calibration });
    expect(difference).toBeLessThan(1e-5);
    const record = readOutliers(model);
    expect(record.size).toBeGreaterThan(2);
    expect(notes[0]).toMatch(/gather-outliers: outliers of \d+ inputs of products gathered: \d+ of \d+ blocks of 16 channels keep 8 bits/);
    for (const [value, wide] of record) {
      expect(wide % 16).toBe(0);
      const name = modelLayers(model).find(({ activation }) => activation === value)!.name;
      const { min, max } = (await calibration(model, [name], { hessian: false })).get(name)!;
      const magnitudes = Array.from(max, (m, j) => Math.max(m, -min[j]));
      expect(Math.min(...magnitudes.slice(0, wide))).toBeGreaterThanOrEqual(Math.max(0, ...magnitudes.slice(wide)));
    }
    // readers of one value share its order
    const orders = model.proto.graph!.node.filter(({ name }) => name.endsWith("_ordered"));
    expect(new Set(orders.map(({ input }) => input[0])).size).toBe(orders.length);
  });

  test("the runtime keeps 8 bits for them: between int4 and int8 activations, nearer to int8", async () => {
    const model = readModelBytes(bytes);
    await applyPasses(model, [pass], { calibration });
    const { bytes: q4 } = await quantizeModelBytes(writeModelBytes(model), { format: "int8_b16", target: "stored" });
    const plain = readModelBytes(q4);
    plain.proto.metadataProps = plain.proto.metadataProps.filter(({ key }) => key !== "lowbit.outliers");
    const exact = await run(q4, "float32");
    const [mixed, int4, int8] = [await run(q4, "int4"), await run(writeModelBytes(plain), "int4"), await run(q4, "int8")];
    expect(noise(mixed, exact)).toBeLessThan(0.7 * noise(int4, exact));
    expect(noise(mixed, exact)).toBeGreaterThan(noise(int8, exact));
  });

  test("nodes that share a weight each keep the channels of the value that they read", async () => {
    const made = model(
      graph({
        input: [value("a", T.FLOAT, [1, 64]), value("b", T.FLOAT, [1, 64])],
        output: [value("y", T.FLOAT, [1, 32]), value("z", T.FLOAT, [1, 32])],
        initializer: [raw("w", [64, 32], weights(64 * 32))],
        node: [node("MatMul", ["a", "w"], ["y"], {}, "first"), node("MatMul", ["b", "w"], ["z"], {}, "second")],
      }),
    );
    const { bytes: stored } = await quantizeModelBytes(encode(made), { format: "int8_b16", target: "stored" });
    const marked = readModelBytes(stored);
    recordOutliers(marked, new Map([["a", 32]]));
    const session = await loadModel(writeModelBytes(marked), { backend: "reference", activations: "int4" });
    const x = { type: "float32", dims: [1, 64], data: weights(64, 5).map((v, i) => (i < 32 ? 20 * v : v)) };
    const { y, z } = await session.run({ a: x, b: x } as never);
    const exact = await loadModel(writeModelBytes(marked), { backend: "reference" });
    const want = (await exact.run({ a: x, b: x } as never)).y.data as Float32Array;
    expect(noise(y.data as Float32Array, want)).toBeLessThan(0.7 * noise(z.data as Float32Array, want));
    await session.release();
    await exact.release();
  });

  test("says when there is nothing, and refuses options and damaged records", async () => {
    const none = await changed(encoderModel(), [{ ...pass, threshold: 1e6 }], { calibration });
    expect(none.notes).toEqual(["gather-outliers: no product reads channels in blocks of 16 with outliers among them; nothing changed"]);
    const half = await changed(bytes, [{ ...pass, share: 0.5 }], { calibration });
    expect(half.notes[0]).toMatch(/(\d+) of (\d+) blocks/);
    const [, wide, all] = /(\d+) of (\d+) blocks/.exec(half.notes[0])!;
    expect(Number(wide) / Number(all)).toBe(0.5);
    for (const [options, message] of [
      [{ block: 0 }, /block: expected a positive integer/],
      [{ threshold: 0.5 }, /threshold: expected a number from 1/],
      [{ share: 2 }, /share: expected a number in 0..1/],
    ] as const)
      await expect(applyPasses(readModelBytes(bytes), [{ ...pass, ...options }], { calibration })).rejects.toThrow(message);
    await expect(applyPasses(readModelBytes(bytes), [pass])).rejects.toThrow(/calibration data/);
    const { model } = await changed(bytes, [pass], { calibration });
    const records = ["{}", '{"x":-1}', '{"x":0}', '{"x":1.5}', '{"x":"2"}', '{"y":2,"x":null}'].map((of) => `{"version":${of === "{}" ? 2 : 1},"channels":${of}}`); // prettier-ignore
    for (const value of ["", "{", '{"version":2}', '{"channels":{"x":1}}', ...records]) {
      model.proto.metadataProps.find(({ key }) => key === "lowbit.outliers")!.value = value;
      expect(() => readOutliers(model)).toThrow(/record of version 1/);
    }
    model.proto.metadataProps.find(({ key }) => key === "lowbit.outliers")!.value = '{"version":1,"channels":{"x":1,"y":16}}';
    expect([...readOutliers(model)]).toEqual([["x", 1], ["y", 16]]); // prettier-ignore
  });
});
