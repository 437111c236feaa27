// Sizes past 2 and 4 GiB, with sparse files (they take no room), and tensors that leave memory for a temporary file.
import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { segmentsLength } from "../../src/onnx/file/encode.ts";
import { spillFile } from "../../src/onnx/file/files.ts";
import { quantizeModel, readModel, verifyModels } from "../../src/onnx/index.ts";
import { encodeForFile } from "../../src/onnx/file/io.ts";
import { T, encode, external, graph, model, node, raw, value, weights } from "./build.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "lowbit-large-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const GIB = 2 ** 30;

/** A sparse file of `size` bytes with `data` at `offset`. */
function sparse(name: string, size: number, data: Uint8Array, offset: number): void {
  const fd = openSync(join(folder, name), "w");
  ftruncateSync(fd, size);
  writeSync(fd, data, 0, data.length, offset);
  closeSync(fd);
}

it("reads a weight that lies past 4 GiB of external data", async () => {
  const w = weights(64 * 32);
  const offset = 4 * GIB + 12;
  sparse("far.bin", offset + 8192, new Uint8Array(w.buffer), offset);
  const make = (tensor: ReturnType<typeof raw>) =>
    encode(
      model(
        graph({
          input: [value("x", T.FLOAT, ["b", 64])],
          output: [value("y", T.FLOAT, ["b", 32])],
          initializer: [tensor],
          node: [node("MatMul", ["x", "w"], ["y"])],
        }),
      ),
    );
  writeFileSync(join(folder, "far.onnx"), make(external("w", [64, 32], { location: "far.bin", offset: String(offset), length: "8192" })));
  writeFileSync(join(folder, "near.onnx"), make(raw("w", [64, 32], w)));
  await quantizeModel(join(folder, "far.onnx"), join(folder, "far_q4.onnx"), { dtype: "q4" });
  await quantizeModel(join(folder, "near.onnx"), join(folder, "near_q4.onnx"), { dtype: "q4" });
  const { outputs } = await verifyModels(join(folder, "near_q4.onnx"), join(folder, "far_q4.onnx"));
  expect(outputs[0].sqnrDb).toBe(Infinity);
});

describe("weights that stay", () => {
  /** A model with one table of `bytes` that no mode touches, and a small product. */
  const big = (name: string, bytes: number): string => {
    sparse(`${name}.bin`, bytes, Uint8Array.of(1), 0);
    const path = join(folder, `${name}.onnx`);
    writeFileSync(
      path,
      encode(
        model(
          graph({
            input: [value("x", T.FLOAT, ["b", 64])],
            output: [value("y", T.FLOAT, ["b", 32])],
            initializer: [external("table", [bytes / 4 / 1024, 1024], { location: `${name}.bin` }), raw("w", [64, 32], weights(2048))],
            node: [node("MatMul", ["x", "w"], ["y"])],
          }),
        ),
      ),
    );
    return path;
  };
  it("past 1.5 GB go to external data by themselves; below they come inside", () => {
    for (const [name, bytes, outside] of [
      ["huge", 3 * GIB, true],
      ["medium", 1.25 * GIB, false],
    ] as const) {
      using opened = readModel(big(name, bytes));
      opened.proto.docString = "changed";
      const encoded = encodeForFile(opened, join(folder, "out.onnx"), {});
      expect(segmentsLength(encoded.data.flat())).toBe(outside ? bytes + 8192 : 0);
      expect(segmentsLength(encoded.model) > bytes).toBe(!outside);
      if (outside) expect(() => encodeForFile(opened, join(folder, "out.onnx"), { externalData: false })).toThrow(/2 GiB in one ONNX file/);
    }
  });
  it("whose codes pass 2 GiB are left alone, with the reason", async () => {
    sparse("over.bin", 9 * GIB, Uint8Array.of(1), 0);
    const rows = (9 * GIB) / 4 / 1024;
    writeFileSync(
      join(folder, "over.onnx"),
      encode(
        model(
          graph({
            input: [value("x", T.FLOAT, ["b", rows])],
            output: [value("y", T.FLOAT, ["b", 1024])],
            initializer: [external("w", [rows, 1024], { location: "over.bin" })],
            node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
          }),
        ),
      ),
    );
    // Nothing changes, so the data stays where it is and the model is a copy.
    const report = await quantizeModel(join(folder, "over.onnx"), join(folder, "over_q8.onnx"), {
      dtype: "q8-block",
      allowUnchanged: true,
    });
    expect(report.layers[0].reason).toMatch(/^its int8_b32\w* codes pass 2 GiB$/);
    expect(report.outputs).toEqual([join(folder, "over_q8.onnx")]);
  });
});

it("new tensors go to a temporary file past the budget, and the file goes away", () => {
  const spill = spillFile(join(folder, "spill.onnx"), 100_000);
  const parts = Array.from({ length: 5 }, (_, i) => new Uint8Array(70_000).fill(i + 1));
  const kept = parts.map((bytes) => spill.keep(bytes));
  expect(readdirSync(folder).filter((name) => name.endsWith(".tmp")).length).toBe(1);
  kept.forEach((payload, i) => {
    expect(payload.length).toBe(70_000);
    expect(Buffer.compare(payload.source.read(payload.offset, payload.length), parts[i])).toBe(0);
  });
  spill.close();
  expect(readdirSync(folder).filter((name) => name.endsWith(".tmp"))).toEqual([]);
});
