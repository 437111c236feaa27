// The bytes that quantizeModelBytes writes against rules written apart (test/oracle/ort.ts: MLAS, quant_utils,
// bitsandbytes), on seeded random models of MatMul, Gemm with transB, Conv and Gather: q4 and q2 and 8-bit blocks with
// and without zero points, float16 weights, bnb4, int8 and uint8 per tensor and channel. Some here; all of them by
// LOWBIT_RANDOM_MODELS=300 npx vitest run test/onnx/byte-identity.test.ts
import { describe, expect, it } from "vitest";
import { encodeHalf, halfTable } from "../../src/onnx/file/half.ts";
import { readBytes } from "../../src/onnx/file/values.ts";
import { quantizeModelBytes, readModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { bnb4Block, half, nbitsBlock, quantUtils, type OrtBlock } from "../oracle/ort.ts";
import type { ModelProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { T, encode, graph, matmulModel, model, node, raw, value } from "./build.ts";

const MODELS = Number(process.env.LOWBIT_RANDOM_MODELS ?? 30);

/** A stream of repeatable numbers in [0, 1). */
function stream(seed: number): () => number {
  let state = (seed * 2654435761) >>> 0;
  return () => (state = (Math.imul(state ^ (state >>> 15), 2246822519) + 3266489917) >>> 0) / 2 ** 32;
}

/**
 * Weights of one of several kinds: plain, one-signed, mostly zero, on a coarse grid (ties), of many magnitudes, tiny.
 */
function randomWeights(count: number, random: () => number): { kind: string; data: Float32Array } {
  const kinds: Record<string, () => number> = {
    plain: () => (random() + random() + random() - 1.5) * 0.2,
    positive: () => random() * 0.3 + 0.01,
    negative: () => -random() * 0.3,
    sparse: () => (random() < 0.9 ? 0 : random() - 0.5),
    grid: () => Math.round((random() - 0.5) * 32) / 16,
    wide: () => (random() - 0.5) * 2 ** Math.floor(random() * 20 - 10),
    tiny: () => (random() - 0.5) * 1e-30,
  };
  const kind = Object.keys(kinds)[Math.floor(random() * Object.keys(kinds).length)];
  return { kind, data: Float32Array.from({ length: count }, kinds[kind]) };
}

const pick = <V>(random: () => number, values: readonly V[]): V => values[Math.floor(random() * values.length)];
const bytes = (data: ArrayBufferView): Buffer => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

interface Expected {
  readonly options: QuantizeBytesOptions;
  readonly tensors: Record<string, Buffer>;
}

/**
 * Codes of blocks along k, packed lowest bits first; the rest of a byte in which a row ends holds its zero point,
 * unused zero points the middle.
 */
function nbits(w: Float32Array, k: number, n: number, bits: number, random: () => number, float16: boolean): Expected {
  const blockSize = pick(random, [16, 32, 64, 128, 256]);
  const symmetric = random() < 0.5;
  const blocks = Math.ceil(k / blockSize);
  const stored = float16 ? half : Math.fround;
  const codes = new Uint8Array((n * blocks * blockSize * bits) / 8);
  const zeroRow = Math.ceil((blocks * bits) / 8);
  const zeros = new Uint8Array(n * zeroRow);
  const put = (to: Uint8Array, at: number, i: number, code: number): void => {
    to[at + Math.floor((i * bits) / 8)] |= code << ((i * bits) % 8);
  };
  const scales: number[] = [];
  for (let row = 0; row < n; row++) {
    let last = 0;
    for (let b = 0; b < blocks; b++) {
      const values = Array.from({ length: Math.min(blockSize, k - b * blockSize) }, (_, i) => w[(b * blockSize + i) * n + row]);
      const made = nbitsBlock(values, bits, symmetric, stored);
      const at = ((row * blocks + b) * blockSize * bits) / 8;
      made.codes.forEach((code, i) => put(codes, at, i, code));
      for (let i = values.length; (i * bits) % 8 !== 0; i++) put(codes, at, i, made.zeroPoint);
      scales.push(made.scale);
      put(zeros, row * zeroRow, b, made.zeroPoint);
      last = b + 1;
    }
    for (; (last * bits) % 8 !== 0; last++) put(zeros, row * zeroRow, last, 2 ** (bits - 1));
  }
  return {
    options: { dtype: ({ 2: "q2", 4: "q4", 8: "q8-block" } as const)[bits as 2], blockSize, symmetric },
    tensors: {
      [`w_Q${bits}`]: bytes(codes),
      w_scales: bytes(float16 ? Uint16Array.from(scales, encodeHalf) : Float32Array.from(scales)),
      ...(symmetric ? {} : { w_zero_points: bytes(zeros) }),
    },
  };
}

/** Blocks over the flattened [N, K], the first code of a byte in its high nibble. */
function bnb4(w: Float32Array, k: number, n: number, random: () => number): Expected {
  const blockSize = pick(random, [16, 32, 64, 128]);
  const flat = Array.from({ length: n * k }, (_, i) => w[(i % k) * n + Math.floor(i / k)]);
  const codes = new Uint8Array(Math.ceil((n * k) / 2));
  const absmax: number[] = [];
  for (let from = 0; from < flat.length; from += blockSize) {
    const made = bnb4Block(flat.slice(from, from + blockSize), "nf4");
    absmax.push(made.absmax);
    made.codes.forEach((code, i) => (codes[(from + i) >> 1] |= code << ((from + i) % 2 === 0 ? 4 : 0)));
  }
  return { options: { dtype: "bnb4", blockSize }, tensors: { w_Bnb4: bytes(codes), w_absmax: bytes(Float32Array.from(absmax)) } };
}

/** One scale and zero point per tensor, or per column. */
function eightBits(w: Float32Array, k: number, n: number, type: "int8" | "uint8", random: () => number): Expected {
  const perChannel = random() < 0.5;
  const reduceRange = random() < 0.3;
  const symmetric = random() < 0.5;
  const column = (c: number): number[] => Array.from({ length: k }, (_, i) => w[i * n + c]);
  const rules = { type, symmetric, reduceRange };
  const made: OrtBlock[] = perChannel ? Array.from({ length: n }, (_, c) => quantUtils(column(c), rules)) : [quantUtils([...w], rules)];
  const of = (i: number): number => (perChannel ? made[i % n].codes[Math.floor(i / n)] : made[0].codes[i]);
  const codes = (list: number[]) => bytes(type === "int8" ? Int8Array.from(list) : Uint8Array.from(list));
  return {
    options: { dtype: type, perChannel, symmetric, ...(reduceRange ? { reduceRange } : {}) },
    tensors: {
      w_quantized: codes(Array.from({ length: k * n }, (_, i) => of(i))),
      w_scale: bytes(Float32Array.from(made, ({ scale }) => scale)),
      w_zero_point: codes(made.map(({ zeroPoint }) => zeroPoint)),
    },
  };
}

/** Codes as stored, [n, k]; per channel they are symmetric, and channels of zeros take the zero point of the others. */
function convolution(w: Float32Array, k: number, n: number, type: "int8" | "uint8", random: () => number): Expected {
  const perChannel = random() < 0.5;
  const symmetric = perChannel || random() < 0.5;
  const row = (r: number): number[] => Array.from({ length: k }, (_, i) => w[i * n + r]);
  const rows = Array.from({ length: n }, (_, r) => row(r));
  const rules = { type, symmetric, reduceRange: false };
  const made = perChannel ? rows.map((values) => quantUtils(values, rules)) : [quantUtils(rows.flat(), rules)];
  const isZero = (r: number): boolean => rows[r].every((value) => made[perChannel ? r : 0].codes.length > 0 && value === 0);
  const live = made[Math.max(0, perChannel ? rows.findIndex((_, r) => made[r].codes.some((code) => code !== made[r].zeroPoint)) : 0)];
  const codes = perChannel
    ? rows.flatMap((_, r) => (isZero(r) ? new Array<number>(k).fill(live.zeroPoint) : made[r].codes))
    : made[0].codes;
  const store = (list: readonly number[]) => bytes(type === "int8" ? Int8Array.from(list) : Uint8Array.from(list));
  return {
    options: { dtype: type, perChannel, symmetric, include: ["*"] },
    tensors: {
      w_quantized: store(codes),
      w_scale: bytes(Float32Array.from(made, ({ scale }) => scale)),
      w_zero_point: store([live.zeroPoint]),
    },
  };
}

/**
 * A table [n, k]: signed codes with a scale per row, or (perChannel: false) unsigned ones with one scale and zero
 * point, whatever the dtype.
 */
function table(w: Float32Array, k: number, n: number, random: () => number): Expected {
  const byRow = random() < 0.5;
  const dtype = pick(random, ["int8", "uint8"] as const);
  const rows = Array.from({ length: n }, (_, r) => Array.from({ length: k }, (_, i) => w[i * n + r]));
  if (byRow) {
    const made = rows.map((values) => quantUtils(values, { type: "int8", symmetric: true, reduceRange: false }));
    return {
      options: { dtype },
      tensors: {
        w_quantized: bytes(Int8Array.from(made.flatMap(({ codes }) => codes))),
        w_scale: bytes(Float32Array.from(made, ({ scale }) => scale)),
      },
    };
  }
  const made = quantUtils(rows.flat(), { type: "uint8", symmetric: false, reduceRange: false });
  return {
    options: { dtype, perChannel: false },
    tensors: {
      w_quantized: bytes(Uint8Array.from(made.codes)),
      w_scale: bytes(Float32Array.of(made.scale)),
      w_zero_point: bytes(Uint8Array.of(made.zeroPoint)),
    },
  };
}

type Operator = "MatMul" | "Gemm" | "Conv" | "Gather";
type Layout = (w: Float32Array, k: number, n: number, random: () => number, float16: boolean) => Expected;

/** Operators and layouts, in turn. */
const LAYOUTS: readonly (readonly [Operator, Layout])[] = [
  ...(["MatMul", "Gemm"] as const).flatMap((operator): [Operator, Layout][] => [
    [operator, (w, k, n, random, float16) => nbits(w, k, n, 4, random, float16)],
    [operator, (w, k, n, random, float16) => nbits(w, k, n, 2, random, float16)],
    [operator, (w, k, n, random, float16) => nbits(w, k, n, 8, random, float16)],
    [operator, (w, k, n, random) => bnb4(w, k, n, random)],
    [operator, (w, k, n, random) => eightBits(w, k, n, "int8", random)],
    [operator, (w, k, n, random) => eightBits(w, k, n, "uint8", random)],
  ]),
  ["Conv", (w, k, n, random) => convolution(w, k, n, "int8", random)],
  ["Conv", (w, k, n, random) => convolution(w, k, n, "uint8", random)],
  ["Gather", (w, k, n, random) => table(w, k, n, random)],
];

/** A model of one operator whose matrix is w [k, n], stored as the operator has it. */
function modelOf(operator: Operator, w: Float32Array | Uint16Array, k: number, n: number): ModelProto {
  const float16 = w instanceof Uint16Array;
  const type = float16 ? T.FLOAT16 : T.FLOAT;
  if (operator === "MatMul") {
    const proto = matmulModel(raw("w", [k, n], w, type), k, n);
    proto.graph!.input = [value("x", type, ["b", k])];
    proto.graph!.output = [value("y", type, ["b", n])];
    return proto;
  }
  const turned = w.map((_, i) => w[(i % k) * n + Math.floor(i / k)]);
  const [dims, input, output] = {
    Gemm: [[n, k], value("x", type, ["b", k]), value("y", type, ["b", n])],
    Conv: [[n, k, 1], value("x", type, [1, k, 4]), value("y", type, [1, n, 4])],
    Gather: [[n, k], value("x", T.INT64, ["b"]), value("y", type, ["b", k])],
  }[operator] as [number[], ValueInfoProto, ValueInfoProto];
  const made =
    operator === "Gather"
      ? node("Gather", ["w", "x"], ["y"], {}, "op")
      : node(operator, ["x", "w"], ["y"], operator === "Gemm" ? { transB: 1n } : {}, "op");
  return model(graph({ input: [input], output: [output], initializer: [raw("w", dims, turned, type)], node: [made] }));
}

describe(`${MODELS} random models`, () => {
  it.each(Array.from({ length: MODELS }, (_, i) => i))("model %i", async (seed) => {
    const random = stream(seed + 1);
    const [operator, layout] = LAYOUTS[seed % LAYOUTS.length];
    const [k, n] = [1 + Math.floor(random() * 300), 1 + Math.floor(random() * 40)];
    const float16 = (seed % LAYOUTS.length) % 6 < 3 && operator !== "Conv" && operator !== "Gather" && random() < 0.3;
    const { kind, data } = randomWeights(k * n, random);
    const halves = Uint16Array.from(data, encodeHalf);
    const decoded = halfTable();
    const w = float16 ? Float32Array.from(halves, (code) => decoded[code]) : data;
    const { options, tensors } = layout(w, k, n, random, float16);
    const proto = modelOf(operator, float16 ? halves : w, k, n);
    const made = readModelBytes((await quantizeModelBytes(encode(proto), options)).bytes);
    const what = `${operator}, ${JSON.stringify(options)} of ${kind} ${float16 ? "float16" : "float32"} weights [${k}, ${n}]`;
    const found = new Map(made.proto.graph!.initializer.map((tensor) => [tensor.name, tensor]));
    for (const [name, want] of Object.entries(tensors)) {
      const tensor = found.get(name);
      expect(tensor, `${name}: ${what}`).toBeDefined();
      expect(bytes(readBytes(made, tensor!)).toString("hex"), `${name}: ${what}`).toBe(want.toString("hex"));
    }
  });
});
