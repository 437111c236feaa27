// Random graphs: what operators and fusions do beside each other. Values are read several times, become outputs in the
// middle of patterns, change their layout on the way.
import type { AttributeValue } from "../onnx/build.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import type { Feeds } from "./judge.ts";
import { numbers, size } from "./make.ts";

interface Known {
  readonly name: string;
  readonly dims: readonly number[];
}

export interface RandomGraph {
  readonly bytes: Uint8Array;
  readonly feeds: Feeds;
  /** Operators, for messages. */
  readonly text: string;
}

type Draw = (below: number) => number;

/** A graph that grows. */
class Growing {
  readonly initializer: ReturnType<typeof raw>[] = [];
  readonly nodes: ReturnType<typeof node>[] = [];
  readonly values: Known[] = [];
  readonly draw: Draw;
  #serial = 0;

  constructor(draw: Draw) {
    this.draw = draw;
  }

  pick<X>(list: readonly X[]): X {
    return list[this.draw(list.length)];
  }

  /** Late values more often, so that graphs are deep; early ones at times, so that they have more readers. */
  any(): Known {
    const { values } = this;
    return this.draw(3) === 0 ? this.pick(values) : values[values.length - 1 - this.draw(Math.min(3, values.length))];
  }

  op(opType: string, input: readonly string[], dims: readonly number[], attributes: Record<string, AttributeValue> = {}): Known {
    const name = `v${this.#serial++}`;
    this.nodes.push(node(opType, [...input], [name], attributes, name));
    return { name, dims };
  }

  floats(dims: readonly number[], low = -1, high = 1): string {
    const name = `c${this.#serial++}`;
    this.initializer.push(raw(name, [...dims], numbers(this.draw(1e6), size(dims), low, high)));
    return name;
  }

  number(v: number): string {
    const name = `n${this.#serial++}`;
    this.initializer.push(raw(name, this.draw(2) === 0 ? [] : [1], Float32Array.of(v)));
    return name;
  }

  integers(...list: number[]): string {
    const name = `i${this.#serial++}`;
    this.initializer.push(raw(name, [list.length], BigInt64Array.from(list, BigInt), T.INT64));
    return name;
  }
}

type Step = (g: Growing, x: Known) => Known | undefined;

const UNARY = ["Relu", "Tanh", "Sigmoid", "Neg", "Abs", "Erf", "Softplus", "HardSigmoid", "LeakyRelu", "Sin", "Cos", "Identity", "Elu"];

/** A shape that broadcasts to dims without growing them. */
function under(g: Growing, dims: readonly number[]): number[] {
  const shape = dims.map((d) => (g.draw(3) === 0 ? 1 : d));
  return shape.slice(g.draw(2) === 0 ? 0 : g.draw(dims.length));
}

const tame = (g: Growing, x: Known): Known => g.op("Tanh", [x.name], x.dims);

function softmax(g: Growing, x: Known): Known {
  return g.op("Softmax", [x.name], x.dims, { axis: BigInt(-1) });
}

function layerNorm(g: Growing, x: Known): Known | undefined {
  const k = x.dims.at(-1)!;
  if (k < 2) return undefined;
  const axes = { axes: { ints: [g.pick([-1, x.dims.length - 1])] } };
  const narrow = [...x.dims.slice(0, -1), 1];
  const mean = g.op("ReduceMean", [x.name], narrow, axes);
  const d = g.op("Sub", [x.name, mean.name], x.dims);
  const square = g.draw(2) === 0 ? g.op("Pow", [d.name, g.number(2)], x.dims) : g.op("Mul", [d.name, d.name], x.dims);
  const variance = g.op("ReduceMean", [square.name], narrow, axes);
  const sum = g.op("Add", [variance.name, g.number(1e-3)], narrow);
  const root = g.op("Sqrt", [sum.name], narrow);
  g.values.push(...[mean, root, d].filter(() => g.draw(12) === 0));
  const ratio =
    g.draw(2) === 0
      ? g.op("Div", [d.name, root.name], x.dims)
      : g.op("Mul", [d.name, g.op("Reciprocal", [root.name], narrow).name], x.dims);
  const scaled = g.op("Mul", g.draw(2) === 0 ? [ratio.name, g.floats([k])] : [g.floats([k]), ratio.name], x.dims);
  return g.draw(3) === 0 ? scaled : g.op("Add", [scaled.name, g.floats([k])], x.dims);
}

function rmsNorm(g: Growing, x: Known): Known | undefined {
  const k = x.dims.at(-1)!;
  if (k < 2) return undefined;
  const narrow = [...x.dims.slice(0, -1), 1];
  const square = g.op("Pow", [x.name, g.number(2)], x.dims);
  const mean = g.op("ReduceMean", [square.name], narrow, { axes: { ints: [-1] } });
  const root = g.op("Sqrt", [g.op("Add", [mean.name, g.number(1e-3)], narrow).name], narrow);
  const inverse = g.op("Div", [g.number(1), root.name], narrow);
  const y = g.op("Mul", [x.name, inverse.name], x.dims);
  return g.op("Mul", [g.floats([k]), y.name], x.dims);
}

