// Every operator against onnxruntime-node on random shapes: float32 within 1e-5 of the output's root mean square or of 1, everything else equal.
import { create } from "@bufbuild/protobuf";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import type { TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { OperatorSetIdProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { operators } from "../../src/runtime/ops/index.ts";
import type { AttributeValue } from "../onnx/build.ts";
import { encode, graph, model, node, raw, T, value } from "../onnx/build.ts";
import type { Feeds } from "./judge.ts";
import { compare } from "./judge.ts";

interface Case {
  readonly feeds: Feeds;
  readonly initializer?: TensorProto[];
  /** Order of all inputs; default feeds, then initializers. */
  readonly order?: string[];
  readonly outputs?: string[];
  readonly attributes?: Record<string, AttributeValue>;
  readonly opset?: number;
}

const TYPES: Record<string, number> = { int8: T.INT8, float32: T.FLOAT, int64: T.INT64, int32: T.INT32, bool: T.BOOL, uint8: T.UINT8 };
const size = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

function numbers(seed: number, count: number, low = -2, high = 2): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return low + ((high - low) * state) / 2 ** 32;
  });
}
const f32 = (seed: number, dims: number[], low = -2, high = 2) => ({ type: "float32", dims, data: numbers(seed, size(dims), low, high) });
const i64 = (dims: number[], values: number[]) => ({ type: "int64", dims, data: BigInt64Array.from(values, BigInt) });
const ids = (seed: number, dims: number[], most: number) => i64(dims, [...numbers(seed, size(dims), 0, most - 0.001)].map(Math.floor));
const bools = (seed: number, dims: number[]) => ({
  type: "bool",
  dims,
  data: Uint8Array.from(numbers(seed, size(dims)), (v) => (v > 0 ? 1 : 0)),
});
const ints = (...values: number[]) => ({ ints: values });

function bytesOf(name: string, one: Case): Uint8Array {
  const [domain, opType] = name.startsWith("com.microsoft.") ? ["com.microsoft", name.slice(14)] : ["", name];
  const outputs = one.outputs ?? ["y"];
  const initializer = one.initializer ?? [];
  const order = one.order ?? [...Object.keys(one.feeds), ...initializer.map((t) => t.name)];
  const made = node(opType, order, outputs, one.attributes);
  made.domain = domain;
  const proto = model(
    graph({
      input: Object.entries(one.feeds).map(([key, f]) => value(key, TYPES[f.type], [...f.dims])),
      output: outputs.filter((o) => o !== "").map((o) => value(o, 0, [])),
      initializer,
      node: [made],
    }),
    { opset: one.opset ?? 17, ir: 10 },
  );
  // the type of an output is onnxruntime's to infer
  for (const output of proto.graph!.output) output.type = undefined;
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return encode(proto);
}

type Make = (seed: number, a: number, b: number, c: number) => Case;
const one =
  (low = -2, high = 2): Make =>
  (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c], low, high) } });
const two: Make = (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, 1, c]), z: f32(seed + 1, [b, c]) } });
const big: Make = (seed, a, b) => ({
  feeds: { x: i64([a, 1], [...numbers(seed, a, -9, 9)].map(Math.floor)), z: i64([b], [...numbers(seed + 1, b, 1, 9)].map(Math.floor)) },
});
const logic: Make = (seed, a, b, c) => ({ feeds: { x: bools(seed, [a, 1, c]), z: bools(seed + 1, [b, c]) } });
const bias: Make = (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c]), z: f32(seed + 1, [c]) } });
const shaped =
  (attributes: Record<string, AttributeValue>): Make =>
  (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c]) }, attributes });
const axes = (list: number[]): TensorProto => raw("axes", [list.length], BigInt64Array.from(list, BigInt), T.INT64);
const listed =
  (list: number[], attributes = {}): Make =>
  (seed, a, b, c) => ({ feeds: { x: f32(seed, [a, b, c]) }, initializer: [axes(list)], attributes });
