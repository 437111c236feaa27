// Products of small integers on a constant matrix: MatMulInteger by the backend's kernel, which gives exact int32 sums;
// zero points are put right afterwards.
import { hasEngineMemory } from "../../backends/wasm/memory.ts";
import type { WasmBackend } from "../../backends/wasm/backend.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { NumberArray, Value } from "../value.ts";
import { empty } from "../value.ts";
import type { Inputs, PrepareContext, Prepared } from "./operator.ts";
import { fail, need } from "./operator.ts";

const BYTES: ReadonlySet<string> = new Set(["int8", "uint8"]);

/** The matrix [k, n] as int8 rows along k, codes of uint8 less 128; and its columns' sums. */
function byRows(w: Value): { readonly rows: Int8Array; readonly sums: Int32Array } {
  const [k, n] = w.dims;
  const rows = new Int8Array(n * k);
  const sums = new Int32Array(n);
  const from = w.data as NumberArray;
  const less = w.type === "uint8" ? 128 : 0;
  for (let i = 0; i < k; i++)
    for (let j = 0; j < n; j++) {
      const v = from[i * n + j] - less;
      rows[j * k + i] = v;
      sums[j] += v;
    }
  return { rows, sums };
}

/**
 * A node whose second matrix is constant, made ready for the kernel of integers; undefined for others, and backends
 * without one.
 */
export function prepareInteger(node: NodeProto, context: PrepareContext): Prepared | undefined {
  const { backend } = context;
  const [w, zeros] = [context.constant(1), context.constant(3)];
  const given = (node.input[3] ?? "") !== "";
  if (!hasEngineMemory(backend) || w?.dims.length !== 2 || !BYTES.has(w.type) || w.data.length === 0 || (given && zeros === undefined))
    return undefined;
  const [k, n] = w.dims;
  if (zeros !== undefined && zeros.data.length !== 1 && zeros.data.length !== n) return undefined;
  const { rows, sums } = byRows(w);
  const less = w.type === "uint8" ? 128 : 0;
  const zero = Int32Array.from(
    { length: n },
    (_, j) => (zeros === undefined ? 0 : Number(zeros.data[zeros.data.length === 1 ? 0 : j])) - less,
  );
  const isCentred = zero.every((z) => z === 0);
  const layer = context.own((backend as WasmBackend).prepareInteger(rows, n, k));
  const run = (inputs: Inputs, of: NodeProto): Value => {
    const a = need(inputs, 0, of);
    if (a.dims.at(-1) !== k || a.dims.length < 2 || !BYTES.has(a.type))
      throw fail(of, `[.., ${k}] of int8 or uint8`, `${a.type} [${a.dims.join(", ")}]`);
    if (inputs[2] !== undefined && inputs[2].data.length !== 1) throw fail(of, "one zero point of A", String(inputs[2].data.length));
    const za = inputs[2] === undefined ? 0 : Number(inputs[2].data[0]);
    const y = empty("int32", [...a.dims.slice(0, -1), n]);
    const out = y.data as Int32Array;
    const m = out.length / n;
    if (m === 0) return y;
    const x = a.data as Int8Array | Uint8Array;
    layer.run(x, m, out);
    // sum (a - za) (w - zw) = sum a w - za (sum w - k zw) - zw sum a
    const shift = Int32Array.from(sums, (sum, j) => za * (sum - k * zero[j]));
    for (let r = 0; r < m; r++) {
      let sum = 0;
      if (!isCentred) for (let i = r * k; i < (r + 1) * k; i++) sum += x[i];
      for (let j = 0, at = r * n; j < n; j++, at++) out[at] -= shift[j] + zero[j] * sum;
    }
    return y;
  };
  return { run, kernel: "int8", drops: [1] };
}
