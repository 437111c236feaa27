// Files cut short, bytes changed, sources of the wrong kind: a clear error, nothing left open, nothing hangs.
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { LowbitError, wasm } from "../../src/index.ts";
import { quantizeModel } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { encoderModel } from "../onnx/encoder.ts";
import { numbers } from "./make.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-damaged-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const openFiles = (): number => readdirSync("/proc/self/fd").length;

describe("a model cut short", () => {
  const whole = encoderModel();
  const path = join(folder, "cut.onnx");
  const cuts = [0, 1, 7, ...[...numbers(3, 24, 0, 1)].map((part) => Math.floor(part * whole.length))];
  test.each(cuts)("after %i bytes", async (length) => {
    const backend = await wasm();
    const before = backend.bytes;
    writeFileSync(path, whole.subarray(0, length));
    const files = openFiles();
    for (const source of [path, whole.slice(0, length), new Blob([whole.slice(0, length)])]) {
      const error: unknown = await loadModel(source, { backend }).then(
        (session) => session.release(),
        (e: unknown) => e,
      );
      expect(error).toBeInstanceOf(LowbitError);
      expect((error as LowbitError).message).toMatch(/expected .*, got /);
    }
    expect(backend.bytes).toBe(before);
    expect(openFiles()).toBe(files);
    backend.dispose();
  });
});

test("data beside the file that end early", async () => {
  const source = join(folder, "encoder.onnx");
  const path = join(folder, "outside.onnx");
  writeFileSync(source, encoderModel());
  await quantizeModel(source, path, { dtype: "q4", externalData: true });
  const session = await loadModel(path);
  await session.release();
  const data = join(
    folder,
    readdirSync(folder).find((name) => name.startsWith("outside.onnx") && name !== "outside.onnx")!,
  );
  truncateSync(data, Math.floor(readFileSync(data).length / 2));
  const files = openFiles();
  await expect(loadModel(path)).rejects.toMatchObject({ code: expect.stringMatching(/E_IO|E_ONNX/) });
  rmSync(data);
  await expect(loadModel(path)).rejects.toMatchObject({ code: expect.stringMatching(/E_IO|E_ONNX/) });
  expect(openFiles()).toBe(files);
});

test("sources and options of the wrong kind", async () => {
  const bytes = encoderModel();
  await expect(loadModel(5 as never)).rejects.toThrow(/expected a path, a URL, bytes, a Blob or a reader of ranges, got number/);
  await expect(loadModel(join(folder, "nothing.onnx"))).rejects.toMatchObject({ code: "E_IO" });
  await expect(loadModel(bytes, { backend: "gpu" as never })).rejects.toThrow(/expected "wasm", "reference" or a backend object/);
  await expect(loadModel(bytes, { fallback: "onnx" as never })).rejects.toThrow(/expected "onnxruntime", its module or none, got onnx/);
});

test("weights that do not fit their nodes", async () => {
  const of = (made: ReturnType<typeof node>, initializer: ReturnType<typeof raw>[]): Uint8Array =>
    encode(model(graph({ input: [value("x", T.FLOAT, [1, 2, 4])], output: [value("y", T.FLOAT, ["a", "b"])], initializer, node: [made] })));
  const x = { type: "float32", dims: [1, 2, 4], data: new Float32Array(8) };
  const lstm = of(node("LSTM", ["x", "w", "r"], ["y"], { hidden_size: 3n }), [
    raw("w", [1, 12, 5], new Float32Array(60)),
    raw("r", [1, 12, 3], new Float32Array(36)),
  ]);
  const gather = of(node("GatherElements", ["x", "i"], ["y"], { axis: 2n }), [raw("i", [1, 1, 1], BigInt64Array.of(9n), T.INT64)]);
  const pads = of(node("Pad", ["x", "p"], ["y"]), [raw("p", [6], BigInt64Array.of(0n, 0n, 0n, 0n, 2n ** 40n, 2n ** 40n), T.INT64)]);
  const scales = of(node("Resize", ["x", "", "s"], ["y"]), [raw("s", [3], Float32Array.of(1, 1e9, 1e9))]);
  const blocks = of(node("TopK", ["x", "k"], ["y", "i"]), [raw("k", [1], BigInt64Array.of(99n), T.INT64)]);
  for (const bytes of [lstm, gather, pads, scales, blocks]) {
    const session = await loadModel(bytes);
    await expect(session.run({ x })).rejects.toMatchObject({ code: expect.stringMatching(/E_SHAPE|E_VALUE/) });
    await session.release();
  }
});
