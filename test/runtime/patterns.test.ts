// Patterns that exporters spell out: fused on kernels, equal to onnxruntime-node (its own fusions off) and to the steps
// run one by one; what differs a little from a pattern, or is read from outside it, stays as it is.
import { expect, test } from "vitest";
import { loadModel } from "../../src/runtime/index.ts";
import { encode, graph, model, node, raw, T, value, type AttributeValue } from "../onnx/build.ts";
import { compare, type Feeds } from "./judge.ts";
import { bools, f32, numbers, size } from "./make.ts";

/** A graph under construction. */
function builder() {
  const initializer: ReturnType<typeof raw>[] = [];
  const nodes: ReturnType<typeof node>[] = [];
  let serial = 0;
  return {
    put(opType: string, input: string[], attributes: Record<string, AttributeValue> = {}): string {
      const name = `v${serial++}`;
      nodes.push(node(opType, input, [name], attributes, name));
      return name;
    },
    floats(dims: number[], data: ArrayLike<number> = numbers(serial + 7, size(dims))): string {
      const name = `c${serial++}`;
      initializer.push(raw(name, dims, Float32Array.from(data)));
      return name;
    },
    integers(...values: number[]): string {
      const name = `i${serial++}`;
      initializer.push(raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64));
      return name;
    },
    bytes(feeds: Feeds, outputs: string[]): Uint8Array {
      const types: Record<string, number> = { float32: T.FLOAT, bool: T.BOOL, int64: T.INT64 };
      const input = Object.entries(feeds).map(([name, { type, dims }]) => value(name, types[type], [...dims]));
      const output = outputs.map((name) => value(name, T.FLOAT, []));
      for (const { type } of output) if (type?.value.case === "tensorType") type.value.value.shape = undefined;
      return encode(model(graph({ input, output, initializer, node: nodes }), { opset: 17 }));
    },
  };
}
type Builder = ReturnType<typeof builder>;

interface Case {
  readonly feeds: Feeds;
  readonly build: (b: Builder) => string | string[];
  /** Operators that must be there, and how many steps there are; none: no step is a fused one. */
  readonly fused?: string;
  readonly steps?: number;
}

async function check({ feeds, build, fused, steps }: Case): Promise<void> {
  const b = builder();
  const bytes = b.bytes(feeds, [build(b)].flat());
  const session = await loadModel(bytes);
  await compare(bytes, feeds, 2e-5, session);
  const explained = session.explain().steps;
  const wide = explained.filter(({ operator }) => /^lowbit\.(Attention|Rotary|\w*Norm)$/.test(operator));
  expect(wide.filter(({ kernel }) => kernel === "kernel").map(({ operator }) => operator)).toEqual(fused === undefined ? [] : [fused]);
  if (fused === undefined) expect(wide.every(({ kernel }) => kernel === "one by one")).toBe(true);
  if (steps !== undefined) expect(explained.length).toBe(steps);
  await session.release();
  const plain = await loadModel(bytes, { backend: "reference" });
  await compare(bytes, feeds, 2e-5, plain);
  await plain.release();
}

const [B, S, N, H] = [2, 13, 3, 20];
const rows = (seed: number, tokens = S, heads = N) => f32(seed, [B, tokens, heads * H]);
const mask4 = (b: number, n: number, s: number, t: number, low: number) => {
  const keep = numbers(9, b * n * s * t, 0, 1);
  return { type: "float32", dims: [b, n, s, t], data: keep.map((v, i) => (v < 0.6 || i % t === 0 ? 0 : low)) };
};
const transpose = (b: Builder, x: string, ...ints: number[]): string => b.put("Transpose", [x], { perm: { ints } });
/** [B, tokens, heads * H] split into heads. */
const split = (b: Builder, x: string, heads: number, ...perm: number[]): string =>
  transpose(b, b.put("Reshape", [x, b.integers(0, 0, heads, H)]), ...perm);