const skip =
  (outputs: string[], extra: string[]): Make =>
  (seed, a, b, c) => {
    const names = ["w", ...extra];
    return {
      feeds: { x: f32(seed, [a, b, c]), s: f32(seed + 1, [a, b, c]) },
      initializer: names.map((n, i) => raw(n, [c], numbers(seed + i + 2, c))),
      outputs,
      attributes: { epsilon: 1e-4 },
    };
  };
const nbits =
  (bits: number, isZeroed: boolean): Make =>
  (seed, a, b, c) => {
    const [k, n, blockSize] = [16 * b + 16, 3 * c, 16];
    const blocks = k / blockSize;
    const codes = Uint8Array.from(numbers(seed, (n * k * bits) / 8, 0, 255.9));
    const zeros = Uint8Array.from(numbers(seed + 1, n * Math.ceil((blocks * bits) / 8), 0, 255.9));
    return {
      feeds: { x: f32(seed + 2, [a, k]) },
      initializer: [
        raw("q", [n, blocks, (blockSize * bits) / 8], codes, T.UINT8),
        raw("s", [n * blocks], numbers(seed + 3, n * blocks, 0.01, 0.1)),
        ...(isZeroed ? [raw("z", [zeros.length], zeros, T.UINT8)] : []),
      ],
      attributes: { K: BigInt(k), N: BigInt(n), bits: BigInt(bits), block_size: BigInt(blockSize) },
    };
  };
const table =
  (bits: number): Make =>
  (seed, a, b, c) => ({
    feeds: { i: ids(seed, [a, b], 5) },
    initializer: [
      raw("q", [5, 4 * bits * c], Uint8Array.from(numbers(seed, 20 * bits * c, 0, 255.9)), T.UINT8),
      raw("s", [5, 2 * c], numbers(seed + 3, 10 * c, 0.01, 0.1)),
    ],
    order: ["q", "i", "s"],
    attributes: { gather_axis: 0n, quantize_axis: 1n, block_size: 16n, bits: BigInt(bits) },
  });
const pool: Make = (seed, a, b, c) => ({
  feeds: { x: f32(seed, [a, b, c + 3, 5]) },
  attributes: { kernel_shape: ints(3, 2), strides: ints(2, 1), pads: ints(1, 0, 1, 1) },
});

const bytes8 = (seed: number, dims: number[], isSigned: boolean) => ({
  type: isSigned ? "int8" : "uint8",
  dims,
  data: isSigned ? Int8Array.from(numbers(seed, size(dims), -128, 128), Math.floor) : Uint8Array.from(numbers(seed, size(dims), 0, 255.9)),
});
// int8 weights of 7 bits: onnxruntime saturates sums of pairs uint8 x int8 at int16 on processors without VNNI (255 * 127 * 2 gives 32767).
const weights8 = (seed: number, dims: number[], isSigned: boolean) => {
  const full = bytes8(seed, dims, isSigned);
  return isSigned ? { ...full, data: full.data.map((v) => v >> 1) } : full;
};
const integer =
  (isSigned: boolean): Make =>
  (s, a, b, c) => ({
    feeds: { x: bytes8(s, [a, 2, b], false), z: weights8(s + 1, [b, c], isSigned) },
    initializer: [
      raw("zx", [], Uint8Array.of(s % 256), T.UINT8),
      raw("zz", [], isSigned ? Int8Array.of(-3) : Uint8Array.of(9), isSigned ? T.INT8 : T.UINT8),
    ],
  });

