// Signals in the middle of a large model: the work stops, the exit code says which signal, and nothing is left behind.
import { existsSync, truncateSync, writeFileSync } from "node:fs";
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

test("SIGINT while calibration data are read or run: nothing is left behind", async () => {
  const marker = dir.path("reading");
  const one = external("w", [SIZE, SIZE], { location: "large.data", offset: "0", length: String(BYTES) });
  const io = { input: [value("x", T.FLOAT, ["n", SIZE])], output: [value("y", T.FLOAT, ["n", SIZE])] };
  writeFileSync(
    dir.path("one.onnx"),
    encode(model(graph({ ...io, initializer: [one], node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")] }))),
  );
  writeFileSync(
    dir.path("slow.mjs"),
    `import { writeFileSync } from "node:fs";
export default async function* () {
  for (let i = 0; i < 2000; i++) {
    yield { x: { type: "float32", data: Float32Array.from({ length: ${SIZE} }, (_, j) => Math.sin(i + j)), dims: [1, ${SIZE}] } };
    if (i === 3) writeFileSync(${JSON.stringify(marker)}, "");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
`,
  );
  const before = dir.list();
  const args = ["quantize", dir.path("one.onnx"), "-o", dir.path("out.onnx"), "--dtype", "q4", "--algorithm", "gptq"];
  const { code, stderr } = await lowbit([...args, "--calibrate", dir.path("slow.mjs")], {
    when: () => existsSync(marker),
    signal: "SIGINT",
  });
  expect({ code, stderr }).toMatchObject({ code: 130, stderr: expect.stringMatching(/^lowbit: E_ABORTED: /) as string });
  expect(dir.list().filter((name) => name !== "reading")).toEqual(before);
});
