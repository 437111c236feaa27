// LSTM, GRU and RNN. Source: the ONNX operator specifications. The products with W are one for all steps; constant
// weights are packed layers of the backend.
import { attributeFloat, attributeInt, attributeOf } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { floatData, floats, integers } from "../value.ts";
import type { Inputs, Operator, Operators, PrepareContext } from "./operator.ts";
import { fail, need, text } from "./operator.ts";
import { floatWeight, layerProduct, loopProduct, type RowProduct } from "./product.ts";
import { dynamicCodes } from "./quantized.ts";

/** The weights of one direction. */
interface Direction {
  readonly input: RowProduct;
  readonly state: RowProduct;
}

type Kind = "LSTM" | "GRU" | "RNN";
const GATES: Readonly<Record<Kind, number>> = { LSTM: 4, GRU: 3, RNN: 1 };
const DEFAULTS: Readonly<Record<Kind, readonly string[]>> = { LSTM: ["Sigmoid", "Tanh", "Tanh"], GRU: ["Sigmoid", "Tanh"], RNN: ["Tanh"] };

type Activation = (x: number) => number;
const ACTIVATIONS: ReadonlyMap<string, Activation> = new Map<string, Activation>([
  ["sigmoid", (x) => 1 / (1 + Math.exp(-x))],
  ["tanh", Math.tanh],
  ["relu", (x) => Math.max(0, x)],
  ["softsign", (x) => x / (1 + Math.abs(x))],
  ["softplus", (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))],
]);

const names = (node: NodeProto): string[] => (attributeOf(node, "activations")?.strings ?? []).map((s) => new TextDecoder().decode(s));

/** What a run of one direction needs. */
interface Pass {
  readonly steps: number;
  readonly batch: number;
  readonly hidden: number;
  /** Steps of each sequence. */
  readonly lengths: readonly number[];
  readonly backward: boolean;
  /** Of [steps * batch, gates * hidden]: x W^T and both biases, but for what a gate keeps apart. */
  readonly gates: Float32Array;
  readonly state: RowProduct;
  /** Biases of the recurrent products. */
  readonly bias: Float32Array;
  readonly h: Float32Array;
  readonly c: Float32Array;
  readonly peephole: Float32Array | null;
  readonly f: readonly Activation[];
  readonly clip: (x: number) => number;
  /** GRU: the reset gate comes after the product; LSTM: input and forget gates are one. */
  readonly option: boolean;
  /** Takes the hidden state of step t, sequence b. */
  readonly keep: (t: number, b: number, h: Float32Array) => void;
}

type Cell = (p: Pass, b: number, gates: Float32Array, state: Float32Array) => void;

/** Gates i, o, f, c. */
const lstmCell: Cell = (p, b, x, r) => {
  const { hidden: n, f, clip, c, h, peephole } = p;
  for (let j = 0; j < n; j++) {
    const at = b * n + j;
    /** What gate g takes in; those with a peephole see a cell. */
    const gate = (g: number, cell: number | null): number => {
      const sum = x[g * n + j] + r[g * n + j] + p.bias[g * n + j];
      return clip(peephole === null || cell === null ? sum : sum + peephole[g * n + j] * cell);
    };
    const before = c[at];
    const i = f[0](gate(0, before));
    const forget = p.option ? 1 - i : f[0](gate(2, before));
    c[at] = forget * before + i * f[1](gate(3, null));
    h[at] = f[0](gate(1, c[at])) * f[2](c[at]);
  }
};

/** Gates z, r, h. `state` has the products of z and r, and of h where the reset gate comes after. */
const gruCell: Cell = (p, b, x, r) => {
  const { hidden: n, f, clip, h, bias } = p;
  const z = new Float32Array(n);
  const reset = new Float32Array(n);
  const before = h.slice(b * n, (b + 1) * n);
  for (let j = 0; j < n; j++) {
    z[j] = f[0](clip(x[j] + r[j] + bias[j]));
    reset[j] = f[0](clip(x[n + j] + r[n + j] + bias[n + j]));
  }
  const product = p.option ? r : p.state(before.map((v, j) => v * reset[j]), 1); // prettier-ignore
  for (let j = 0; j < n; j++) {
    const inner = product[2 * n + j] + bias[2 * n + j];
    const g = f[1](clip(x[2 * n + j] + (p.option ? reset[j] * inner : inner)));
    h[b * n + j] = (1 - z[j]) * g + z[j] * before[j];
  }
};

