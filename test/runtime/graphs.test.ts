// Random graphs against onnxruntime-node: on the kernels with their fusions, and as loops.
import { expect, test } from "vitest";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { random } from "../helpers/random.ts";
import { randomGraph } from "./graphs.ts";
import { compare } from "./judge.ts";

const FIRST = Number(process.env.GRAPHS_SEED ?? 1);
const COUNT = Number(process.env.GRAPHS ?? 120);

test(`${COUNT} random graphs: values and shapes of onnxruntime, fused and one by one`, async () => {
  const fused = new Set<string>();
  for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
    const { integer } = random(seed);
    const { bytes, feeds, text } = randomGraph(integer, 4 + integer(14));
    for (const backend of ["wasm", "reference"] as const) {
      const session = await loadModel(bytes, { backend });
      await compare(bytes, feeds, 1e-4, session).catch((error: unknown) => {
        throw new Error(`seed ${seed}, ${backend}: ${text}`, { cause: error });
      });
      for (const { operator, kernel } of session.explain().steps) if (kernel === "kernel") fused.add(operator);
      await session.release();
    }
  }
  // the graphs are such that patterns are found in them
  expect([...fused]).toEqual(expect.arrayContaining(["lowbit.Attention", "lowbit.LayerNorm", "lowbit.RMSNorm"]));
});

// uint8: onnxruntime's sums of uint8 by int8 saturate on some processors
const DTYPES = ["uint8", "q4", "q8-block", "q2", "bnb4"] as const;

test(`${COUNT} random graphs, quantized: values of onnxruntime`, async () => {
  for (let seed = FIRST; seed < FIRST + COUNT; seed++) {
    const { integer } = random(seed);
    const { bytes, feeds, text } = randomGraph(integer, 4 + integer(14));
    const dtype = DTYPES[seed % DTYPES.length];
    const quantized = await quantizeModelBytes(bytes, { dtype });
    // codes of activations differ by one where sums differ in their last bits
    await compare(quantized.bytes, feeds, dtype === "uint8" ? 5e-2 : 1e-4).catch((error: unknown) => {
      throw new Error(`seed ${seed}, ${dtype}: ${text}`, { cause: error });
    });
  }
});
