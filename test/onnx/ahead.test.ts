// Weights made by threads that read the file themselves: the same bytes as on the calling thread, the same errors, and
// nothing left behind.
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { defineBlock } from "../../formats/define/index.ts";
import { float16 } from "../../formats/float16.ts";
import { float32 } from "../../formats/float32.ts";
import { int4 } from "../../formats/int4.ts";
import { uint4 } from "../../formats/uint4.ts";
import { AHEAD, weightsAhead } from "../../src/onnx/ahead.ts";
import { quantizeModel, readModel } from "../../src/onnx/index.ts";
import { buildScopes } from "../../src/onnx/graph/graph.ts";
import { findLayers } from "../../src/onnx/layers.ts";
import { nibbleThreads, threadsTake } from "../../src/tensor/quantize/nibble-threads.ts";
import { quantizeMeasured } from "../../src/tensor/quantize/measure.ts";
import { tensor, transpose } from "../../src/tensor/tensor.ts";
import { encode, graph, model, node, raw, value, weights, T } from "./build.ts";

const symmetric = (span: number) => defineBlock({ element: int4, scales: [{ format: float32, span }], rangeRule: "ort" });
const asymmetric = (span: number) =>
  defineBlock({ element: uint4, scales: [{ format: float32, span }], offset: { role: "zeroPoint", levels: [{ format: uint4, span }] } });

let folder: string;
const { from } = AHEAD;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-ahead-"));
});
afterEach(() => {
  AHEAD.from = from;
  rmSync(folder, { recursive: true });
});

describe("nibbleThreads", () => {
  it.each([
    [64, 9, 16],
    [250, 37, 32],
    [34, 130, 32],
    [2048, 515, 128],
    [90, 21, 20],
    [40_000, 5, 64],
    [64, 40_001, 32],
  ])("k %i, n %i, blocks of %i: codes, scales, zero points and sums of the calling thread", async (k, n, span) => {
    const w = weights(k * n, k + n);
    for (let i = 0; i < k; i++)
      for (let j = 0; j < n; j += 3) {
        const at = i * n + j;
        if (j % 9 === 0) w[at] = 0;
        if (j % 9 === 3) w[at] = Math.abs(w[at]);
        if (j % 9 === 6) w[at] = i % 2 === 0 ? 0.5 : -0.5;
      }
    const path = join(folder, "values");
    writeFileSync(path, Buffer.concat([Buffer.alloc(13), Buffer.from(w.buffer)]));
    const threads = nibbleThreads(2)!;
    const fd = openSync(path, "r");
    try {
      for (const format of [symmetric(span), asymmetric(span)])
        for (const inRows of [false, true]) {
          const matrix = { fd, offset: 13, rows: inRows ? k : n, k: inRows ? n : k, inRows };
          if (!threadsTake(matrix, format, { arithmetic: "ort" })) {
            expect(matrix.k % 2).toBe(1);
            continue;
          }
          const view = inRows ? tensor(w, [k, n]) : transpose(tensor(w, [k, n]));
          const made = await threads.quantize(matrix, [matrix.rows, matrix.k], format, { arithmetic: "ort" });
          const expected = quantizeMeasured(view, format, { arithmetic: "ort" });
          for (const plane of ["codes", "scales", "offsets"] as const)
            expect(Buffer.compare(made!.packed[plane] ?? Buffer.alloc(0), expected.packed[plane] ?? Buffer.alloc(0)), plane).toBe(0);
          expect({ ...made!.packed, codes: 0, scales: 0, offsets: 0 }).toEqual({ ...expected.packed, codes: 0, scales: 0, offsets: 0 });
          for (const sum of ["signal", "noise"] as const) expect(Math.abs(made![sum] / expected[sum] - 1)).toBeLessThan(k * n * 2 ** -52);
        }
    } finally {
      await threads.close();
      closeSync(fd);
    }
  });

  it("leaves what it cannot do undone: values that are not finite, scales of a denormal, a file that ends, a thread that ended", async () => {
    const path = join(folder, "values");
    const w = weights(64 * 8 * 3);
    w[70] = NaN;
    w.fill(1e-44, 64 * 8, 2 * 64 * 8);
    writeFileSync(path, Buffer.from(w.buffer));
    const threads = nibbleThreads(1)!;
    const fd = openSync(path, "r");
    const at = (offset: number) =>
      threads.quantize({ fd, offset, rows: 8, k: 64, inRows: false }, [8, 64], symmetric(32), { arithmetic: "ort" });
    try {
      expect(await at(0)).toBeNull();
      expect(await at(4 * 64 * 8)).toBeNull();
      expect(await at(4 * 64 * 8 * 2)).not.toBeNull();
      expect(await at(4 * 64 * 8 * 2 + 4)).toBeNull();
      const last = at(0);
      await threads.close();
      expect(await last).toBeNull();
    } finally {
      closeSync(fd);
    }
  });

  it("takes only what its loops are for", () => {
    const matrix = { fd: 3, offset: 0, rows: 8, k: 64, inRows: false };
    const half = defineBlock({ element: int4, scales: [{ format: float16, span: 32 }], rangeRule: "ort" });
    expect(threadsTake(matrix, symmetric(32), { arithmetic: "ort" })).toBe(true);
    expect(threadsTake(matrix, symmetric(32), {})).toBe(false);
    expect(threadsTake(matrix, half, { arithmetic: "ort" })).toBe(false);
    expect(threadsTake({ ...matrix, k: 63 }, symmetric(32), { arithmetic: "ort" })).toBe(false);
    expect(threadsTake({ ...matrix, rows: 3 }, symmetric(32), { arithmetic: "ort" })).toBe(false);
  });
});