const rnnCell: Cell = (p, b, x, r) => {
  const { hidden: n, f, clip, h, bias } = p;
  for (let j = 0; j < n; j++) h[b * n + j] = f[0](clip(x[j] + r[j] + bias[j]));
};

const CELLS: Readonly<Record<Kind, Cell>> = { LSTM: lstmCell, GRU: gruCell, RNN: rnnCell };

/** One direction over all steps: sequences that have ended keep their state. */
function passOver(p: Pass, cell: Cell): void {
  const { steps, batch, hidden, gates, h } = p;
  const width = gates.length / Math.max(1, steps * batch);
  for (let s = 0; s < steps; s++) {
    const r = p.state(h, batch);
    for (let b = 0; b < batch; b++) {
      if (s >= p.lengths[b]) continue;
      // backwards from each sequence's own end
      const t = p.backward ? p.lengths[b] - 1 - s : s;
      cell(p, b, gates.subarray((t * batch + b) * width, (t * batch + b + 1) * width), r.subarray(b * width, (b + 1) * width));
      p.keep(t, b, h.subarray(b * hidden, (b + 1) * hidden));
    }
  }
}

/** [batch, steps, k] as [steps, batch, k], and back. */
function swapped(x: Value): Value & { readonly data: Float32Array } {
  const [a, b, k] = x.dims;
  const out = floats([b, a, k]);
  const from = floatData(x, "layout");
  for (let i = 0; i < a; i++)
    for (let j = 0; j < b; j++) out.data.set(from.subarray((i * b + j) * k, (i * b + j + 1) * k), (j * a + i) * k);
  return out;
}

/** Output Y [steps, dirs, batch, hidden] as [batch, steps, dirs, hidden]. */
function batchFirst({ dims, data }: Value): Value {
  const [steps, dirs, batch, n] = dims;
  const out = floats([batch, steps, dirs, n]);
  const from = data as Float32Array;
  for (let t = 0; t < steps; t++)
    for (let d = 0; d < dirs; d++)
      for (let b = 0; b < batch; b++) {
        const at = ((t * dirs + d) * batch + b) * n;
        out.data.set(from.subarray(at, at + n), ((b * steps + t) * dirs + d) * n);
      }
  return out;
}

const sizesOf = (inputs: Inputs, node: NodeProto, kind: Kind, weights: readonly number[], states: readonly number[]) => {
  const given = need(inputs, 0, node);
  const isBatchFirst = attributeInt(node, "layout", 0) === 1;
  if (given.dims.length !== 3) throw fail(node, "an input [steps, batch, size]", `[${given.dims.join(", ")}]`);
  const x = isBatchFirst ? swapped(given) : given;
  const [steps, batch, size] = x.dims;
  const [dirs, rows, k] = weights;
  const hidden = states[2];
  const wanted = text(node, "direction", "forward") === "bidirectional" ? 2 : 1;
  if (dirs !== wanted || k !== size || rows !== GATES[kind] * hidden || states[0] !== dirs || states[1] !== rows)
    throw fail(
      node,
      `weights of ${wanted} directions, ${GATES[kind]} gates and inputs of ${size}`,
      `[${weights.join(", ")}] and [${states.join(", ")}]`,
    );
  const lengths = inputs[4] === undefined ? new Array<number>(batch).fill(steps) : integers(inputs[4]);
  if (lengths.length !== batch || lengths.some((n) => n < 0 || n > steps))
    throw fail(node, `${batch} lengths up to ${steps}`, `[${lengths.join(", ")}]`);
  return { x: floatData(x, kind), steps, batch, size, dirs, hidden, lengths, isBatchFirst };
};

/** The state of a direction that a run begins with. */
function startOf(
  value: Value | undefined,
  isBatchFirst: boolean,
  d: number,
  size: readonly [number, number],
  node: NodeProto,
): Float32Array {
  const count = size[0] * size[1];
  if (value === undefined) return new Float32Array(count);
  const { data, dims } = isBatchFirst && value.dims.length === 3 ? swapped(value) : value;
  if (dims.length !== 3 || dims[1] !== size[0] || dims[2] !== size[1])
    throw fail(node, `a state [dirs, ${size.join(", ")}]`, `[${dims.join(", ")}]`);
  return (data as Float32Array).slice(d * count, (d + 1) * count);
}