interface Style {
  readonly scale?: (b: Builder, scores: string) => string;
  readonly mask?: (b: Builder, scores: string) => string;
  readonly axis?: bigint;
  /** More results of the model. */
  readonly more?: (b: Builder, at: { scores: string; p: string; context: string }) => string[];
}
/** Attention of a BERT-like encoder. */
const bert =
  ({ scale, mask, axis = -1n, more }: Style) =>
  (b: Builder): string[] => {
    const scores = b.put("MatMul", [split(b, "q", N, 0, 2, 1, 3), split(b, "k", N, 0, 2, 3, 1)]);
    const scaled = scale?.(b, scores) ?? scores;
    const p = b.put("Softmax", [mask?.(b, scaled) ?? scaled], { axis });
    const context = b.put("MatMul", [p, split(b, "v", N, 0, 2, 1, 3)]);
    const y = b.put("Reshape", [transpose(b, context, 0, 2, 1, 3), b.integers(0, 0, N * H)]);
    return [y, ...(more?.(b, { scores, p, context }) ?? [])];
  };
const qkv: Feeds = { q: rows(1), k: rows(2, 17), v: rows(3, 17) };
const divide = (b: Builder, x: string): string => b.put("Div", [x, b.floats([], [Math.sqrt(H)])]);
const times = (b: Builder, x: string): string => b.put("Mul", [b.floats([1], [0.2]), x]);
const add = (b: Builder, x: string): string => b.put("Add", [x, "mask"]);

test.each<[string, Case]>([
  ["no mask, no scale", { feeds: qkv, build: bert({}), fused: "lowbit.Attention", steps: 5 }],
  ["Div, mask of keys", { feeds: { ...qkv, mask: mask4(B, 1, 1, 17, -3.4028234663852886e38) }, build: bert({ scale: divide, mask: add }), fused: "lowbit.Attention", steps: 5 }],
  ["Mul, mask of tokens and keys", { feeds: { ...qkv, mask: mask4(1, 1, S, 17, -Infinity) }, build: bert({ scale: times, mask: add }), fused: "lowbit.Attention" }],
  ["mask of heads, small numbers", { feeds: { ...qkv, mask: f32(4, [B, N, S, 17], -3, 3) }, build: bert({ mask: add }), fused: "lowbit.Attention" }],
  ["mask of two dimensions, before its scores", { feeds: { ...qkv, mask: f32(4, [S, 17], -3, 3) }, build: bert({ scale: divide, mask: (b, x) => b.put("Add", ["mask", x]) }), fused: "lowbit.Attention" }],
  ["Where", { feeds: { ...qkv, keep: bools(5, [1, 1, S, 17]) }, build: bert({ scale: divide, mask: (b, x) => b.put("Where", ["keep", x, b.floats([], [-3.4028234663852886e38])]) }), fused: "lowbit.Attention" }],
  ["another result reads the scores", { feeds: qkv, build: bert({ more: (b, { scores }) => [b.put("Neg", [scores])] }) }],
  ["the probabilities are a result", { feeds: qkv, build: bert({ more: (_, { p }) => [p] }) }],
  ["the context is read before its Transpose", { feeds: qkv, build: bert({ more: (b, { context }) => [b.put("Neg", [context])] }), fused: "lowbit.Attention" }],
  ["another axis", { feeds: qkv, build: bert({ axis: 2n }) }],
  ["a scale for each key", { feeds: qkv, build: bert({ scale: (b, x) => b.put("Mul", [x, b.floats([17])]) }) }],
  ["a large number replaces", { feeds: { ...qkv, keep: bools(5, [1, 1, S, 17]) }, build: bert({ mask: (b, x) => b.put("Where", ["keep", x, b.floats([], [-4])]) }) }],
])("attention of encoders: %s", async (_, one) => check(one)); // prettier-ignore

/** As torch writes scaled_dot_product_attention: the root of the scale on queries and keys, made of their shape. */
const torch =
  (guard: boolean, repeat: number) =>
  (b: Builder): string => {
    const width = b.put("Gather", [b.put("Shape", ["q"]), b.integers(2)]);
    const root = b.put("Sqrt", [b.put("Div", [b.floats([1], [N]), b.put("Cast", [width], { to: 1n })])]);
    const scale = b.put("Sqrt", [root]);
    const wide = (x: string): string => {
      if (repeat === 1) return x;
      const lifted = b.put("Expand", [b.put("Unsqueeze", [x, b.integers(2)]), b.integers(B, N, repeat, 17, H)]);
      return b.put("Reshape", [lifted, b.integers(0, N * repeat, -1, H)]);
    };
    const q = b.put("Mul", [split(b, "q", N * repeat, 0, 2, 1, 3), scale]);
    const k = b.put("Mul", [transpose(b, wide(split(b, "k", N, 0, 2, 1, 3)), 0, 1, 3, 2), scale]);
    const p = b.put("Softmax", [b.put("Add", [b.put("MatMul", [q, k]), "mask"])], { axis: -1n });
    const kept = guard ? b.put("Where", [b.put("IsNaN", [p]), b.floats([], [0]), p]) : p;
    return transpose(b, b.put("MatMul", [kept, wide(split(b, "v", N, 0, 2, 1, 3))]), 0, 2, 1, 3);
  };
