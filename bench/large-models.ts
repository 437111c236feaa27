// Models larger than memory, made for `npm run bench -- large` and scripts/slurm-check.sh.
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { NodeProto, TensorProto } from "../src/onnx/file/gen/onnx_pb.ts";
import { encode, external, graph, model, node, raw, value, T } from "../test/onnx/build.ts";

export const GIB = 2 ** 30;
export const LAYERS = 400;
export const K = 4096;
/** Columns of a tensor of 3 GiB. */
export const LARGEST = (3 * GIB) / 4 / K;

const tensorOf = (name: string, dims: number[], offset: number): TensorProto =>
  external(name, dims, { location: "model.onnx_data", offset: String(offset), length: String(4 * dims[0] * dims[1]) });

/** Columns at either end of the largest tensor that are not zeros. */
export const KNOWN = 32;

/** Column j of those, [K]: what is written at either end, and what a product must give. */
export const knownColumn = (j: number): Float32Array => {
  let state = j + 1;
  return Float32Array.from({ length: K }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5);
};

/** Products of one input, all zeros on disk that holds no blocks, but for columns at either end of the largest one. */
export function makeSparse(folder: string, gib: number): void {
  const large = gib >= 8 ? LARGEST : 0;
  const columns = Math.floor((gib * GIB - 4 * K * large) / (4 * K * (large > 0 ? LAYERS - 1 : LAYERS)) / 32) * 32;
  const widths = Array.from({ length: LAYERS }, (_, i) => (large > 0 && i === LAYERS >> 1 ? large : columns));
  const initializer: TensorProto[] = [];
  const nodes: NodeProto[] = [];
  let at = 0;
  widths.forEach((n, i) => {
    initializer.push(tensorOf(`w${i}`, [K, n], at));
    nodes.push(node("MatMul", ["x", `w${i}`], [`y${i}`], {}, `mm${i}`));
    at += 4 * K * n;
  });
  const output = widths.map((n, i) => value(`y${i}`, T.FLOAT, ["batch", n]));
  writeFileSync(
    join(folder, "model.onnx"),
    encode(model(graph({ input: [value("x", T.FLOAT, ["batch", K])], output, initializer, node: nodes }))),
  );
  const fd = openSync(join(folder, "model.onnx_data"), "w");
  ftruncateSync(fd, at);
  const before = 4 * K * columns * (LAYERS >> 1);
  for (const side of large > 0 ? [0, 1] : []) {
    const known = Array.from({ length: KNOWN }, (_, j) => knownColumn(side * KNOWN + j));
    for (let i = 0; i < K; i++)
      writeSync(
        fd,
        Float32Array.from(known, (column) => column[i]),
        0,
        4 * KNOWN,
        before + 4 * (i * large + side * (large - KNOWN)),
      );
  }
  closeSync(fd);
}

/** Inputs and columns of a layer of the chain, 16 MiB: GPTQ of 4 GiB of them takes minutes. */
export const [CHAIN_K, CHAIN_N] = [256, 16384];

/** x -> product -> its first columns -> Tanh -> ..., random weights. */
export function makeChain(folder: string, gib: number): void {
  const bytes = 4 * CHAIN_K * CHAIN_N;
  const layers = Math.floor((gib * GIB) / bytes);
  let state = 12345;
  const next = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const pool = new Float32Array(CHAIN_K * CHAIN_N + layers * 1009);
  for (let i = 0; i < pool.length; i++) pool[i] = (next() + next() + next() - 1.5) * 0.12;
  const fd = openSync(join(folder, "model.onnx_data"), "w");
  const ints = (name: string, ...values: number[]): TensorProto => raw(name, [values.length], BigInt64Array.from(values, BigInt), T.INT64);
  const initializer: TensorProto[] = [ints("from", 0), ints("to", CHAIN_K), ints("axis", 1)];
  const nodes: NodeProto[] = [];
  for (let i = 0; i < layers; i++) {
    initializer.push(tensorOf(`w${i}`, [CHAIN_K, CHAIN_N], i * bytes));
    writeSync(fd, new Uint8Array(pool.buffer, i * 1009 * 4, bytes));
    nodes.push(node("MatMul", [i === 0 ? "x" : `h${i - 1}`, `w${i}`], [`p${i}`], {}, `mm${i}`));
    nodes.push(node("Slice", [`p${i}`, "from", "to", "axis"], [`s${i}`]), node("Tanh", [`s${i}`], [`h${i}`]));
  }
  closeSync(fd);
  const output = [value(`h${layers - 1}`, T.FLOAT, ["batch", CHAIN_K])];
  writeFileSync(
    join(folder, "model.onnx"),
    encode(model(graph({ input: [value("x", T.FLOAT, ["batch", CHAIN_K])], output, initializer, node: nodes }))),
  );
}
