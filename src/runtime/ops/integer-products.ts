// Products of the integer functions of models (integer-only.ts): by a constant weight, and of two activations.
import { engineMemory, hasEngineMemory } from "../../backends/wasm/memory.ts";
import { packMatrix } from "../../backends/wasm/nn/integer.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import { preparedCodes } from "./integer.ts";
import { fail, need, product, type Inputs, type Operator, type Prepared } from "./operator.ts";
import { ZERO, factorsOf, limitsOf, results, scalar, scaleInto, share, split, type Factors } from "./integer-scaling.ts";

const byRows = (w: Uint8Array, k: number, n: number): Int8Array => {
  const rows = new Int8Array(n * k);
  for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) rows[j * k + i] = w[i * n + j] - ZERO;
  return rows;
};

/** to[m, n] = (x - zeroX) (w - 128) by loops: w [k, n]. */
function multiplyLoops(x: Uint8Array, w: Uint8Array, zeroX: number, k: number, n: number, to: Int32Array): void {
  to.fill(0);
  for (let r = 0; r < to.length / n; r++)
    for (let i = 0; i < k; i++) {
      const v = x[r * k + i] - zeroX;
      for (let j = 0; j < n; j++) to[r * n + j] += v * (w[i * n + j] - ZERO);
    }
}

const matrixOf = (value: Value, node: NodeProto): Uint8Array => {
  if (value.type !== "uint8" || value.dims.length < 2) throw fail(node, "matrices of uint8", `${value.type} [${value.dims.join(", ")}]`);
  return value.data as Uint8Array;
};

/** x [.., k] of uint8 around 128, a constant weight [k, n] of the same, an int32 bias. */
export const linear = (isNarrow: boolean): Operator => ({
  run(inputs, node) {
    const w = need(inputs, 1, node);
    const [k, n] = w.dims;
    const x = need(inputs, 0, node);
    if (x.dims.at(-1) !== k || x.type !== "uint8") throw fail(node, `[.., ${k}] of uint8`, `${x.type} [${x.dims.join(", ")}]`);
    const sums = new Int32Array((x.data.length / k) * n);
    multiplyLoops(x.data as Uint8Array, matrixOf(w, node), ZERO, k, n, sums);
    const dims = [...x.dims.slice(0, -1), n];
    const { value, to, zero } = results(isNarrow, dims);
    const bias = need(inputs, 2, node).data as Int32Array;
    scaleInto(sums, { factors: factorsOf(need(inputs, 3, node)), dims, limits: limitsOf(inputs, 4, node), node, bias }, to, zero);
    return value;
  },
  prepare(_node, context): Prepared | undefined {
    const w = context.constant(1);
    if (!hasEngineMemory(context.backend) || w?.dims.length !== 2 || w.type !== "uint8" || w.data.length === 0) return undefined;
    const [k, n] = w.dims;
    const matrix = context.own(packMatrix(engineMemory(context.backend), byRows(w.data as Uint8Array, k, n), n, k, [0]));
    return preparedCodes({ kind: "product", matrix, plans: new Map() }, 1);
  },
});

/** Products of two activations: of codes around 128, or (`zero` 0) of weights of softmax with such codes. */
export const products = (
  isNarrow: boolean,
  zero: number,
  finish: (inputs: Inputs, node: NodeProto) => { factors: Factors; at: number },
  second: number,
): Operator => ({
  run(inputs, node) {
    const [a, b] = [need(inputs, 0, node), need(inputs, second, node)];
    const [x, w] = [matrixOf(a, node), matrixOf(b, node)];
    const [m, k] = a.dims.slice(-2);
    const [kb, n] = b.dims.slice(-2);
    const batch = broadcastDims(a.dims.slice(0, -2), b.dims.slice(0, -2));
    if (batch === null || k !== kb) throw fail(node, "shapes that multiply", `[${a.dims.join(", ")}] and [${b.dims.join(", ")}]`);
    const [ia, ib] = [a, b].map((v) => broadcastIndex(v.dims.slice(0, -2), batch));
    const sums = new Int32Array(product(batch) * m * n);
    for (let c = 0; c < ia.length; c++)
      if (k > 0 && m * n > 0)
        multiplyLoops(
          x.subarray(ia[c] * m * k, (ia[c] + 1) * m * k),
          w.subarray(ib[c] * k * n, (ib[c] + 1) * k * n),
          zero,
          k,
          n,
          sums.subarray(c * m * n, (c + 1) * m * n),
        );
    const { factors, at } = finish(inputs, node);
    const dims = [...batch, m, n];
    const { value, to, zero: around } = results(isNarrow, dims);
    scaleInto(sums, { factors, dims, limits: limitsOf(inputs, at, node), node }, to, around);
    return value;
  },
});

export const given = (i: number) => (inputs: Inputs, node: NodeProto) => ({ factors: factorsOf(need(inputs, i, node)), at: i + 1 });

/** A factor over the sums of rows. */
export function shares(inputs: Inputs, node: NodeProto): { factors: Factors; at: number } {
  const sum = need(inputs, 1, node);
  const multiplier = scalar(inputs, 3, node);
  const data = Float64Array.from(sum.data as BigInt64Array, (v) => share(multiplier, v));
  return { factors: split(sum.dims, data), at: 4 };
}
