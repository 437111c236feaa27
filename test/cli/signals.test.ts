// Signals in the middle of a large model: the work stops, the exit code says which signal, and nothing is left behind.
import { truncateSync, writeFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { T, encode, external, graph, model, node, value } from "../onnx/build.ts";
import { lowbit, scratch } from "./run.ts";

const dir = scratch();

// 96 MatMuls of 2048 x 2048 over a sparse data file: 1.5 GiB of weights that take no disk. In fp16 the new tensors pass
// what is kept in memory after a quarter, so a temporary file appears beside the output: the sign that the work is in
// its middle.
const LAYERS = 96;
const SIZE = 2048;
const BYTES = SIZE * SIZE * 4;
const names = Array.from({ length: LAYERS }, (_, i) => `w${i}`);
writeFileSync(
  dir.path("large.onnx"),
  encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["n", SIZE])],
        output: [value(`y${LAYERS - 1}`, T.FLOAT, ["n", SIZE])],
        initializer: names.map((name, i) =>
          external(name, [SIZE, SIZE], { location: "large.data", offset: String(i * BYTES), length: String(BYTES) }),
        ),
        node: names.map((name, i) => node("MatMul", [i === 0 ? "x" : `y${i - 1}`, name], [`y${i}`], {}, `layer${i}`)),
      }),
    ),
  ),
);
writeFileSync(dir.path("large.data"), "");
truncateSync(dir.path("large.data"), LAYERS * BYTES);

describe("a signal in the middle of a large model", () => {
  test.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("%s: exit code %i, nothing left behind", async (signal, exit) => {
    const before = dir.list();
    let middle: string[] = [];
    const { code, stdout, stderr } = await lowbit(["quantize", dir.path("large.onnx"), "-o", dir.path("out.onnx"), "--dtype", "fp16"], {
      when: () => (middle = dir.list().filter((name) => name.endsWith(".tmp"))).length > 0,
      signal,
    });
    expect(middle, "the signal came while a temporary file was there").toHaveLength(1);
    expect({ code, stdout }).toEqual({ code: exit, stdout: "" });
    expect(stderr).toMatch(/^lowbit: E_ABORTED: [^\n]+\n$/);
    expect(dir.list()).toEqual(before);
  });
});