const cases: Record<string, Make[]> = {
  Add: [two, big],
  Sub: [two, big],
  Mul: [two, big],
  Div: [two, big],
  Min: [two, big],
  Max: [two, big],
  Pow: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c], 0.1, 2), z: f32(s + 1, [c]) } })],
  Equal: [big],
  Greater: [two, big],
  GreaterOrEqual: [two, big],
  Less: [two, big],
  LessOrEqual: [two, big],
  And: [logic],
  Or: [logic],
  Not: [(s, a, b) => ({ feeds: { x: bools(s, [a, b]) } })],
  Neg: [one()],
  Abs: [one()],
  Sqrt: [one(0, 3)],
  Exp: [one()],
  Log: [one(0.1, 3)],
  Sin: [one()],
  Cos: [one()],
  Tanh: [one()],
  Erf: [one(-5, 5)],
  Floor: [one()],
  Ceil: [one()],
  Reciprocal: [one(0.5, 2)],
  Sigmoid: [one()],
  Relu: [one()],
  HardSwish: [one(-5, 5)],
  Gelu: [
    (s, a, b, c) => ({ ...one()(s, a, b, c), opset: 20 }),
    (s, a, b, c) => ({ ...shaped({ approximate: "tanh" })(s, a, b, c), opset: 20 }),
  ],
  "com.microsoft.Gelu": [one()],
  "com.microsoft.BiasGelu": [bias],
  "com.microsoft.FastGelu": [one(), bias],
  "com.microsoft.QuickGelu": [shaped({ alpha: 1 })],
  Cast: [
    shaped({ to: 7n }),
    shaped({ to: 6n }),
    shaped({ to: 9n }),
    (s, a, b) => ({ feeds: { x: ids(s, [a, b], 9) }, attributes: { to: 1n } }),
  ],
  Where: [(s, a, b, c) => ({ feeds: { q: bools(s, [a, 1, c]), x: f32(s, [b, c]), z: f32(s + 1, [1]) } })],
  Clip: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c]) },
      initializer: [raw("lo", [], Float32Array.of(-1)), raw("hi", [], Float32Array.of(0.5))],
    }),
  ],
  Reshape: [listed([0, -1])],
  Squeeze: [(s, a, b) => ({ feeds: { x: f32(s, [a, 1, b]) }, initializer: [axes([-2])] })],
  Unsqueeze: [listed([0, -1])],
  Flatten: [shaped({ axis: 2n })],
  Identity: [one()],
  Transpose: [shaped({ perm: ints(2, 0, 1) }), shaped({})],
  Slice: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c]) },
      initializer: [
        ["st", 9],
        ["en", -99],
        ["ax", -1],
        ["sp", -2],
      ].map(([n, v]) => raw(n as string, [1], BigInt64Array.of(BigInt(v)), T.INT64)),
    }),
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b + 1, c]) },
      initializer: [
        ["st", 1],
        ["en", 99],
        ["ax", 1],
      ].map(([n, v]) => raw(n as string, [1], BigInt64Array.of(BigInt(v)), T.INT64)),
    }),
  ],
  Concat: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), z: f32(s, [a, 2, c]) }, attributes: { axis: -2n } })],
  Split: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b + 2, c]) }, initializer: [axes([2, b])], attributes: { axis: 1n }, outputs: ["y", "y2"] }),
  ],
  Gather: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]), i: ids(s, [2, 3], b) }, attributes: { axis: 1n } })],
  Expand: [(s, a, b) => ({ feeds: { x: f32(s, [a, 1]) }, initializer: [axes([2, 1, b])] })],
  Range: [() => ({ feeds: { a: i64([], [2]), b: i64([], [11]), d: i64([], [3]) } })],
  Trilu: [shaped({ upper: 0n }), shaped({})],
  Shape: [shaped({}), shaped({ start: 1n })],
  ReduceSum: [listed([1]), listed([0, -1], { keepdims: 0n })],
  ReduceMean: [shaped({ axes: ints(1) }), shaped({})],
  ReduceMax: [shaped({ axes: ints(-1) })],
  ReduceMin: [shaped({ axes: ints(0), keepdims: 0n })],
  Softmax: [shaped({ axis: 1n }), shaped({})],
  LayerNormalization: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c + 1]) },
      initializer: ["w", "b"].map((n, i) => raw(n, [c + 1], numbers(s + i, c + 1))),
    }),
  ],
  SimplifiedLayerNormalization: [bias],
  RMSNormalization: [(s, a, b, c) => ({ ...bias(s, a, b, c), opset: 23 })],
  "com.microsoft.SkipLayerNormalization": [skip(["y"], ["b"]), skip(["y", "", "", "sum"], ["b", "add"])],
  "com.microsoft.SkipSimplifiedLayerNormalization": [skip(["y", "", "", "sum"], []), skip(["y"], ["add"])],
  MatMul: [
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, 1, b, c]), z: f32(s + 1, [2, c, 3]) } }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, initializer: [raw("w", [c, 5], numbers(s + 1, c * 5))] }),
    (s, _, __, c) => ({ feeds: { x: f32(s, [c]), z: f32(s + 1, [c, 3]) } }),
  ],
  Gemm: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [b, a]) },
      initializer: [raw("w", [c, b], numbers(s, b * c)), raw("b", [c], numbers(s + 1, c))],
      attributes: { transA: 1n, transB: 1n, alpha: 0.5, beta: 2 },
    }),
    (s, a, b, c) => ({ feeds: { x: f32(s, [a, b]), w: f32(s, [b, c]) } }),
  ],
  "com.microsoft.MatMulNBits": [nbits(4, false), nbits(4, true), nbits(8, false), nbits(8, true), nbits(2, false)],
  "com.microsoft.GatherBlockQuantized": [table(4), table(8)],
  Conv: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, 2 * b, c + 3, 6]) },
      initializer: [raw("w", [4, b, 3, 2], numbers(s + 1, 24 * b)), raw("b", [4], numbers(s + 2, 4))],
      attributes: { group: 2n, strides: ints(2, 1), pads: ints(1, 0, 1, 1), dilations: ints(1, 2) },
    }),
  ],
  MaxPool: [pool],
  AveragePool: [
    pool,
    (s, a, b, c) => {
      const p = pool(s, a, b, c);
      return { ...p, attributes: { ...p.attributes, count_include_pad: 1n } };
    },
  ],
  GlobalAveragePool: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c, 3]) } })],
};

