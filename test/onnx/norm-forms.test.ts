// Normalizations in every spelling that exporters use: each is found, its gain is folded and its stream turned, and the
// outputs stay, as onnxruntime computes them. norm-stays.test.ts has what only looks like one.
import { describe, expect, test } from "vitest";
import { writeModelBytes } from "../../src/onnx/index.ts";
import { raw, T } from "./build.ts";
import { added, applied, block, D, FORMS, operators, type Builder, type Spelling } from "./norm-blocks.ts";

describe.each(Object.entries(FORMS))("%s", (_, { kind, opset, norm }) => {
  const bytes = block(norm, opset, added(norm));

  test("the gain goes into the products behind it", async () => {
    const { notes, difference } = await applied(bytes, ["fold-norm"]);
    expect(notes).toEqual(["fold-norm: 2 of 2 norms folded into the products behind them"]);
    expect(difference).toBeLessThan(1e-5);
    const again = await applied(writeModelBytes((await applied(bytes, ["fold-norm"])).model), ["fold-norm"]);
    expect(again.notes).toEqual([
      "fold-norm: 0 of 2 norms folded into the products behind them",
      "fold-norm: kept n1: folded already",
      "fold-norm: kept n2: folded already",
    ]);
  });

  test("the stream turns, and a LayerNorm is an RMSNorm then", async () => {
    const { model: turned, notes, difference } = await applied(bytes, [{ name: "rotate", block: "full", seed: 3 }]);
    expect(notes.join("\n")).toContain(
      `residual stream of 16 channels turned in blocks of 16: 2 products read it, 2 write it, 1 tables and biases, 2 ${kind === "layer" ? "LayerNorms, now RMSNorms" : "norms"}`,
    );
    expect(difference).toBeLessThan(2e-5);
    if (kind === "layer") expect(operators(turned).filter((op) => /^(Sub|LayerNormalization|ReduceMean)$/.test(op))).toEqual(["ReduceMean", "ReduceMean"]); // prettier-ignore
  });
});

describe("norms that add up their inputs", () => {
  const skip =
    (op: string, sum: string) =>
    (b: Builder, s: string, d: string): string => {
      const vectors = op === "SkipLayerNormalization" ? [b.gain("n2"), b.bias("n2")] : [b.gain("n2")];
      b.op(op, [s, d, ...vectors], sum === "" ? ["n2"] : ["n2", "", "", sum], { epsilon: 1e-3 }, "com.microsoft");
      if (sum === "") return "n2";
      const more = b.op("Add", [sum, b.op("MatMul", ["n2", b.tensor("wm", [D, D])], "m")], "s2");
      return FORMS[op === "SkipLayerNormalization" ? "LayerNormalization" : "SimplifiedLayerNormalization"].norm(b, more, "n3");
    };
  test.each([
    ["SkipLayerNormalization", "", 2],
    ["SkipLayerNormalization", "sum", 3],
    ["SkipSimplifiedLayerNormalization", "", 2],
    ["SkipSimplifiedLayerNormalization", "sum", 3],
  ])("%s, sum %j", async (op, sum, count) => {
    const layers = op === "SkipLayerNormalization";
    const norm = FORMS[layers ? "LayerNormalization" : "SimplifiedLayerNormalization"].norm;
    const bytes = block(norm, 17, skip(op, sum));
    const folded = await applied(bytes, ["fold-norm"]);
    expect(folded.notes).toEqual([`fold-norm: ${count} of ${count} norms folded into the products behind them`]);
    expect(folded.difference).toBeLessThan(1e-5);
    const turned = await applied(bytes, [{ name: "rotate", block: "full" }]);
    expect(turned.notes.join("\n")).toContain(`${count} products read it, ${count} write it`);
    expect(turned.difference).toBeLessThan(2e-5);
    expect(operators(turned.model)).not.toContain("SkipLayerNormalization");
  });
});

describe("the mean that a LayerNormalization gives too", () => {
  const other =
    (read: boolean): Spelling =>
    (b, x, n) => {
      b.op("LayerNormalization", [x, b.gain(n), b.bias(n)], [n, `${n}/mean`], { axis: -1n });
      if (read) b.op("Abs", [`${n}/mean`], `${n}/seen`);
      return n;
    };
  test.each([false, true])("read: %s", async (read) => {
    const { notes, difference, model: turned } = await applied(block(FORMS.LayerNormalization.norm, 17, (b, s, d) => other(read)(b, b.op("Add", [s, d], "s1"), "n2")), [{ name: "rotate", block: "full" }]); // prettier-ignore
    expect(difference).toBeLessThan(2e-5);
    const left = operators(turned).filter((op) => op === "LayerNormalization").length;
    if (!read) expect([notes.join("\n").includes("now RMSNorms"), left]).toEqual([true, 0]);
    else expect([notes.join("\n").includes("its mean or deviation (n2/mean) is used"), left]).toEqual([true, 2]);
  });
});

