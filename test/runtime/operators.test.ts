// Every operator against onnxruntime-node on random shapes: float32 within 1e-5 of the output's root mean square or of
// 1, everything else equal.
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { LowbitError } from "../../src/index.ts";
import { UNFOLDED } from "../../src/runtime/compile/qoperator.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { operators } from "../../src/runtime/ops/index.ts";
import { raw } from "../onnx/build.ts";
import { compare } from "./judge.ts";
import { bytesOf, f32, i64, ints, numbers, type Make } from "./make.ts";
import { axes, cases, rows, spoiled } from "./operator-cases.ts";

test("every operator has a case", () => {
  // integer functions: test/runtime/integer-only.test.ts
  const elsewhere = (name: string): boolean => name === "lowbit.Pick" || name.startsWith("lowbit.integer.");
  expect([...operators.keys(), ...UNFOLDED].filter((name) => !Object.hasOwn(cases, name) && !elsewhere(name))).toEqual([]);
});

test("docs/runtime.md lists the operators", () => {
  const docs = readFileSync(new URL("../../docs/runtime.md", import.meta.url), "utf8");
  const listed = [...docs.matchAll(/^\| `([\w.]+)` \|/gm)].map((row) => row[1]);
  expect(listed).toEqual([...operators.keys(), ...UNFOLDED, "Constant", "If"].filter((name) => name !== "lowbit.Pick").sort());
});

const side = fc.integer({ min: 1, max: 5 });
test("sums of int64 are exact, which onnxruntime's are not", async () => {
  const feeds = { x: { type: "int64", dims: [3], data: BigInt64Array.of(2n ** 60n, 1n, 2n ** 61n + 1n) } };
  const session = await loadModel(bytesOf("ReduceSum", { feeds, initializer: [axes([0])] }));
  expect((await session.run(feeds)).y.data).toEqual(BigInt64Array.of(3n * 2n ** 60n + 2n));
});

test.each(rows)("%s", async (_, name, make) => {
  await fc.assert(
    fc.asyncProperty(fc.nat(1000), side, side, side, async (seed, a, b, c) => {
      const made = make(seed, a, b, c);
      await compare(bytesOf(name.split(" ")[0], made), made.feeds, 1e-5);
    }),
    { numRuns: 8 },
  );
});

// large enough for kernels, and behind one
test.each(rows)("%s of wrong shapes gives numbers or says what it expected", async (_, name, make) => {
  const large = fc.integer({ min: 1, max: 40 });
  await fc.assert(
    fc.asyncProperty(fc.nat(1000), side, large, large, fc.nat(9), fc.nat(6), fc.nat(1000), async (seed, a, b, c, which, how, by) => {
      const made = make(seed, a, b, c);
      if (Object.keys(made.feeds).length === 0) return;
      const feeds = spoiled(made.feeds, which, how, by);
      const first = Object.values(feeds)[0].type;
      try {
        const session = await loadModel(
          bytesOf(name.split(" ")[0], { ...made, feeds }, first === "float32" && by % 2 === 0 ? "Relu" : undefined),
        );
        await session.run(feeds);
        await session.release();
      } catch (error) {
        if (!(error instanceof LowbitError)) throw error;
      }
    }),
    { numRuns: 15 },
  );
});

test("integers modulo 0, keys of other sequences than the queries', images smaller than a window", async () => {
  const run = async (name: string, made: ReturnType<Make>, before?: string) =>
    (await loadModel(bytesOf(name, made, before))).run(made.feeds);
  await expect(run("Mod", { feeds: { x: i64([2], [1, 2]), z: i64([1], [0]) } })).rejects.toThrow(/Mod: expected a divisor that is not 0/);
  const heads = (batch: number) => f32(batch, [batch, 3, 16]);
  await expect(
    run("com.microsoft.MultiHeadAttention", { feeds: { q: heads(1), k: heads(2), v: heads(1) }, attributes: { num_heads: 2n } }),
  ).rejects.toThrow(/expected keys of 1 sequences/);
  const x = f32(1, [1, 4, 1, 200]);
  for (const op of ["MaxPool", "AveragePool"])
    await expect(run(op, { feeds: { x }, attributes: { kernel_shape: ints(2, 2) } }, "Relu")).rejects.toThrow(
      /at least as large as the window, got \[1, 200\]/,
    );
  await expect(run("Conv", { feeds: { x }, initializer: [raw("w", [4, 4, 3, 3], numbers(2, 144))] }, "Relu")).rejects.toThrow(
    /at least as large as the window, got \[1, 200\]/,
  );
});
