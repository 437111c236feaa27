// Products of one input as one, with their biases: what is taken along, what stays, and the same values by kernels and
// by loops. Rows of tables of codes: what they are in every run, whatever the last one asked for.
import { describe, expect, it } from "vitest";
import { quantizeModelBytes } from "../../src/onnx/index.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import { compare } from "./judge.ts";
import { f32, ids, numbers } from "./make.ts";

const K = 64;
const WIDTHS = [32, 48, 16];

interface Shape {
  /** Dimensions of a bias, or a number for all. */
  readonly bias?: (width: number) => number[];
  /** The bias comes first. */
  readonly turned?: boolean;
  /** The second product has another reader. */
  readonly shared?: boolean;
}

/** Three products of x in 4-bit blocks, each with a bias. */
async function three({ bias = (width) => [width], turned = false, shared = false }: Shape): Promise<Uint8Array> {
  const initializer = WIDTHS.flatMap((width, i) => [
    raw(`w${i}`, [K, width], numbers(i + 1, K * width)),
    raw(
      `b${i}`,
      bias(width),
      numbers(
        i + 7,
        bias(width).reduce((a, b) => a * b, 1),
      ),
    ),
  ]);
  const nodes = WIDTHS.flatMap((_, i) => [
    node("MatMul", ["x", `w${i}`], [`p${i}`]),
    node("Add", turned ? [`b${i}`, `p${i}`] : [`p${i}`, `b${i}`], [`y${i}`]),
  ]);
  if (shared) nodes.push(node("Neg", ["p1"], ["z"]));
  const output = [...WIDTHS.map((width, i) => value(`y${i}`, T.FLOAT, ["n", 3, width])), ...(shared ? [value("z", T.FLOAT, ["n", 3, 48])] : [])]; // prettier-ignore
  const bytes = encode(model(graph({ input: [value("x", T.FLOAT, ["n", 3, K])], output, initializer, node: nodes }), { opset: 17 }));
  return (await quantizeModelBytes(bytes, { dtype: "q4" })).bytes;
}

describe("joined products", () => {
  it.each([
    ["take the biases along", {}, ["lowbit.Joined"]],
    ["take biases that come first along", { turned: true }, ["lowbit.Joined"]],
    ["leave biases of more dimensions", { bias: (width: number) => [1, width] }, ["lowbit.Joined", "Add", "Add", "Add"]],
    ["leave biases that are one number", { bias: () => [1] }, ["lowbit.Joined", "Add", "Add", "Add"]],
    ["leave all where one product is read elsewhere", { shared: true }, ["lowbit.Joined", "Add", "Add", "Add", "Neg"]],
  ] as const)("%s", async (_, shape: Shape, steps) => {
    const bytes = await three(shape);
    for (const backend of ["wasm", "reference"] as const)
      for (const n of [4, 1]) {
        const session = await loadModel(bytes, { backend });
        // one step of three rows, and many rows
        await compare(bytes, { x: f32(n, [n, 3, K]) }, 2e-5, session);
        expect([...session.explain().steps].map(({ operator }) => operator).sort()).toEqual([...steps].sort());
        await session.release();
      }
  });
});

describe("rows of a table of codes", () => {
  const table = async (): Promise<Uint8Array> => {
    const initializer = [raw("table", [200, K], numbers(3, 200 * K))];
    const nodes = [node("Gather", ["table", "ids"], ["e"]), node("Tanh", ["e"], ["y"])];
    const output = [value("y", T.FLOAT, ["n", K])];
    const bytes = encode(model(graph({ input: [value("ids", T.INT64, ["n"])], output, initializer, node: nodes }), { opset: 17 }));
    return (await quantizeModelBytes(bytes, { dtype: "q8" })).bytes;
  };

  it("are those of each run, from the end too", async () => {
    const bytes = await table();
    const session = await loadModel(bytes);
    for (const seed of [1, 2, 3, 4, 5, 6]) {
      const feed = ids(seed, [90], 200);
      if (seed % 2 === 0) feed.data.forEach((id, i) => (feed.data[i] = id - 200n));
      await compare(bytes, { ids: feed }, 1e-5, session);
    }
    expect(session.explain().steps.every(({ kernel }) => kernel !== "loops")).toBe(true);
    await session.release();
  });

  it("refuse an index beyond the table, and go on", async () => {
    const bytes = await table();
    const session = await loadModel(bytes);
    for (const bad of [200n, -201n, 2n ** 62n]) {
      const data = BigInt64Array.from({ length: 90 }, (_, i) => (i === 70 ? bad : 1n));
      await expect(session.run({ ids: { type: "int64", dims: [90], data } })).rejects.toThrow(/indices from -200 to 199.*Check the feeds/);
      await compare(bytes, { ids: ids(9, [90], 200) }, 1e-5, session);
    }
    await session.release();
  });
});
