// Normalizations in every spelling that exporters use: each is found, its gain is folded and its stream turned, and the
// outputs stay, as onnxruntime computes them. What only looks like one is left alone.
import { create } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { OperatorSetIdProtoSchema, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { applyPasses, readModelBytes, writeModelBytes, type PassRequest } from "../../src/onnx/index.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";
import { calibrationOn } from "./statistics.ts";
import { keep } from "./kept.ts";

const D = 16;

class Builder {
  readonly nodes: NodeProto[] = [];
  readonly init = new Map<string, TensorProto>();
  #seed = 1;
  op(type: string, input: string[], output: string | string[], attributes: Record<string, AttributeValue> = {}, domain = ""): string {
    const outputs = [output].flat();
    this.nodes.push(Object.assign(node(type, input, outputs, attributes, `${outputs[0]}/node`), { domain }));
    return outputs[0];
  }
  tensor(name: string, dims: number[], map = (v: number): number => v): string {
    const count = dims.reduce((a, b) => a * b, 1);
    if (!this.init.has(name)) this.init.set(name, raw(name, dims, weights(count, this.#seed++).map(map)));
    return name;
  }
  scalar(name: string, v: number): string {
    this.init.set(name, raw(name, [], Float32Array.of(v)));
    return name;
  }
  gain = (name: string): string => this.tensor(`${name}.gain`, [D], (v) => 1 + 3 * v);
  bias = (name: string): string => this.tensor(`${name}.bias`, [D]);
}

type Spelling = (b: Builder, x: string, name: string) => string;
interface Form {
  readonly kind: "layer" | "rms";
  readonly opset: number;
  readonly norm: Spelling;
}

const mean = (b: Builder, x: string, out: string, axes: "attribute" | "input" | "positive"): string => {
  if (axes !== "input") return b.op("ReduceMean", [x], out, { axes: { ints: [axes === "positive" ? 2 : -1] }, keepdims: 1n });
  b.init.set("last", raw("last", [1], BigInt64Array.of(-1n), T.INT64));
  return b.op("ReduceMean", [x, "last"], out);
};
const square = (b: Builder, x: string, out: string, by: "Pow" | "Mul"): string =>
  by === "Mul" ? b.op("Mul", [x, x], out) : b.op("Pow", [x, b.scalar("two", 2)], out);
/** Mean of squares -> 1 / sqrt(. + eps), times x. */
const DIVISIONS: Record<string, (b: Builder, m: string, x: string, name: string) => string> = {
  "sqrt, div": (b, m, x, n) => b.op("Div", [x, b.op("Sqrt", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/n`),
  "eps first": (b, m, x, n) => b.op("Div", [x, b.op("Sqrt", [b.op("Add", [b.scalar("eps", 1e-3), m], `${n}/e`)], `${n}/s`)], `${n}/n`),
  "sqrt, reciprocal, mul": (b, m, x, n) =>
    b.op("Mul", [x, b.op("Reciprocal", [b.op("Sqrt", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/r`)], `${n}/n`), // prettier-ignore
  "sqrt, 1 / ., mul in the other order": (b, m, x, n) =>
    b.op("Mul", [b.op("Div", [b.scalar("one", 1), b.op("Sqrt", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/r`), x], `${n}/n`), // prettier-ignore
  "pow -0.5, mul": (b, m, x, n) =>
    b.op("Mul", [b.op("Pow", [b.op("Add", [m, b.scalar("eps", 1e-3)], `${n}/e`), b.scalar("minus", -0.5)], `${n}/r`), x], `${n}/n`),
};
const rms =
  (division: string, by: "Pow" | "Mul", axes: "attribute" | "input" | "positive", gainFirst = false): Spelling =>
  (b, x, name) => {
    const m = mean(b, square(b, x, `${name}/q`, by), `${name}/m`, axes);
    const normal = DIVISIONS[division](b, m, x, name);
    return b.op("Mul", gainFirst ? [b.gain(name), normal] : [normal, b.gain(name)], name);
  };
const layer =
  (division: string, by: "Pow" | "Mul", axes: "attribute" | "input" | "positive", twice = false): Spelling =>
  (b, x, name) => {
    const centered = b.op("Sub", [x, mean(b, x, `${name}/mean`, axes)], `${name}/c`);
    const again = twice ? b.op("Sub", [x, mean(b, x, `${name}/mean2`, axes)], `${name}/c2`) : centered;
    const normal = DIVISIONS[division](b, mean(b, square(b, centered, `${name}/q`, by), `${name}/m`, axes), again, name);
    return b.op("Add", [b.bias(name), b.op("Mul", [normal, b.gain(name)], `${name}/g`)], name);
  };

const FORMS: Record<string, Form> = {
  LayerNormalization: { kind: "layer", opset: 17, norm: (b, x, n) => b.op("LayerNormalization", [x, b.gain(n), b.bias(n)], n, { axis: 2n }) }, // prettier-ignore
  "LayerNormalization without a bias": { kind: "layer", opset: 17, norm: (b, x, n) => b.op("LayerNormalization", [x, b.gain(n)], n, { epsilon: 1e-3 }) }, // prettier-ignore
  "LayerNormalization of opset 18": { kind: "layer", opset: 18, norm: (b, x, n) => b.op("LayerNormalization", [x, b.gain(n), b.bias(n)], n, { axis: -1n }) }, // prettier-ignore
  SimplifiedLayerNormalization: { kind: "rms", opset: 17, norm: (b, x, n) => b.op("SimplifiedLayerNormalization", [x, b.gain(n)], n, { axis: -1n, epsilon: 1e-3 }) }, // prettier-ignore
  RMSNormalization: { kind: "rms", opset: 23, norm: (b, x, n) => b.op("RMSNormalization", [x, b.gain(n)], n, { axis: -1n, epsilon: 1e-3 }) }, // prettier-ignore
  "rms: sqrt, div": { kind: "rms", opset: 17, norm: rms("sqrt, div", "Pow", "attribute") },
  "rms: eps first": { kind: "rms", opset: 17, norm: rms("eps first", "Mul", "attribute", true) },
  "rms: reciprocal": { kind: "rms", opset: 18, norm: rms("sqrt, reciprocal, mul", "Pow", "input") },
  "rms: 1 over": { kind: "rms", opset: 17, norm: rms("sqrt, 1 / ., mul in the other order", "Pow", "attribute") },
  "rms: pow": { kind: "rms", opset: 18, norm: rms("pow -0.5, mul", "Mul", "input") },
  "layer: sqrt, div": { kind: "layer", opset: 17, norm: layer("sqrt, div", "Pow", "positive") },
  "layer: reciprocal": { kind: "layer", opset: 18, norm: layer("sqrt, reciprocal, mul", "Mul", "input") },
  "layer: centred twice": { kind: "layer", opset: 17, norm: layer("pow -0.5, mul", "Pow", "attribute", true) },
};

/** x -> product -> [norm -> product -> ReLU -> product] + -> norm -> head. */
function block(norm: Spelling, opset: number, last: (b: Builder, s: string, d: string) => string): Uint8Array {
  const b = new Builder();
  const start = b.op("Add", [b.op("MatMul", ["x", b.tensor("wa", [D, D])], "a"), b.tensor("ba", [D])], "s0");
  const up = b.op("MatMul", [norm(b, start, "n1"), b.tensor("wu", [D, 24])], "u");
  const down = b.op("MatMul", [b.op("Relu", [up], "r"), b.tensor("wd", [24, D])], "d");
  b.op("MatMul", [last(b, start, down), b.tensor("wy", [D, 5])], "y");
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, ["b", 3, D])],
      output: [value("y", T.FLOAT, [])],
      initializer: [...b.init.values()],
      node: b.nodes,
    }),
    { opset, ir: 9 },
  );
  // exporters write the ranks of values, which a positive axis needs
  for (const { output } of b.nodes) proto.graph!.valueInfo.push(value(output[0], T.FLOAT, ["b", 3, "n"]));
  proto.graph!.valueInfo = proto.graph!.valueInfo.filter(({ name }) => name !== "y");
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}
const added =
  (norm: Spelling) =>
  (b: Builder, s: string, d: string): string =>
    norm(b, b.op("Add", [s, d], "s1"), "n2");

const feeds = [1, 2].map((seed) => ({ x: { type: "float32", data: weights(2 * 3 * D, seed + 40).map((v) => 5 * v), dims: [2, 3, D] } }));
async function applied(bytes: Uint8Array, passes: PassRequest[], options = {}) {
  const opened = readModelBytes(bytes);
  const reference = await referenceRun(opened, feeds);
  const notes = await applyPasses(opened, passes, { verify: false, ...options });
  if (!("calibration" in options)) keep(opened, ...notes);
  const after = readModelBytes(writeModelBytes(opened));
  return { model: after, notes, difference: (await differenceFrom(reference, after)).relative };
}
const operators = ({ proto }: ReturnType<typeof readModelBytes>): string[] => proto.graph!.node.map(({ opType }) => opType);

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

describe("what only looks like a normalization", () => {
  const plain = FORMS["rms: sqrt, div"].norm;
  const nothing = "fold-norm: 1 of 1 norms folded into the products behind them";
  const lookAlikes: Record<string, Spelling> = {
    "another power": (b, x, n) => DIVISIONS["sqrt, div"](b, mean(b, b.op("Pow", [x, b.scalar("four", 4)], `${n}/q`), `${n}/m`, "attribute"), x, n), // prettier-ignore
    "a product of two values": (b, x, n) => DIVISIONS["sqrt, div"](b, mean(b, b.op("Abs", [b.op("Mul", [x, b.op("Abs", [x], `${n}/a`)], `${n}/q`)], `${n}/p`), `${n}/m`, "attribute"), x, n), // prettier-ignore
    "another axis": (b, x, n) =>
      DIVISIONS["sqrt, div"](b, b.op("ReduceMean", [square(b, x, `${n}/q`, "Pow")], `${n}/m`, { axes: { ints: [1] } }), x, n),
    "two axes": (b, x, n) =>
      DIVISIONS["sqrt, div"](b, b.op("ReduceMean", [square(b, x, `${n}/q`, "Pow")], `${n}/m`, { axes: { ints: [1, 2] } }), x, n),
    "no axes": (b, x, n) => DIVISIONS["sqrt, div"](b, b.op("ReduceMean", [square(b, x, `${n}/q`, "Pow")], `${n}/m`), x, n),
    "another dividend": (b, x, n) =>
      DIVISIONS["sqrt, div"](b, mean(b, square(b, x, `${n}/q`, "Pow"), `${n}/m`, "attribute"), b.op("Abs", [x], `${n}/a`), n),
    "the cube root": (b, x, n) =>
      b.op("Div", [x, b.op("Pow", [b.op("Add", [mean(b, square(b, x, `${n}/q`, "Pow"), `${n}/m`, "attribute"), b.scalar("eps", 1e-3)], `${n}/e`), b.scalar("third", 1 / 3)], `${n}/s`)], `${n}/n`), // prettier-ignore
    "two over the root": (b, x, n) =>
      b.op("Mul", [b.op("Div", [b.scalar("two2", 2), b.op("Sqrt", [b.op("Add", [mean(b, square(b, x, `${n}/q`, "Pow"), `${n}/m`, "attribute"), b.scalar("eps", 1e-3)], `${n}/e`)], `${n}/s`)], `${n}/r`), x], `${n}/n`), // prettier-ignore
    "a root of squares that something else reads": (b, x, n) => {
      const m = mean(b, square(b, x, `${n}/q`, "Pow"), `${n}/m`, "attribute");
      const out = DIVISIONS["sqrt, div"](b, m, x, n);
      return b.op("Add", [out, b.op("ReduceMax", [`${n}/s`], `${n}/t`, { keepdims: 0n })], `${n}/o`);
    },
    "axis 1 with a gain of two dimensions": (b, x, n) =>
      b.op("LayerNormalization", [x, b.tensor(`${n}.gain2`, [3, D], (v) => 1 + v)], n, { axis: 1n }),
  };
  test.each(Object.entries(lookAlikes))("%s", async (_, spelling) => {
    const gained: Spelling = (b, x, n) => b.op("Mul", [spelling(b, x, n), b.gain(n)], `${n}/gained`);
    const { notes, difference } = await applied(block(gained, 17, added(plain)), ["fold-norm", { name: "rotate", block: "full" }]);
    expect(notes[0]).toBe(nothing);
    expect(notes.join("\n")).not.toContain("residual stream of");
    expect(difference).toBeLessThan(1e-5);
  });
});

describe("a difference that is not the one from the own mean is what is normalized, and no LayerNorm", () => {
  const differences: Record<string, (b: Builder, x: string, n: string) => string> = {
    "from the mean of another value": (b, x, n) => mean(b, b.op("Abs", [x], `${n}/a`), `${n}/mean`, "attribute"),
    "from a mean over another axis": (b, x, n) => b.op("ReduceMean", [x], `${n}/mean`, { axes: { ints: [1] } }),
    "from its largest": (b, x, n) => b.op("ReduceMax", [x], `${n}/mean`, { axes: { ints: [-1] } }),
    "from a constant": (b, _, n) => b.tensor(`${n}/mean`, [D]),
  };
  test.each(Object.entries(differences))("%s", async (_, from) => {
    const norm: Spelling = (b, x, n) => FORMS["rms: sqrt, div"].norm(b, b.op("Sub", [x, from(b, x, n)], `${n}/c`), n);
    const bytes = block(norm, 17, added(norm));
    const { model: after, notes, difference } = await applied(bytes, ["fold-norm", { name: "rotate", block: "full" }]);
    expect(notes[0]).toBe("fold-norm: 2 of 2 norms folded into the products behind them");
    expect(operators(after).filter((op) => op === "Sub")).toHaveLength(2);
    expect(difference).toBeLessThan(1e-5);
  });
});

describe("why a norm stays", () => {
  test.each<[string, RegExp, Spelling]>([
    [
      "nothing reads it",
      /kept unread: nothing reads it/,
      (b, x, n) => {
        FORMS.SimplifiedLayerNormalization.norm(b, x, "unread");
        return FORMS.SimplifiedLayerNormalization.norm(b, x, n);
      },
    ],
    [
      "something else reads it too",
      /kept n1: n1b\/node \(Abs\) reads it too/,
      (b, x, n) => {
        const out = FORMS.SimplifiedLayerNormalization.norm(b, x, n);
        b.op("Abs", [out], "n1b");
        return out;
      },
    ],
  ])("%s", async (_, text, norm) => {
    const { notes, difference } = await applied(block(norm, 17, added(FORMS.SimplifiedLayerNormalization.norm)), ["fold-norm"]);
    expect(notes.join("\n")).toMatch(text);
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

test("how far outputs may differ: more where weights are float16", async () => {
  const float = block(FORMS.SimplifiedLayerNormalization.norm, 17, added(FORMS.SimplifiedLayerNormalization.norm));
  expect((await referenceRun(readModelBytes(float), feeds)).tolerance).toBe(1e-4);
  const mixed = model(
    graph({
      input: [value("x", T.FLOAT, [2, 3, D])],
      output: [value("y", T.FLOAT, [2, 3, 4])],
      initializer: [raw("w", [D, 4], Uint16Array.from(weights(D * 4), encodeHalf), T.FLOAT16)],
      node: [node("Cast", ["w"], ["wide"], { to: BigInt(T.FLOAT) }), node("MatMul", ["x", "wide"], ["y"])],
    }),
  );
  expect((await referenceRun(readModelBytes(encode(mixed)), feeds)).tolerance).toBe(1e-2);
});

test("gather-outliers: where all channels are wide nothing is put in order", async () => {
  const { norm } = FORMS.SimplifiedLayerNormalization;
  const options = { calibration: calibrationOn(feeds) };
  const bytes = block(norm, 17, added(norm));
  const all = await applied(bytes, [{ name: "gather-outliers", block: 8, share: 1 }], options);
  expect(all.notes[0]).toMatch(/outliers of (\d+) inputs of products gathered: (\d+) of \2 blocks of 8 channels keep 8 bits/);
  expect(operators(all.model)).not.toContain("Gather");
  expect(all.difference).toBe(0);
  const half = await applied(bytes, [{ name: "gather-outliers", block: 8, share: 0.5 }], options);
  expect(operators(half.model)).toContain("Gather");
  expect(half.difference).toBeLessThan(1e-5);
});

test("bias-correction without biases says so and changes nothing; with add it gives them", async () => {
  const bytes = encode(
    model(
      graph({
        input: [value("x", T.FLOAT, ["b", 3, D])],
        output: [value("y", T.FLOAT, ["b", 3, 4])],
        initializer: [raw("w", [D, 4], weights(D * 4))],
        node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")],
      }),
    ),
  );
  const options = { calibration: calibrationOn(feeds) };
  const none = await applied(bytes, [{ name: "bias-correction", format: "int4_b16" }], options);
  expect(none.notes).toEqual(["bias-correction: no layers with a bias were found (add: true gives them one); nothing changed"]);
  expect(none.difference).toBe(0);
  const given = await applied(bytes, [{ name: "bias-correction", format: "int2_b16", add: true }], options);
  expect(given.notes).toEqual(["bias-correction: 1 of 1 biases corrected for the shift of quantization"]);
  expect(given.difference).toBeGreaterThan(1e-3);
});

describe("products that are none of the vectors of a norm", () => {
  const rows = (nodes: (b: Builder, n: string) => void, dims: number[], norm = FORMS.SimplifiedLayerNormalization.norm) => {
    const b = new Builder();
    nodes(b, norm(b, b.op("MatMul", ["x", b.tensor("wa", [D, D])], "s0"), "n1"));
    const proto = model(graph({ input: [value("x", T.FLOAT, dims)], output: [value("y", T.FLOAT, [])], initializer: [...b.init.values()], node: b.nodes })); // prettier-ignore
    return encode(proto);
  };
  const square = [{ x: { type: "float32", data: weights(D * D, 4).map((v) => 5 * v), dims: [D, D] } }];
  const after = async (bytes: Uint8Array, passes: PassRequest[], own = square) => {
    const opened = readModelBytes(bytes);
    const reference = await referenceRun(opened, own);
    const notes = await applyPasses(opened, passes, { verify: false });
    keep(opened, ...notes);
    return { notes, difference: (await differenceFrom(reference, opened)).relative };
  };
  test.each<[string, Record<string, AttributeValue>]>([
    ["transA", { transA: 1n }],
    ["alpha", { alpha: 0.5 }],
  ])("Gemm with %s", async (_, attributes) => {
    const bytes = rows((b, n) => void b.op("Gemm", [n, b.tensor("wy", [D, 5])], "y", attributes), [D, D]);
    const { notes, difference } = await after(bytes, ["fold-norm", { name: "rotate", block: "full" }]);
    expect(notes.join()).toContain("kept n1: y/node (Gemm) reads it too");
    expect(difference).toBeLessThan(1e-5);
  });
  test("means without their axis are of other numbers", async () => {
    const spelled: Spelling = (b, x, n) =>
      DIVISIONS["sqrt, div"](b, b.op("ReduceMean", [b.op("Pow", [x, b.scalar("two", 2)], `${n}/q`)], `${n}/m`, { axes: { ints: [-1] }, keepdims: 0n }), x, n); // prettier-ignore
    const gained: Spelling = (b, x, n) => b.op("Mul", [spelled(b, x, n), b.gain(n)], `${n}/g`);
    const bytes = rows((b, n) => void b.op("MatMul", [n, b.tensor("wy", [D, 5])], "y"), [1, D, D], gained);
    const { notes, difference } = await after(
      bytes,
      ["fold-norm"],
      square.map(({ x }) => ({ x: { ...x, dims: [1, D, D] } })),
    );
    expect(notes).toEqual(["fold-norm: no LayerNorm or RMSNorm over the last axis was found; nothing changed"]);
    expect(difference).toBe(0);
  });
  test("one norm and one stream are something that changed", async () => {
    const bytes = rows((b, n) => void b.op("MatMul", [n, b.tensor("wy", [D, 5])], "y"), [D, D]);
    const { notes, difference } = await after(bytes, [{ name: "rotate", block: "full", heads: false }]);
    expect(notes).toEqual(["rotate: 1 norms folded first", expect.stringContaining("1 products read it, 1 write it")]);
    expect(difference).toBeLessThan(2e-5);
  });
});