test("every operator has a case", () => {
  expect([...operators.keys()].filter((name) => !Object.hasOwn(cases, name))).toEqual([]);
});

test("docs/runtime.md lists the operators", () => {
  const docs = readFileSync(new URL("../../docs/runtime.md", import.meta.url), "utf8");
  const listed = [...docs.matchAll(/^\| `([\w.]+)` \|/gm)].map((row) => row[1]);
  expect(listed).toEqual([...operators.keys(), "Constant"].sort());
});

const side = fc.integer({ min: 1, max: 5 });
Object.assign(cases, {
  DynamicQuantizeLinear: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, outputs: ["y", "scale", "zero"] })],
  DequantizeLinear: [
    (s, a, b, c) => ({
      feeds: { x: bytes8(s, [a, b, c], true) },
      initializer: [raw("s", [b], numbers(s, b, 0.01, 0.1)), raw("z", [b], new Int8Array(b).fill(7), T.INT8)],
      attributes: { axis: -2n },
    }),
    (s, a, b) => ({ feeds: { x: bytes8(s, [a, b], false) }, initializer: [raw("s", [], Float32Array.of(0.03))] }),
  ],
  MatMulInteger: [integer(false), integer(true)],
} satisfies Record<string, Make[]>);
const rows = Object.entries(cases).flatMap(([name, makes]) => makes.map((make, i) => [`${name} ${i}`, name, make] as const));
test.each(rows)("%s", async (_, name, make) => {
  await fc.assert(
    fc.asyncProperty(fc.nat(1000), side, side, side, async (seed, a, b, c) => {
      const made = make(seed, a, b, c);
      await compare(bytesOf(name, made), made.feeds, 1e-5);
    }),
    { numRuns: 8 },
  );
});
