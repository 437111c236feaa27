// Products of the integer functions of models (integer-only.ts): by a constant weight, and of two activations.
import { engineMemory, hasEngineMemory } from "../../backends/wasm/memory.ts";
import type { IntegerLayer } from "../../backends/wasm/ops.ts";
import type { WasmBackend } from "../../backends/wasm/backend.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { broadcastDims, broadcastIndex } from "./elementwise.ts";
import { fail, need, product, type Inputs, type Operator, type PrepareContext, type Prepared } from "./operator.ts";
import { ZERO, factorsOf, limitsOf, results, scalar, scaleInto, split, type Engine, type Factors } from "./integer-scaling.ts";

/** The sums of columns of a matrix [k, n] of uint8. */
function columnSums(w: Uint8Array, k: number, n: number): Int32Array {
  const sums = new Int32Array(n);
  for (let i = 0; i < k; i++) for (let j = 0; j < n; j++) sums[j] += w[i * n + j];
  return sums;
}

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
export function linear(isNarrow: boolean): Operator {
  const finish = (engine: Engine, sums: Int32Array, bias: Int32Array, x: Value, inputs: Inputs, node: NodeProto): Value => {
    const dims = [...x.dims.slice(0, -1), bias.length];
    const { value, to, zero } = results(isNarrow, dims);
    scaleInto(engine, sums, { factors: factorsOf(need(inputs, 3, node)), dims, limits: limitsOf(inputs, 4, node), node, bias }, to, zero);
    return value;
  };
  const inner = (inputs: Inputs, node: NodeProto, k: number): Value => {
    const x = need(inputs, 0, node);
    if (x.dims.at(-1) !== k || x.type !== "uint8") throw fail(node, `[.., ${k}] of uint8`, `${x.type} [${x.dims.join(", ")}]`);
    return x;
  };
  return {
    run(inputs, node) {
      const w = need(inputs, 1, node);
      const [k, n] = w.dims;
      const x = inner(inputs, node, k);
      const sums = new Int32Array((x.data.length / k) * n);
      multiplyLoops(x.data as Uint8Array, matrixOf(w, node), ZERO, k, n, sums);
      return finish(null, sums, need(inputs, 2, node).data as Int32Array, x, inputs, node);
    },
    prepare(_node, context): Prepared | undefined {
      const [w, bias] = [context.constant(1), context.constant(2)];
      if (!hasEngineMemory(context.backend) || w?.dims.length !== 2 || w.type !== "uint8" || bias?.type !== "int32" || w.data.length === 0)
        return undefined;
      const [k, n] = w.dims;
      const bytes = w.data as Uint8Array;
      const layer = context.own((context.backend as WasmBackend).prepareInteger(byRows(bytes, k, n), n, k));
      const added = columnSums(bytes, k, n).map((sum, j) => (bias.data[j] as number) - ZERO * (sum - ZERO * k));
      const engine = engineMemory(context.backend);
      let sums = new Int32Array(0);
      return {
        kernel: "int8",
        drops: [1, 2],
        run(inputs, of) {
          const x = inner(inputs, of, k);
          const m = x.data.length / k;
          if (sums.length !== m * n) sums = new Int32Array(m * n);
          if (m > 0) layer.run(x.data as Uint8Array, m, sums);
          return finish(engine, sums, added, x, inputs, of);
        },
      };
    },
  };
}

/** Codes around 128 as int8. */
function centred(x: Uint8Array): Int8Array {
  const out = new Int8Array(x.length);
  for (let i = 0; i < x.length; i++) out[i] = x[i] ^ ZERO;
  return out;
}

/** Products of two activations: of codes around 128, or (`zero` 0) of weights of softmax with such codes. */
export function products(
  isNarrow: boolean,
  zero: number,
  finish: (inputs: Inputs, node: NodeProto) => { factors: Factors; at: number },
  second: number,
): Operator {
  const run = (engine: Engine, inputs: Inputs, node: NodeProto, multiply: typeof multiplyLoops): Value => {
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
        multiply(
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
    scaleInto(engine, sums, { factors, dims, limits: limitsOf(inputs, at, node), node }, to, around);
    return value;
  };
  return {
    run: (inputs, node) => run(null, inputs, node, multiplyLoops),
    prepare(_node, { backend }: PrepareContext): Prepared | undefined {
      if (!hasEngineMemory(backend)) return undefined;
      const engine = engineMemory(backend);
      return {
        kernel: "int8",
        drops: [],
        run: (inputs, of) =>
          run(engine, inputs, of, (x, w, zeroX, k, n, to) => {
            const layer: IntegerLayer = (backend as WasmBackend).prepareInteger(byRows(w, k, n), n, k);
            try {
              layer.run(zeroX === 0 ? x : centred(x), to.length / n, to);
            } finally {
              layer.dispose();
            }
          }),
      };
    },
  };
}

export const given = (i: number) => (inputs: Inputs, node: NodeProto) => ({ factors: factorsOf(need(inputs, i, node)), at: i + 1 });

/** A factor over the sums of rows. */
export function shares(inputs: Inputs, node: NodeProto): { factors: Factors; at: number } {
  const sum = need(inputs, 1, node);
  const multiplier = scalar(inputs, 3, node);
  const data = Float64Array.from(sum.data as BigInt64Array, (v) => Math.floor(multiplier / Number(v)));
  return { factors: split(sum.dims, data), at: 4 };
}