test("the mean of a spelled-out LayerNorm that something else reads stays, as it does not where nothing does", async () => {
  const spelled = FORMS["layer: sqrt, div"].norm;
  for (const read of [false, true]) {
    const bytes = block(spelled, 17, (b, s, d) => {
      const n = spelled(b, b.op("Add", [s, d], "s1"), "n2");
      if (read) b.op("Abs", ["n2/mean"], "seen");
      return n;
    });
    const { model: turned, notes, difference } = await applied(bytes, [{ name: "rotate", block: "full" }]);
    expect(notes.join("\n")).toContain("2 LayerNorms, now RMSNorms");
    expect(difference).toBeLessThan(2e-5);
    const means = turned.proto.graph!.node.filter(({ opType }) => opType === "ReduceMean").map(({ output }) => output[0]);
    expect(means.includes("n2/mean")).toBe(read);
    expect(means.includes("n1/mean")).toBe(false);
  }
});

describe("what hands vectors on whole between a norm and its products", () => {
  const shape = (b: Builder, name: string, ...dims: number[]): string => {
    b.init.set(name, raw(name, [dims.length], BigInt64Array.from(dims, BigInt), T.INT64));
    return name;
  };
  const between: Record<string, [folds: boolean, (b: Builder, n: string) => string]> = {
    Identity: [true, (b, n) => b.op("Identity", [n], "i")],
    Cast: [true, (b, n) => b.op("Cast", [n], "i", { to: 1n })],
    Dropout: [true, (b, n) => b.op("Dropout", [n], "i")],
    Reshape: [true, (b, n) => b.op("Reshape", [n, shape(b, "to", -1, D)], "i")],
    "Unsqueeze, Squeeze": [true, (b, n) => b.op("Squeeze", [b.op("Unsqueeze", [n, shape(b, "at", 1)], "us"), shape(b, "at", 1)], "i")],
    Flatten: [true, (b, n) => b.op("Flatten", [n], "i", { axis: 2n })],
    "Gather of rows": [true, (b, n) => b.op("Gather", [n, shape(b, "rows", 1, 0)], "i", { axis: 1n })],
    "Gather of channels": [false, (b, n) => b.op("Gather", [n, shape(b, "rows", ...Array.from({ length: D }, (_, i) => D - 1 - i))], "i", { axis: 2n })], // prettier-ignore
    "Transpose that leaves channels last": [true, (b, n) => b.op("Transpose", [n], "i", { perm: { ints: [0, 1, 2] } })],
    Relu: [false, (b, n) => b.op("Relu", [n], "i")],
    Abs: [false, (b, n) => b.op("Abs", [n], "i")],
  };
  test.each(Object.entries(between))("%s", async (_, [folds, make]) => {
    const norm = FORMS["LayerNormalization"].norm;
    const bytes = block(norm, 17, (b, s, d) => make(b, norm(b, b.op("Add", [s, d], "s1"), "n2")));
    const { notes, difference } = await applied(bytes, ["fold-norm"]);
    expect(notes[0]).toBe(`fold-norm: ${folds ? 2 : 1} of 2 norms folded into the products behind them`);
    expect(difference).toBeLessThan(1e-5);
  });
});

test("Concat, Slice and a factor for all channels leave the stream whole; along the channels they end it", async () => {
  const { norm } = FORMS.SimplifiedLayerNormalization;
  const through =
    (axis: bigint, last = false) =>
    (b: Builder, s: string, d: string) => {
      b.init.set("cut", raw("cut", [1], BigInt64Array.of(3n), T.INT64)).set("end", raw("end", [1], BigInt64Array.of(6n), T.INT64));
      const axes = b.init.set("axes", raw("axes", [1], BigInt64Array.of(axis), T.INT64)) && "axes";
      const joined = b.op("Concat", [b.op("Add", [s, d], "s1"), s], "joined", { axis });
      const cut = b.op("Slice", [joined, "cut", "end", axes], "sliced");
      return norm(b, b.op("Mul", [b.scalar("half", 0.5), !last ? cut : b.op("Add", ["s1", b.op("ReduceMax", [cut], "max", { keepdims: 0n })], "s2")], "scaled"), "n2"); // prettier-ignore
    };
  for (const axis of [1n, -2n]) {
    const along = await applied(block(norm, 17, through(axis)), [{ name: "rotate", block: "full" }]);
    expect(along.notes.join("\n")).toContain("2 products read it, 2 write it");
    expect(along.difference).toBeLessThan(2e-5);
  }
  const across = await applied(block(norm, 17, through(-1n, true)), [{ name: "rotate", block: "full" }]);
  expect(across.notes.join("\n")).not.toContain("residual stream of");
  expect(across.difference).toBeLessThan(1e-5);
});