const empty = mask4(B, 1, S, 17, -Infinity);
empty.data.fill(-Infinity, 17 * 3, 17 * 4);
test.each<[string, Case]>([
  ["plain", { feeds: { ...qkv, mask: mask4(B, 1, S, 17, -Infinity) }, build: torch(false, 1), fused: "lowbit.Attention" }],
  ["rows without a key, guarded", { feeds: { ...qkv, mask: empty }, build: torch(true, 1), fused: "lowbit.Attention" }],
  ["repeated heads", { feeds: { ...qkv, q: rows(1, S, 2 * N), mask: mask4(B, 1, S, 17, -3.4028234663852886e38) }, build: torch(true, 2), fused: "lowbit.Attention" }],
])("attention of torch: %s", async (_, one) => check(one)); // prettier-ignore

test("a row without a key is NaN where nothing guards it", async () => {
  const b = builder();
  const feeds = { ...qkv, mask: empty };
  const session = await loadModel(b.bytes(feeds, [torch(false, 1)(b)]));
  const y = Object.values(await session.run(feeds))[0].data as Float32Array;
  expect(Array.from(y.subarray(3 * N * H, 4 * N * H)).every(Number.isNaN)).toBe(true);
  expect(Number.isNaN(y[0])).toBe(false);
  await session.release();
});

/** As BART has it: batch and heads are one dimension, but for the mask. */
const bart =
  (mask: boolean) =>
  (b: Builder): string => {
    const one = (x: string): string => b.put("Reshape", [split(b, x, N, 0, 2, 1, 3), b.integers(B * N, -1, H)]);
    const scores = b.put("MatMul", [b.put("Mul", [one("q"), b.floats([], [0.25])]), transpose(b, one("k"), 0, 2, 1)]);
    const four = b.put("Reshape", [scores, b.integers(B, N, S, 17)]);
    const masked = mask ? b.put("Reshape", [b.put("Add", [four, "mask"]), b.integers(B * N, S, 17)]) : scores;
    return b.put("MatMul", [b.put("Softmax", [masked], { axis: -1n }), one("v")]);
  };
test.each<[string, Case]>([
  ["no mask", { feeds: qkv, build: bart(false), fused: "lowbit.Attention" }],
  ["mask of keys", { feeds: { ...qkv, mask: mask4(B, 1, 1, 17, -3.4028234663852886e38) }, build: bart(true), fused: "lowbit.Attention" }],
  ["mask of tokens", { feeds: { ...qkv, mask: mask4(1, 1, S, 17, -3.4028234663852886e38) }, build: bart(true), fused: "lowbit.Attention" }],
])("attention of BART: %s", async (_, one) => check(one)); // prettier-ignore

type Form = (b: Builder, x: string, w: string, bias: string) => string;
const mean = (b: Builder, x: string, axis = -1): string => b.put("ReduceMean", [x], { axes: { ints: [axis] } });
const square = (b: Builder, x: string): string => b.put("Pow", [x, b.floats([], [2])]);
const root = (b: Builder, x: string, axis = -1): string => b.put("Sqrt", [b.put("Add", [mean(b, x, axis), b.floats([], [1e-3])])]);
const layerNorm: Form = (b, x, w, bias) => {
  const d = b.put("Sub", [x, mean(b, x)]);
  return b.put("Add", [b.put("Mul", [b.put("Div", [d, root(b, square(b, d))]), w]), bias]);
};
const rms: Form = (b, x, w) => b.put("Mul", [w, b.put("Div", [x, root(b, square(b, x))])]);
const rmsReciprocal: Form = (b, x, w) => b.put("Mul", [b.put("Mul", [x, b.put("Reciprocal", [root(b, b.put("Mul", [x, x]))])]), w]);
const rmsOver: Form = (b, x, w) => b.put("Mul", [b.put("Mul", [x, b.put("Div", [b.floats([], [1]), root(b, square(b, x))])]), w]);
const D = 37;
const of =
  (form: Form) =>
  (b: Builder): string =>
    form(b, "x", b.floats([D]), b.floats([D]));