/** Products stored as [k, n] and [n, k], a weight that two of them read, one of odd k, one that is scaled, an embedding. */
function products(damaged = false): Uint8Array {
  const w = weights(64 * 70, 3);
  if (damaged) w[99] = Infinity;
  const x = value("x", T.FLOAT, ["batch", 64]);
  return encode(
    model(
      graph({
        input: [x, value("odd", T.FLOAT, ["batch", 33])],
        output: ["a", "b", "c", "d", "e"].map((name) => value(name, T.FLOAT, ["batch", 70])),
        initializer: [
          raw("w", [64, 70], w),
          raw("t", [70, 64], weights(64 * 70, 4)),
          raw("o", [33, 70], weights(33 * 70, 5)),
          raw("s", [64, 70], weights(64 * 70, 6)),
        ],
        node: [
          node("MatMul", ["x", "w"], ["a"], {}, "first"),
          node("Gemm", ["x", "t"], ["b"], { transB: 1n }, "transposed"),
          node("MatMul", ["x", "w"], ["c"], {}, "again"),
          node("MatMul", ["odd", "o"], ["d"], {}, "odd"),
          node("Gemm", ["x", "s"], ["e"], { alpha: 0.5 }, "scaled"),
        ],
      }),
    ),
  );
}

const workers = (): number => process.getActiveResourcesInfo().filter((name) => name === "Worker" || name === "MessagePort").length;

describe("quantizeModel with threads", () => {
  it.each(["sym", "asym"])("the same file, %s", async (kind) => {
    writeFileSync(join(folder, "model.onnx"), products());
    const [alone, together] = ["alone.onnx", "together.onnx"].map((name) => join(folder, name));
    const before = workers();
    const options = { dtype: "q4", symmetric: kind === "sym" } as const;
    const expected = await quantizeModel(join(folder, "model.onnx"), alone, options);
    AHEAD.from = 0;
    const got = await quantizeModel(join(folder, "model.onnx"), together, options);
    expect(readFileSync(together).equals(readFileSync(alone))).toBe(true);
    expect(got.layers.map(({ name, format, sharedWith }) => ({ name, format, sharedWith }))).toEqual(
      expected.layers.map(({ name, format, sharedWith }) => ({ name, format, sharedWith })),
    );
    got.layers.forEach(({ sqnrDb }, i) => expect(sqnrDb).toBeCloseTo(expected.layers[i].sqnrDb!, 9));
    expect(workers()).toBe(before);
  });

  it("makes the layers that it can, once each", async () => {
    AHEAD.from = 0;
    writeFileSync(join(folder, "model.onnx"), products());
    const read = readModel(join(folder, "model.onnx"));
    const layers = findLayers(buildScopes(read), read);
    const ahead = weightsAhead(
      read,
      layers.map((layer) => ({ layer, format: symmetric(32), quantizer: { arithmetic: "ort" }, flat: false })),
    )!;
    try {
      const made: string[] = [];
      for (const layer of layers) if ((await ahead.take(layer)) !== undefined) made.push(layer.name);
      expect(made).toEqual(["first", "transposed"]);
    } finally {
      await ahead.close();
      read.close();
    }
  });

  it("a weight that is not finite is named, and no file or thread is left", async () => {
    AHEAD.from = 0;
    writeFileSync(join(folder, "model.onnx"), products(true));
    const before = workers();
    const run = quantizeModel(join(folder, "model.onnx"), join(folder, "out.onnx"), { dtype: "q4" });
    await expect(run).rejects.toThrow(/layer first: expected finite weights, got Infinity at index 99/);
    expect(() => readFileSync(join(folder, "out.onnx"))).toThrow(/ENOENT/);
    expect(workers()).toBe(before);
  });

  it("an abort ends the threads", async () => {
    AHEAD.from = 0;
    writeFileSync(join(folder, "model.onnx"), products());
    const before = workers();
    const control = new AbortController();
    const run = quantizeModel(join(folder, "model.onnx"), join(folder, "out.onnx"), {
      dtype: "q4",
      signal: control.signal,
      onProgress: ({ layer }) => layer === "transposed" && control.abort(),
    });
    await expect(run).rejects.toMatchObject({ code: "E_ABORTED" });
    expect(workers()).toBe(before);
  });
});
