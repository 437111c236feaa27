// Operators on codes: products and lookups of packed weights, quantization as graphs spell it.
import type { TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { raw, T } from "../onnx/build.ts";
import { f32, ids, ints, numbers, size, type Make } from "./make.ts";

/** `a` steps of one sequence (onnxruntime may divide more among its ranges), inputs of 4 c, a state of 8. */
const dynamicLstm =
  (dirs: number, isBiased: boolean): Make =>
  (s, a, _b, c) => {
    const [n, k] = [8, 4 * c];
    const codes = (name: string, dims: number[], seed: number) =>
      raw(name, dims, Uint8Array.from(numbers(seed, size(dims), 0, 255.9)), T.UINT8);
    const each = (name: string, low: number, high: number, seed: number) => raw(name, [dirs], numbers(seed, dirs, low, high));
    return {
      feeds: { x: f32(s, [a, 1, k]), h: f32(s + 1, [dirs, 1, n], -1, 1), c: f32(s + 2, [dirs, 1, n], -1, 1) },
      initializer: [
        codes("w", [dirs, k, 4 * n], s + 3),
        codes("r", [dirs, n, 4 * n], s + 4),
        raw("b", [dirs, 8 * n], numbers(s + 5, dirs * 8 * n, -0.5, 0.5)),
        each("ws", 0.002, 0.006, s + 6),
        raw("wz", [dirs], Uint8Array.from(numbers(s + 7, dirs, 100, 140)), T.UINT8),
        each("rs", 0.002, 0.006, s + 8),
        raw("rz", [dirs], Uint8Array.from(numbers(s + 9, dirs, 100, 140)), T.UINT8),
      ],
      order: ["x", "w", "r", isBiased ? "b" : "", "", "h", "c", "", "ws", "wz", "rs", "rz"],
      outputs: ["y", "yh", "yc"],
      attributes: { hidden_size: BigInt(n), direction: dirs === 2 ? "bidirectional" : "forward" },
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
const bytes8 = (seed: number, dims: number[], isSigned: boolean) => ({
  type: isSigned ? "int8" : "uint8",
  dims,
  data: isSigned ? Int8Array.from(numbers(seed, size(dims), -128, 128), Math.floor) : Uint8Array.from(numbers(seed, size(dims), 0, 255.9)),
});
// int8 weights of 7 bits: onnxruntime saturates sums of pairs uint8 x int8 at int16 on processors without VNNI (255 *
// 127 * 2 gives 32767).
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

const bnb =
  (quantType: bigint, block: number): Make =>
  (s, a, b, c) => {
    const [k, n] = [16 * b, 2 * c];
    const blocks = Math.ceil((n * k) / block);
    return {
      feeds: { x: f32(s, [a, k]) },
      initializer: [
        raw("q", [(n * k) / 2], Uint8Array.from(numbers(s + 1, (n * k) / 2, 0, 255.9)), T.UINT8),
        raw("m", [blocks], numbers(s + 2, blocks, 0.1, 1)),
      ],
      attributes: { K: BigInt(k), N: BigInt(n), block_size: BigInt(block), quant_type: quantType },
    };
  };
const scalars = (s: number, parts: [string, number, number | null][]): TensorProto[] =>
  parts.map(([name, scale, zero]) =>
    zero === null ? raw(name, [], Float32Array.of(scale)) : raw(name, [], Uint8Array.of((zero + s) % 256), T.UINT8),
  );
const qlinear =
  (operands: number, ...more: number[]): Make =>
  (s, a, b, c) => {
    const names = ["x", "z"].slice(0, operands);
    const parts = [...names, "y"].flatMap((n): [string, number, number | null][] => [
      [`${n}s`, n === "y" ? 0.0971 : 0.0203, null],
      [`${n}z`, 0, 100],
    ]);
    return {
      feeds: Object.fromEntries(names.map((n, i) => [n, bytes8(s + i, [a, b, c, ...more], false)])),
      initializer: scalars(s, parts),
      order: [...names.flatMap((n) => [n, `${n}s`, `${n}z`]), "ys", "yz"],
      outputs: ["out"],
    };
  };

const qgemm =
  (turned: boolean): Make =>
  (s, a, b, c) => ({
    feeds: { x: bytes8(s, turned ? [b, a] : [a, b], false) },
    initializer: [
      raw("w", turned ? [c, b] : [b, c], weights8(s + 1, [b, c], true).data, T.INT8),
      raw("ws", turned ? [c] : [], numbers(s + 2, turned ? c : 1, 0.001, 0.01)),
      raw("wz", turned ? [c] : [], new Int8Array(turned ? c : 1), T.INT8),
      raw("b", [c], Int32Array.from(numbers(s + 3, c, -500, 500)), T.INT32),
      ...scalars(s, [
        ["xs", 0.0203, null],
        ["xz", 0, 120],
        ["ys", 0.0511, null],
        ["yz", 0, 117],
      ]),
    ],
    order: ["x", "xs", "xz", "w", "ws", "wz", turned ? "b" : "", "ys", "yz"],
    ...(turned && { attributes: { transA: 1n, transB: 1n, alpha: 0.75 } }),
    outputs: ["out"],
  });

/** uint8 image and 7-bit filters [4, b, 3, 2] of two groups. */
const image =
  (isInteger: boolean): Make =>
  (s, a, b, c) => {
    const filters = weights8(s + 1, [4, b, 3, 2], true);
    const scale = numbers(s + 2, 4, 0.001, 0.01);
    const extra = isInteger
      ? []
      : [
          ...scalars(s, [
            ["xs", 0.02, null],
            ["ys", 0.05, null],
            ["yz", 0, 128],
          ]),
          raw("ws", [4], scale),
          raw("b", [4], Int32Array.from(numbers(s, 4, -500, 500)), T.INT32),
        ];
    return {
      feeds: { x: bytes8(s, [a, 2 * b, c + 3, 6], false) },
      initializer: [
        raw("w", [4, b, 3, 2], filters.data, T.INT8),
        raw("xz", [], Uint8Array.of(s % 256), T.UINT8),
        raw("wz", isInteger ? [] : [4], new Int8Array(isInteger ? 1 : 4), T.INT8),
        ...extra,
      ],
      order: isInteger ? ["x", "w", "xz", "wz"] : ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
      outputs: ["y"],
      attributes: { group: 2n, strides: ints(2, 1), pads: ints(1, 0, 1, 1) },
    };
  };

export const codeCases: Record<string, Make[]> = {
  "com.microsoft.MatMulNBits": [nbits(4, false), nbits(4, true), nbits(8, false), nbits(8, true), nbits(2, false)],
  "com.microsoft.MatMulBnb4": [bnb(0n, 16), bnb(1n, 16), bnb(1n, 64)],
  "com.microsoft.GatherBlockQuantized": [table(4), table(8)],
  DynamicQuantizeLinear: [(s, a, b, c) => ({ feeds: { x: f32(s, [a, b, c]) }, outputs: ["y", "scale", "zero"] })],
  DequantizeLinear: [
    (s, a, b, c) => ({
      feeds: { x: bytes8(s, [a, 4 * b, c], true) },
      initializer: [raw("s", [a, b, c], numbers(s, a * b * c, 0.01, 0.1)), raw("z", [a, b, c], new Int8Array(a * b * c).fill(3), T.INT8)],
      attributes: { axis: 1n, block_size: 4n },
      opset: 21,
    }),
    (s, a, b, c) => ({
      feeds: { x: bytes8(s, [a, b, c], true) },
      initializer: [raw("s", [b], numbers(s, b, 0.01, 0.1)), raw("z", [b], new Int8Array(b).fill(7), T.INT8)],
      attributes: { axis: -2n },
    }),
    (s, a, b) => ({ feeds: { x: bytes8(s, [a, b], false) }, initializer: [raw("s", [], Float32Array.of(0.03))] }),
  ],
  MatMulInteger: [integer(false), integer(true)],
  QuantizeLinear: [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b, c]) },
      initializer: [raw("s", [c], numbers(s, c, 0.01, 0.1)), raw("z", [c], new Int8Array(c).fill(7), T.INT8)],
      attributes: { axis: -1n },
    }),
    (s, a, b) => ({ feeds: { x: f32(s, [a, b]) }, initializer: [raw("s", [], Float32Array.of(0.03))] }),
    (s, a, b) => ({
      feeds: { x: f32(s, [a, b]) },
      initializer: [raw("s", [], Float32Array.of(0.0003)), raw("z", [], Int16Array.of(5), T.INT16)],
      opset: 21,
    }),
  ],
  ConvInteger: [image(true)],
  QLinearConv: [image(false)],
  QLinearMatMul: [
    (s, a, b, c) => ({
      feeds: { x: bytes8(s, [a, b], false) },
      initializer: [
        raw("w", [b, c], weights8(s + 1, [b, c], true).data, T.INT8),
        raw("wz", [], Int8Array.of(0), T.INT8),
        raw("ws", [], Float32Array.of(0.01)),
        ...scalars(s, [
          ["xs", 0.02, null],
          ["xz", 0, 3],
          ["ys", 0.05, null],
          ["yz", 0, 128],
        ]),
      ],
      order: ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"],
    }),
  ],
  "com.microsoft.QuantizeLinear": [
    (s, a, b) => ({
      feeds: { x: f32(s, [a, b]) },
      initializer: [raw("s", [], Float32Array.of(0.03)), raw("z", [], Uint8Array.of(9), T.UINT8)],
    }),
  ],
  "com.microsoft.DequantizeLinear": [
    (s, a, b) => ({
      feeds: { x: bytes8(s, [a, b], false) },
      initializer: [raw("s", [], Float32Array.of(0.03)), raw("z", [], Uint8Array.of(9), T.UINT8)],
    }),
  ],
  "com.microsoft.QGemm": [qgemm(false), qgemm(true)],
  "com.microsoft.QLinearConcat": [
    (s, a, b, c) => {
      const { feeds, initializer = [] } = qlinear(2)(s, a, b, c);
      return { feeds, initializer, order: ["ys", "yz", "x", "xs", "xz", "z", "zs", "zz"], attributes: { axis: 1n }, outputs: ["out"] };
    },
  ],
  "com.microsoft.QLinearLeakyRelu": [(s, a, b, c) => ({ ...qlinear(1)(s, a, b, c), attributes: { alpha: 0.13 } })],
  "com.microsoft.QLinearAveragePool": [
    (s, a, b, c) => ({
      ...qlinear(1, 3)(s, a, b, c),
      attributes: { kernel_shape: ints(2, 3), strides: ints(1, 2), pads: ints(1, 0, 0, 1) },
    }),
  ],
  "com.microsoft.QLinearGlobalAveragePool": [qlinear(1, 3)],
  "com.microsoft.QLinearAdd": [qlinear(2)],
  "com.microsoft.QLinearMul": [qlinear(2)],
  "com.microsoft.QLinearSigmoid": [qlinear(1)],
  "com.microsoft.MatMulIntegerToFloat": [
    (s, a, b, c) => ({
      feeds: { x: bytes8(s, [a, b], false) },
      initializer: [
        raw("w", [b, c], weights8(s + 1, [b, c], true).data, T.INT8),
        raw("xs", [], Float32Array.of(0.02)),
        raw("ws", [c], numbers(s, c, 0.01, 0.02)),
        raw("xz", [], Uint8Array.of(7), T.UINT8),
        raw("b", [c], numbers(s + 4, c)),
      ],
      order: ["x", "w", "xs", "ws", "xz", "", "b"],
    }),
  ],
  "com.microsoft.DynamicQuantizeLSTM": [dynamicLstm(1, false), dynamicLstm(1, true), dynamicLstm(2, true)],
  "com.microsoft.DynamicQuantizeMatMul": [
    (s, a, b, c) => ({
      feeds: { x: f32(s, [a, b]) },
      initializer: [raw("w", [b, c], weights8(s + 1, [b, c], true).data, T.INT8), raw("ws", [], Float32Array.of(0.01))],
      order: ["x", "w", "ws"],
    }),
  ],
};
