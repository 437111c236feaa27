// A small pre-norm transformer encoder with LayerNorm, as exporters write it: learned positions, attention with biases,
// GELU or ReLU, a head.
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { applyPasses, readModelBytes, writeModelBytes, type PassRequest } from "../../src/onnx/index.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { keep } from "./kept.ts";

export interface EncoderInit {
  /** LayerNormalization, or ReduceMean, Sub, Pow ... */
  readonly norm?: "operator" | "spelled";
  readonly activation?: "gelu" | "relu" | "swiglu";
  /** MatMul and Add, or Reshape and Gemm. */
  readonly linear?: "matmul" | "gemm";
  /** "logits": a head behind the last norm; "hidden": the last norm is the output. */
  readonly output?: "logits" | "hidden";
  readonly d?: number;
  /** Some channels of the gains are this large. */
  readonly outlier?: number;
}

const VOCABULARY = 40;
const LENGTH = 24;
const LAYERS = 2;
const HEADS = 4;

const int64 = (name: string, dims: number[], values: number[]): TensorProto => raw(name, dims, BigInt64Array.from(values, BigInt), T.INT64);

/** ids int64 [batch, 16] -> y. */
export function encoderModel(init: EncoderInit = {}): Uint8Array {
  const { norm = "operator", activation = "gelu", linear = "matmul", output = "logits", d = 64, outlier = 1 } = init;
  const nodes: NodeProto[] = [];
  const initializer: TensorProto[] = [];
  let seed = 1;
  const constant = (name: string, dims: number[], map: (v: number, i: number) => number = (v) => v): string => {
    initializer.push(
      raw(
        name,
        dims,
        weights(
          dims.reduce((a, b) => a * b, 1),
          seed++,
        ).map(map),
      ),
    );
    return name;
  };
  const op = (type: string, input: string[], out: string, attributes = {}): string => {
    nodes.push(node(type, input, [out], attributes, `${out}/node`));
    return out;
  };
  const lin = (x: string, name: string, k: number, n: number): string => {
    const scale = 3 / Math.sqrt(k);
    const bias = constant(`${name}.bias`, [n]);
    if (linear === "matmul") {
      const product = op("MatMul", [x, constant(`${name}.weight`, [k, n], (v) => v * scale * 2)], `${name}/mm`);
      return op("Add", [bias, product], name);
    }
    const flat = op("Reshape", [x, "flat"], `${name}/flat`);
    initializer.push(int64(`${name}/shape`, [3], [-1, 16, n]));
    const gemm = op("Gemm", [flat, constant(`${name}.weight`, [n, k], (v) => v * scale * 2), bias], `${name}/gemm`, { transB: 1n });
    return op("Reshape", [gemm, `${name}/shape`], name);
  };
  const normed = (x: string, name: string): string => {
    const gain = constant(`${name}.weight`, [d], (v, i) => (1 + v) * (i % 13 === 5 ? outlier : 1));
    const bias = constant(`${name}.bias`, [d]);
    if (norm === "operator") return op("LayerNormalization", [x, gain, bias], name, { axis: -1n, epsilon: 1e-5 });
    const mean = op("ReduceMean", [x], `${name}/mean`, { axes: { ints: [-1] }, keepdims: 1n });
    const centered = op("Sub", [x, mean], `${name}/sub`);
    const squares = op("Pow", [centered, "two"], `${name}/pow`);
    const variance = op("ReduceMean", [squares], `${name}/var`, { axes: { ints: [-1] }, keepdims: 1n });
    const root = op("Sqrt", [op("Add", [variance, "eps"], `${name}/eps`)], `${name}/sqrt`);
    const ratio = op("Div", [centered, root], `${name}/div`);
    return op("Add", [op("Mul", [ratio, gain], `${name}/gain`), bias], name);
  };
  const heads = (x: string, name: string, perm: number[]): string =>
    op("Transpose", [op("Reshape", [x, "split"], `${name}/r`)], `${name}/t`, { perm: { ints: perm } });

  initializer.push(
    raw("two", [], Float32Array.of(2)),
    raw("eps", [], Float32Array.of(1e-5)),
    raw("half", [], Float32Array.of(0.5)),
    raw("one", [], Float32Array.of(1)),
    raw("sqrt2", [], Float32Array.of(Math.SQRT2)),
    raw("scale", [], Float32Array.of(Math.sqrt(HEADS / d))),
    int64("split", [4], [0, 0, HEADS, d / HEADS]),
    int64("join", [3], [0, 0, d]),
    int64("flat", [2], [-1, d]),
    int64("zero", [1], [0]),
    int64("sixteen", [1], [16]),
    int64("axis", [1], [1]),
  );
  const tokens = op("Gather", [constant("tok_emb", [VOCABULARY, d], (v) => v * 5), "ids"], "tok");
  const positions = op("Slice", [constant("pos_emb", [1, LENGTH, d], (v) => v * 3), "zero", "sixteen", "axis"], "pos");
  let x = op("Add", [tokens, positions], "x0");
  for (let l = 0; l < LAYERS; l++) {
    const p = `l${l}`;
    const a = normed(x, `${p}.norm1`);
    const q = heads(lin(a, `${p}.q`, d, d), `${p}.q`, [0, 2, 1, 3]);
    const k = heads(lin(a, `${p}.k`, d, d), `${p}.k`, [0, 2, 3, 1]);
    const v = heads(lin(a, `${p}.v`, d, d), `${p}.v`, [0, 2, 1, 3]);
    const scores = op("Mul", [op("MatMul", [q, k], `${p}.qk`), "scale"], `${p}.scores`);
    const context = op("MatMul", [op("Softmax", [scores], `${p}.prob`, { axis: -1n }), v], `${p}.ctx`);
    const joined = op("Reshape", [op("Transpose", [context], `${p}.ctxt`, { perm: { ints: [0, 2, 1, 3] } }), "join"], `${p}.joined`);
    x = op("Add", [x, lin(joined, `${p}.o`, d, d)], `${p}.res1`);
    const f = normed(x, `${p}.norm2`);
    const up = lin(f, `${p}.fc1`, d, d * 2);
    let act: string;
    if (activation === "relu") act = op("Relu", [up], `${p}.act`);
    else if (activation === "swiglu") {
      const gate = lin(f, `${p}.gate`, d, d * 2);
      act = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate], `${p}.sg`)], `${p}.silu`), up], `${p}.act`);
    } else {
      const erf = op("Erf", [op("Div", [up, "sqrt2"], `${p}.over`)], `${p}.erf`);
      act = op("Mul", [op("Mul", [up, op("Add", [erf, "one"], `${p}.erf1`)], `${p}.geluless`), "half"], `${p}.act`);
    }
    if (linear === "gemm") {
      initializer.push(int64(`${p}.wide`, [2], [-1, d * 2]));
      const flat = op("Reshape", [act, `${p}.wide`], `${p}.fc2/flat`);
      const bias = constant(`${p}.fc2.bias`, [d]);
      const gemm = op("Gemm", [flat, constant(`${p}.fc2.weight`, [d, d * 2], (w) => w), bias], `${p}.fc2/gemm`, { transB: 1n });
      initializer.push(int64(`${p}.fc2/shape`, [3], [-1, 16, d]));
      x = op("Add", [op("Reshape", [gemm, `${p}.fc2/shape`], `${p}.fc2`), x], `${p}.res2`);
    } else x = op("Add", [lin(act, `${p}.fc2`, d * 2, d), x], `${p}.res2`);
  }
  const last = normed(x, "final");
  const y = output === "hidden" ? last : lin(last, "head", d, VOCABULARY);
  return encode(
    model(
      graph({
        input: [value("ids", T.INT64, ["batch", 16])],
        output: [value(y, T.FLOAT, [])],
        initializer,
        node: nodes,
      }),
    ),
  );
}

/** Inputs [batch, 16]. */
export const encoderFeeds = (count: number, batch = 2, seed = 5) =>
  Array.from({ length: count }, (_, f) => ({
    ids: {
      type: "int64",
      data: BigInt64Array.from({ length: batch * 16 }, (_v, i) => BigInt((i * i * 7 + i * (f + 3) * seed + f * 11) % VOCABULARY)),
      dims: [batch, 16],
    },
  }));

/** The spellings that exporters use. */
export const FORMS: EncoderInit[] = [
  { norm: "operator", activation: "gelu" },
  { norm: "spelled", activation: "relu" },
  { norm: "operator", activation: "swiglu", linear: "gemm" },
  { norm: "spelled", linear: "gemm" },
];

/** Runs passes and compares by itself: the driver's own check is off. */
export async function changed(bytes: Uint8Array, passes: PassRequest[], options = {}) {
  const model = readModelBytes(bytes);
  const reference = await referenceRun(model, encoderFeeds(2));
  const notes = await applyPasses(model, passes, { verify: false, ...options });
  if (!("calibration" in options)) keep(model, ...notes);
  const after = readModelBytes(writeModelBytes(model));
  return { model: after, notes, difference: (await differenceFrom(reference, after)).relative };
}