function gelu(g: Growing, x: Known): Known {
  const erf = g.op("Erf", [g.op("Div", [x.name, g.number(Math.SQRT2)], x.dims).name], x.dims);
  const half = g.op("Mul", [x.name, g.op("Add", [erf.name, g.number(1)], x.dims).name], x.dims);
  return g.op("Mul", [half.name, g.number(0.5)], x.dims);
}

const silu = (g: Growing, x: Known): Known => g.op("Mul", [x.name, g.op("Sigmoid", [x.name], x.dims).name], x.dims);

function dense(g: Growing, x: Known): Known {
  const k = x.dims.at(-1)!;
  const n = 1 + g.draw(12);
  const y = g.op("MatMul", [x.name, g.floats([k, n], -1 / Math.sqrt(k), 1 / Math.sqrt(k))], [...x.dims.slice(0, -1), n]);
  return g.draw(2) === 0 ? y : g.op("Add", [y.name, g.floats([n])], y.dims);
}

function transposed(g: Growing, x: Known): Known {
  const perm = x.dims.map((_, i) => i);
  for (let i = perm.length - 1; i > 0; i--) {
    const j = g.draw(i + 1);
    [perm[i], perm[j]] = [perm[j], perm[i]];
  }
  return g.op("Transpose", [x.name], perm.map((p) => x.dims[p]), { perm: { ints: perm } }); // prettier-ignore
}

function reshaped(g: Growing, x: Known): Known {
  const { dims } = x;
  if (dims.length > 1 && (dims.length > 3 || g.draw(2) === 0)) {
    const at = g.draw(dims.length - 1);
    const shape = [...dims.slice(0, at), dims[at] * dims[at + 1], ...dims.slice(at + 2)];
    return g.op("Reshape", [x.name, g.integers(...shape.map((d, i) => (i === at ? -1 : i < at ? 0 : d)))], shape);
  }
  const at = g.draw(dims.length);
  const factors = [1, 2, 3, 4].filter((f) => dims[at] % f === 0);
  const f = g.pick(factors);
  const shape = [...dims.slice(0, at), f, dims[at] / f, ...dims.slice(at + 1)];
  return g.op("Reshape", [x.name, g.integers(...shape)], shape);
}

function sliced(g: Growing, x: Known): Known | undefined {
  const axis = g.draw(x.dims.length);
  const d = x.dims[axis];
  if (d < 2) return undefined;
  const start = g.draw(d - 1);
  const end = start + 1 + g.draw(d - start);
  const step = 1 + g.draw(2);
  const dims = x.dims.map((size, i) => (i === axis ? Math.ceil((end - start) / step) : size));
  return g.op("Slice", [x.name, g.integers(start), g.integers(g.draw(2) === 0 || end < d ? end : 2 ** 40), g.integers(axis), g.integers(step)], dims); // prettier-ignore
}

function binary(g: Growing, x: Known): Known {
  const op = g.pick(["Add", "Sub", "Mul", "Max", "Min"]);
  const same = g.values.filter(({ dims }) => dims.length === x.dims.length && dims.every((d, i) => d === x.dims[i] || d === 1));
  const other = g.draw(3) === 0 ? g.floats(under(g, x.dims)) : g.pick(same).name;
  return g.op(op, g.draw(2) === 0 ? [x.name, other] : [other, x.name], x.dims);
}

function reduced(g: Growing, x: Known): Known {
  const axis = g.draw(x.dims.length);
  const keep = g.draw(3) > 0 || x.dims.length < 2;
  const dims = keep ? x.dims.map((d, i) => (i === axis ? 1 : d)) : x.dims.filter((_, i) => i !== axis);
  const name = g.pick(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]);
  return g.op(name, [x.name], dims, { axes: { ints: [axis] }, keepdims: BigInt(keep ? 1 : 0) });
}

function joined(g: Growing, x: Known): Known {
  const axis = g.draw(x.dims.length);
  const fits = g.values.filter(({ dims }) => dims.length === x.dims.length && dims.every((d, i) => i === axis || d === x.dims[i]));
  const other = g.pick(fits);
  const dims = x.dims.map((d, i) => (i === axis ? d + other.dims[axis] : d));
  if (size(dims) > 20_000) return x;
  return g.op("Concat", [x.name, other.name], dims, { axis: BigInt(axis) });
}

function gathered(g: Growing, x: Known): Known {
  const axis = g.draw(x.dims.length);
  const count = 1 + g.draw(4);
  const at = g.integers(...Array.from({ length: count }, () => g.draw(x.dims[axis])));
  return g.op("Gather", [x.name, at], x.dims.map((d, i) => (i === axis ? count : d)), { axis: BigInt(axis) }); // prettier-ignore
}

