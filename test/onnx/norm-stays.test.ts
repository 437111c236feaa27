// What only looks like a normalization, or is read by more than products: passes leave it alone and say why. Outputs stay.
import { describe, expect, test } from "vitest";
import { applyPasses, readModelBytes, type PassRequest } from "../../src/onnx/index.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { encode, graph, model, T, value, weights, type AttributeValue } from "./build.ts";
import { keep } from "./kept.ts";
import { added, applied, block, Builder, D, DIVISIONS, FORMS, mean, operators, square, type Spelling } from "./norm-blocks.ts";

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

describe("products that are none of the vectors of a norm", () => {
  const rows = (nodes: (b: Builder, n: string) => void, dims: number[], norm = FORMS.SimplifiedLayerNormalization.norm) => {
    const b = new Builder();
    nodes(b, norm(b, b.op("MatMul", ["x", b.tensor("wa", [D, D])], "s0"), "n1"));
    const proto = model(graph({ input: [value("x", T.FLOAT, dims)], output: [value("y", T.FLOAT, [])], initializer: [...b.init.values()], node: b.nodes })); // prettier-ignore
    return encode(proto);
  };
  const turned = [{ x: { type: "float32", data: weights(D * D, 4).map((v) => 5 * v), dims: [D, D] } }];
  const after = async (bytes: Uint8Array, passes: PassRequest[], own = turned) => {
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
      turned.map(({ x }) => ({ x: { ...x, dims: [1, D, D] } })),
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