function run(
  kind: Kind,
  inputs: Inputs,
  node: NodeProto,
  weights: readonly number[],
  states: readonly number[],
  of: Direction[],
): (Value | undefined)[] {
  const { x, steps, batch, dirs, hidden, lengths, isBatchFirst } = sizesOf(inputs, node, kind, weights, states);
  const width = GATES[kind] * hidden;
  const y = floats([steps, dirs, batch, hidden]);
  const last = [floats([dirs, batch, hidden]), floats([dirs, batch, hidden])];
  const given = names(node);
  const all = given.length > 0 ? given : Array.from({ length: dirs }, () => DEFAULTS[kind]).flat();
  const each = DEFAULTS[kind].length;
  const limit = attributeFloat(node, "clip", 0);
  const biases = inputs[3] === undefined ? null : floatData(inputs[3], kind);
  const peep = kind === "LSTM" && inputs[7] !== undefined ? floatData(inputs[7], kind) : null;
  for (let d = 0; d < dirs; d++) {
    const gates = of[d].input(x, steps * batch);
    const own = biases?.subarray(2 * d * width, 2 * (d + 1) * width);
    if (own !== undefined) for (let i = 0; i < gates.length; i++) gates[i] += own[i % width];
    const [h, c] = [5, 6].map((i) => startOf(kind === "LSTM" || i === 5 ? inputs[i] : undefined, isBatchFirst, d, [batch, hidden], node));
    const pass: Pass = {
      ...{ steps, batch, hidden, lengths, gates, h, c, state: of[d].state },
      backward: text(node, "direction", "forward") === "reverse" || d === 1,
      bias: own?.subarray(width) ?? new Float32Array(width),
      peephole: peep?.subarray(3 * d * hidden, 3 * (d + 1) * hidden) ?? null,
      f: all.slice(d * each, (d + 1) * each).map((name) => ACTIVATIONS.get(name.toLowerCase())!),
      clip: limit > 0 ? (v) => Math.min(limit, Math.max(-limit, v)) : (v) => v,
      option: attributeInt(node, kind === "GRU" ? "linear_before_reset" : "input_forget", 0) !== 0,
      keep: (t, b, row) => y.data.set(row, ((t * dirs + d) * batch + b) * hidden),
    };
    passOver(pass, CELLS[kind]);
    last[0].data.set(h, d * batch * hidden);
    last[1].data.set(c, d * batch * hidden);
  }
  const out = isBatchFirst ? [batchFirst(y), ...last.map(swapped)] : [y, ...last];
  return kind === "LSTM" ? out : out.slice(0, 2);
}

const recurrent = (kind: Kind): Operator => ({
  missing(node) {
    const odd = names(node).filter((name) => !ACTIVATIONS.has(name.toLowerCase()));
    return odd.length > 0 ? `with ${odd.join(", ")}` : undefined;
  },
  run(inputs, node) {
    const [w, r] = [need(inputs, 1, node), need(inputs, 2, node)];
    const [dirs, rows, k] = w.dims;
    const n = r.dims[2];
    const [wide, deep] = [floatData(w, kind), floatData(r, kind)];
    const of = Array.from({ length: dirs }, (_, d) => ({
      input: loopProduct(wide.subarray(d * rows * k, (d + 1) * rows * k), rows, k),
      state: loopProduct(deep.subarray(d * rows * n, (d + 1) * rows * n), rows, n),
    }));
    return run(kind, inputs, node, w.dims, r.dims, of);
  },
  prepare(node, context: PrepareContext) {
    const [w, r] = [context.constant(1), context.constant(2)];
    if (!isMatrices(w) || !isMatrices(r)) return undefined;
    const layers = (value: Value, name: string): RowProduct[] => {
      const [dirs, rows, k] = value.dims;
      const data = value.data as Float32Array;
      return Array.from({ length: dirs }, (_, d) =>
        layerProduct(
          context.layer(`${name} ${d}`, () =>
            context.backend.prepare(floatWeight(data.slice(d * rows * k, (d + 1) * rows * k), rows, k, true), {}),
          ),
        ),
      );
    };
    const [input, state] = [layers(w, node.input[1]), layers(r, node.input[2])];
    const of = input.map((product, d) => ({ input: product, state: state[d] }));
    const [weights, states] = [w.dims, r.dims];
    return { run: (inputs, at) => run(kind, inputs, at, weights, states, of), kernel: "float32 products and loops", drops: [1, 2] };
  },
});