const x: Feeds = { x: f32(1, [3, 5, D]) };
const two: Feeds = { x: f32(1, [3, 5, D]), z: f32(2, [3, 5, D]) };
test.each<[string, Case]>([
  ["LayerNormalization", { feeds: x, build: of(layerNorm), fused: "lowbit.LayerNorm", steps: 1 }],
  ["without its shift", { feeds: x, build: of((b, v, w) => { const d = b.put("Sub", [v, mean(b, v)]); return b.put("Mul", [b.put("Div", [d, root(b, square(b, d))]), w]); }), fused: "lowbit.LayerNorm", steps: 1 }],
  ["RMS", { feeds: x, build: of(rms), fused: "lowbit.RMSNorm", steps: 1 }],
  ["RMS by a reciprocal", { feeds: x, build: of(rmsReciprocal), fused: "lowbit.RMSNorm", steps: 1 }],
  ["RMS by one over", { feeds: x, build: of(rmsOver), fused: "lowbit.RMSNorm", steps: 1 }],
  ["RMS between Casts", { feeds: x, build: of((b, v, w) => { const f = b.put("Cast", [b.put("Neg", [v])], { to: 1n }); return b.put("Mul", [w, b.put("Cast", [b.put("Div", [f, root(b, square(b, f))])], { to: 1n })]); }), fused: "lowbit.RMSNorm", steps: 2 }],
  ["a Cast that is a result", { feeds: x, build: (b) => [b.put("Cast", ["x"], { to: 1n }), rms(b, "x", b.floats([D]), "")], fused: "lowbit.RMSNorm", steps: 2 }],
  ["a residual before", { feeds: two, build: (b) => of((c, v, w, bias) => layerNorm(c, c.put("Add", [v, "z"]), w, bias))(b), fused: "lowbit.SkipLayerNorm", steps: 1 }],
  ["a residual and a bias, the sum read again", { feeds: two, build: (b) => { const sum = b.put("Add", [b.put("Add", [b.floats([D]), "x"]), "z"]); const y = rms(b, sum, b.floats([D]), ""); return [y, b.put("Neg", [sum])]; }, fused: "lowbit.SkipRMSNorm", steps: 2 }],
  ["the sum is a result", { feeds: two, build: (b) => { const sum = b.put("Add", ["x", "z"]); return [sum, b.put("LayerNormalization", [sum, b.floats([D]), b.floats([D])], { axis: -1n })]; }, fused: "lowbit.SkipLayerNorm", steps: 1 }],
  ["positions of one sequence", { feeds: { x: f32(1, [1, 9, D]) }, build: (b) => layerNorm(b, b.put("Add", ["x", b.floats([9, D])]), b.floats([D]), b.floats([D])), fused: "lowbit.SkipLayerNorm", steps: 1 }],
  ["positions of several sequences", { feeds: x, build: (b) => layerNorm(b, b.put("Add", ["x", b.floats([5, D])]), b.floats([D]), b.floats([D])) }],
  ["a sum of more dimensions", { feeds: { x: f32(1, [9, D]), z: f32(2, [1, 1, 9, D]) }, build: (b) => layerNorm(b, b.put("Add", ["x", "z"]), b.floats([D]), b.floats([D])) }],
  ["another axis", { feeds: x, build: (b) => b.put("Mul", [b.put("Div", ["x", root(b, square(b, "x"), 1)]), b.floats([D])]) }],
  ["the mean of another value", { feeds: two, build: (b) => { const d = b.put("Sub", ["x", mean(b, "z")]); return b.put("Mul", [b.put("Div", [d, root(b, square(b, "x"))]), b.floats([D])]); } }],
  ["the root is read elsewhere", { feeds: x, build: (b) => { const r = root(b, square(b, "x")); return [b.put("Mul", [b.put("Div", ["x", r]), b.floats([D])]), b.put("Neg", [r])]; } }],
  ["a third power", { feeds: x, build: (b) => b.put("Mul", [b.put("Div", ["x", b.put("Sqrt", [b.put("Add", [mean(b, b.put("Abs", [b.put("Pow", ["x", b.floats([], [3])])])), b.floats([], [1])])])]), b.floats([D])]) }],
])("norms: %s", async (_, one) => check(one)); // prettier-ignore