/** softmax(q k^T) v of one value, as heads or not, with a mask or not. */
function attention(g: Growing, x: Known): Known | undefined {
  const size3 = x.dims.length === 3 ? x.dims : undefined;
  if (size3 === undefined) return undefined;
  const [b, s, k] = size3;
  const [heads, h] = [1 + g.draw(3), 4 * (1 + g.draw(2))];
  const side = (order: number[]): Known => {
    const y = g.op("MatMul", [x.name, g.floats([k, heads * h], -0.5, 0.5)], [b, s, heads * h]);
    const split = g.op("Reshape", [y.name, g.integers(0, 0, heads, h)], [b, s, heads, h]);
    return g.op("Transpose", [split.name], order.map((o) => [b, s, heads, h][o]), { perm: { ints: order } }); // prettier-ignore
  };
  const q = side([0, 2, 1, 3]);
  const turn = (y: Known): Known => g.op("Transpose", [y.name], [b, heads, h, s], { perm: { ints: [0, 1, 3, 2] } });
  const right = g.draw(2) === 0 ? side([0, 2, 3, 1]) : turn(side([0, 2, 1, 3]));
  const v = side([0, 2, 1, 3]);
  const scores = [b, heads, s, s];
  let p = g.op("MatMul", [q.name, right.name], scores);
  if (g.draw(3) > 0) p = g.op(g.pick(["Mul", "Div"]), [p.name, g.number(0.5 + g.draw(4))], scores);
  if (g.draw(2) === 0) p = g.op("Add", [p.name, g.floats(g.pick([[s, s], [1, 1, s, s], [b, 1, 1, s], [b, heads, s, s]]), -3, 0)], scores); // prettier-ignore
  if (g.draw(8) === 0) g.values.push(p);
  const w = softmax(g, p);
  if (g.draw(8) === 0) g.values.push(w);
  const c = g.op("MatMul", [w.name, v.name], [b, heads, s, h]);
  if (g.draw(4) === 0) return c;
  const t = g.op("Transpose", [c.name], [b, s, heads, h], { perm: { ints: [0, 2, 1, 3] } });
  return g.op("Reshape", [t.name, g.integers(0, 0, -1)], [b, s, heads * h]);
}

const STEPS: readonly Step[] = [
  ...Array.from({ length: 3 }, (): Step => (g, x) => g.op(g.pick(UNARY), [x.name], x.dims)),
  ...[binary, binary, binary, dense, dense, layerNorm, layerNorm, rmsNorm, gelu, silu, attention, attention],
  ...[transposed, reshaped, sliced, reduced, joined, gathered, softmax],
  (g, x) => g.op("Clip", [x.name, g.number(-0.5), g.number(0.75)], x.dims),
  (g, x) => g.op("Unsqueeze", [x.name, g.integers(0)], [1, ...x.dims]),
  (g, x) => g.op("Div", [x.name, g.op("Add", [g.op("Abs", [x.name], x.dims).name, g.number(0.5)], x.dims).name], x.dims),
];

/** A residual: the step's result, tamed, added to what it began with. */
function residual(g: Growing, x: Known): Known | undefined {
  const y = g.pick(STEPS)(g, x);
  if (y === undefined || y.dims.join() !== x.dims.join()) return y;
  return g.op("Add", g.draw(2) === 0 ? [x.name, y.name] : [y.name, x.name], x.dims);
}

/** A graph of about `count` steps. `draw(n)`: a number from 0 below n. */
export function randomGraph(draw: Draw, count: number): RandomGraph {
  const g = new Growing(draw);
  const [b, s, k] = [1 + draw(3), 1 + draw(7), 2 * (1 + draw(8))];
  const inputs = [
    [b, s, k],
    [b, s, k],
    [s, k],
  ]
    .slice(0, 1 + draw(3))
    .map((dims, i): Known => ({ name: `x${i}`, dims }));
  g.values.push(...inputs);
  for (let i = 0; i < count; i++) {
    const x = g.any();
    const made = (draw(4) === 0 ? residual : g.pick(STEPS))(g, x);
    if (made === undefined || made.dims.length > 5 || size(made.dims) > 20_000) continue;
    g.values.push(draw(3) === 0 && made !== x ? tame(g, made) : made);
  }
  const inner = g.values.filter(({ name }) => name.startsWith("v"));
  const wanted = [...new Set([inner.at(-1), ...inner.filter(() => draw(6) === 0)])].filter((v) => v !== undefined);
  const open = draw(2) === 0;
  const output = [...new Set(wanted.map(({ name }) => name))].map((name) => value(name, T.FLOAT, []));
  for (const { type } of output) if (type?.value.case === "tensorType") type.value.value.shape = undefined;
  const input = inputs.map(({ name, dims }, i) => value(name, T.FLOAT, open && i < 2 ? ["batch", "tokens", dims[2]] : [...dims]));
  const feeds: Feeds = Object.fromEntries(
    inputs.map(({ name, dims }) => [name, { type: "float32", dims: [...dims], data: numbers(draw(1e6), size(dims)) }]),
  );
  const bytes = encode(model(graph({ input, output, initializer: g.initializer, node: g.nodes }), { opset: 17 }));
  return { bytes, feeds, text: g.nodes.map(({ opType }) => opType).join(" ") };
}