/**
 * A weight [dirs, k, rows] of codes as floats [dirs, rows, k]; a scale and zero point for each direction, or
 * each of its rows.
 */
function decoded(weight: Value, scale: Value, zero: Value | undefined, node: NodeProto): Value {
  const [dirs, k, rows] = weight.dims;
  const each = scale.data.length / dirs;
  if (weight.dims.length !== 3 || (each !== 1 && each !== rows) || (zero !== undefined && zero.data.length !== scale.data.length))
    throw fail(
      node,
      "codes [dirs, size, gates] with scales for directions or gates",
      `[${weight.dims.join(", ")}] and ${scale.data.length}`,
    );
  const out = floats([dirs, rows, k]);
  for (let d = 0; d < dirs; d++)
    for (let r = 0; r < rows; r++) {
      const at = each === 1 ? d : d * rows + r;
      const [s, z] = [Number(scale.data[at]), Number(zero?.data[at] ?? 0)];
      for (let l = 0; l < k; l++) out.data[(d * rows + r) * k + l] = (Number(weight.data[(d * k + l) * rows + r]) - z) * s;
    }
  return out;
}

/** x as DynamicQuantizeLinear keeps it: codes of 8 bits over its range, as floats again. */
function coarse(x: Float32Array, node: NodeProto): Float32Array {
  const [{ data }, scale, zero] = dynamicCodes([{ type: "float32", dims: [x.length], data: x }], node);
  const [s, z] = [Number(scale.data[0]), Number(zero.data[0])];
  return Float32Array.from(data as Uint8Array, (code) => (code - z) * s);
}

/**
 * com.microsoft.DynamicQuantizeLSTM: W [dirs, size, gates] and R [dirs, hidden, gates] as codes; inputs and states take
 * 8 bits at run time, over the range of all of them. The integer products are written in floats.
 */
const dynamicLstm: Operator = {
  missing: recurrent("LSTM").missing,
  run(inputs, node) {
    const w = decoded(need(inputs, 1, node), need(inputs, 8, node), inputs[9], node);
    const r = decoded(need(inputs, 2, node), need(inputs, 10, node), inputs[11], node);
    const of = directions(w, r, (data, rows, k) => loopProduct(data, rows, k));
    return run("LSTM", inputs, node, w.dims, r.dims, of.map((one) => rounded(one, node))); // prettier-ignore
  },
  prepare(node, context: PrepareContext) {
    const at = [1, 8, 9, 2, 10, 11];
    const [w, ws, wz, r, rs, rz] = at.map((i) => context.constant(i));
    if (w === undefined || ws === undefined || r === undefined || rs === undefined) return undefined;
    const [wide, deep] = [decoded(w, ws, wz, node), decoded(r, rs, rz, node)];
    let made = 0;
    const of = directions(wide, deep, (data, rows, k) =>
      layerProduct(context.layer(`${node.input[1]} ${made++}`, () => context.backend.prepare(floatWeight(data, rows, k, true), {}))),
    ).map((one) => rounded(one, node));
    return {
      run: (inputs, here) => run("LSTM", inputs, here, wide.dims, deep.dims, of),
      kernel: "float32 products of decoded weights and loops",
      drops: at,
    };
  },
};

const directions = (w: Value, r: Value, product: (data: Float32Array, rows: number, k: number) => RowProduct): Direction[] => {
  const part = ({ dims: [, rows, k], data }: Value, d: number): RowProduct =>
    product((data as Float32Array).slice(d * rows * k, (d + 1) * rows * k), rows, k);
  return Array.from({ length: w.dims[0] }, (_, d) => ({ input: part(w, d), state: part(r, d) }));
};

const rounded = ({ input, state }: Direction, node: NodeProto): Direction => ({
  input: (x, m) => input(coarse(x, node), m),
  state: (x, m) => state(coarse(x, node), m),
});

const isMatrices = (value: Value | undefined): value is Value =>
  value !== undefined && value.dims.length === 3 && value.data instanceof Float32Array && value.data.length > 0;

export const recurrence: Operators = {
  LSTM: recurrent("LSTM"),
  GRU: recurrent("GRU"),
  RNN: recurrent("RNN"),
  "com.microsoft.DynamicQuantizeLSTM": dynamicLstm,
};
