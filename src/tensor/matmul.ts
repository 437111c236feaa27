// matmul and prepareMatmul: the tensor API over any backend. A layer is prepared once (weights are packed for the
// kernel that the backend chooses) and run many times.
import { LowbitError } from "../../formats/core/errors.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { reference } from "../backends/reference.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import type { AsyncLayer, Backend, PrepareOptions, SyncLayer } from "../backends/types.ts";
import { matrixView, readRows, tensor, type Tensor } from "./tensor.ts";

/** How `matmul` multiplies: those of `prepareMatmul`, and where. */
export interface MatmulOptions extends PrepareOptions {
  /** Default "reference". "wasm" is one thread; `await wasm({ threads })` makes a backend with more. */
  readonly backend?: "reference" | "wasm" | Backend;
}

/**
 * Prepares a packed weight [n, k] for products x[m, k] * w^T.
 * @throws LowbitError E_UNSUPPORTED, E_DEVICE
 * @example
 * const layer = prepareMatmul(packed, { backend: await wasm(), activations: "int8" }); // once
 * const y = layer.run(x, 1); // often: [1, 64]
 * layer.dispose();
 */
export function prepareMatmul(
  w: PackedTensor,
  options?: MatmulOptions & { readonly backend?: "reference" | "wasm" | Backend<SyncLayer> },
): SyncLayer;
export function prepareMatmul<L extends AsyncLayer, O extends object>(w: PackedTensor, options: O & { readonly backend: Backend<L, O> }): L;
export function prepareMatmul(w: PackedTensor, options: MatmulOptions): AsyncLayer;
export function prepareMatmul(w: PackedTensor, options: MatmulOptions = {}): AsyncLayer {
  const { backend = "reference", ...rest } = options;
  if (typeof backend === "object" && backend !== null && typeof backend.prepare === "function") return backend.prepare(w, rest);
  if (backend === "reference") return reference.prepare(w, rest);
  if (backend === "wasm") return wasmSync().prepare(w, rest);
  throw new TypeError(`prepareMatmul backend: expected "reference", "wasm" or a backend object, got ${String(backend)}.`);
}

/**
 * y[m, n] = x[m, k] * w[n, k]^T for a packed weight. Prepares and disposes around one product: use prepareMatmul to run
 * many.
 * @throws LowbitError E_SHAPE if the contracted sides differ
 * @example
 * const y = await matmul(tensor(new Float32Array(2 * 256), [2, 256]), packed); // packed: [64, 256]
 * y.shape // [2, 64]
 */
export async function matmul(x: Tensor, w: PackedTensor, options: MatmulOptions = {}): Promise<Tensor<Float32Array>> {
  const view = matrixView(x);
  if (view.k !== w.k)
    throw new LowbitError(
      "E_SHAPE",
      `matmul: expected x with k = ${w.k} (the weight is [${w.rows}, ${w.k}]), got [${view.rows}, ${view.k}]. Transpose the side that is stored the other way.`,
    );
  const rows = new Float32Array(view.rows * view.k);
  readRows(view, 0, view.rows, rows);
  const layer = prepareMatmul(w, options);
  try {
    return tensor(await layer.runAsync(rows, view.rows), [view.rows, w.rows]);
  } finally {
    layer.dispose();
  }
}