/** Rotary embedding of heads as transformers has it. */
const rotary =
  (half: number, twice = true) =>
  (b: Builder): string => {
    const at = b.floats([1, 1, S, H / 2]);
    const angles = b.put("Concat", [at, twice ? at : b.floats([1, 1, S, H / 2])], { axis: -1n });
    const heads = split(b, "q", N, 0, 2, 1, 3);
    const slice = (from: number, to: number): string => b.put("Slice", [heads, b.integers(from), b.integers(to), b.integers(3), b.integers(1)]); // prettier-ignore
    const turned = b.put("Concat", [b.put("Neg", [slice(half, 2 ** 40)]), slice(0, half)], { axis: -1n });
    return b.put("Add", [b.put("Mul", [heads, b.put("Cos", [angles])]), b.put("Mul", [turned, b.put("Sin", [angles])])]);
  };
test.each<[string, Case]>([
  ["half and half", { feeds: { q: rows(1) }, build: rotary(H / 2), fused: "lowbit.Rotary", steps: 2 }],
  ["other angles in the halves", { feeds: { q: rows(1) }, build: rotary(H / 2, false) }],
  ["slices that meet elsewhere", { feeds: { q: rows(1) }, build: rotary(H / 2 - 2) }],
])("rotary embedding: %s", async (_, one) => check(one));

/** x / 2 * (1 + erf(x / sqrt 2)), its numbers of these dimensions, another one for 1. */
const halfFirst =
  (dims: number[], one = 1, x = "x") =>
  (b: Builder): string => {
    const erf = b.put("Erf", [b.put("Mul", [b.floats(dims, [Math.SQRT1_2]), x])]);
    return b.put("Mul", [b.put("Add", [b.floats(dims, [one]), erf]), b.put("Mul", [b.floats(dims, [0.5]), x])]);
  };
const gelu: Record<string, (b: Builder) => string> = {
  "half first": halfFirst([]),
  "numbers of one dimension": halfFirst([1]),
  "numbers of four dimensions": halfFirst([1, 1, 1, 1]),
  "biased erf": (b) => halfFirst([], 1, b.put("Add", ["x", b.floats([D])]))(b),
  "another number": halfFirst([], 0.75),
  erf: (b) => {
    const erf = b.put("Add", [b.put("Erf", [b.put("Div", ["x", b.floats([], [Math.SQRT2])])]), b.floats([], [1])]);
    return b.put("Mul", [b.put("Mul", ["x", erf]), b.floats([], [0.5])]);
  },
  tanh: (b) => {
    const cube = b.put("Mul", [b.put("Pow", ["x", b.floats([], [3])]), b.floats([], [0.044715])]);
    const inner = b.put("Mul", [b.put("Add", ["x", cube]), b.floats([], [Math.sqrt(2 / Math.PI)])]);
    const one = b.put("Add", [b.put("Tanh", [inner]), b.floats([], [1])]);
    return b.put("Mul", [b.put("Mul", ["x", b.floats([], [0.5])]), one]);
  },
  silu: (b) => b.put("Mul", ["x", b.put("Sigmoid", ["x"])]),
};
test.each(Object.entries(gelu))("%s form is one kernel", async (_, build) => {
  const b = builder();
  const feeds = { x: f32(1, [3, 50, D], -4, 4) };
  const bytes = b.bytes(feeds, [build(b)]);
  const session = await loadModel(bytes);
  await compare(bytes, feeds, 1e-5, session);
  expect(session.explain().steps.map(({ operator, kernel }) => [operator.startsWith("lowbit.Chain"), kernel])).toEqual([[true, "kernel"]]);
  await session.release();
});

test("numbers of a chain that have more dimensions than its operands count for its shape", async () => {
  const b = builder();
  const feeds = { x: f32(1, [], -4, 4) };
  const bytes = b.bytes(feeds, [halfFirst([1, 1])(b)]);
  const session = await loadModel(bytes);
  await compare(bytes, feeds, 1e-5, session);
  expect((await session.run(feeds))[session.outputNames[0]].dims).toEqual([1, 1]);
  await session.release();
});
