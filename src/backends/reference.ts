// The reference backend: every format, float32 activations, plain loops in binary64 over decoded rows. What other backends are compared with.
import { LowbitError } from "../../formats/core/errors.ts";
import { dequantizeRows } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { matmulReference } from "../../kernels/reference/matmul.ts";
import { checkRun, disposed } from "./layer.ts";
import type { Backend, PrepareOptions, SyncLayer } from "./types.ts";

/** Rows of the weight that are decoded at once. */
const PANEL = 16;

export const reference: Backend<SyncLayer> = {
  name: "reference",
  prepare(w: PackedTensor, options: PrepareOptions): SyncLayer {
    const activations = options.activations ?? "float32";
    if (activations !== "float32")
      throw new LowbitError(
        "E_UNSUPPORTED",
        `reference backend activations: expected "float32", got "${activations}". Use a WebAssembly backend for integer activations.`,
      );
    const { rows: n, k } = w;
    let live: PackedTensor | null = w;
    const run = (x: Float32Array, m: number, out?: Float32Array): Float32Array => {
      if (live === null) throw disposed();
      const y = checkRun(x, m, n, k, out);
      const panel = new Float64Array(Math.min(PANEL, n) * k);
      for (let row = 0; row < n; row += PANEL) {
        const count = Math.min(PANEL, n - row);
        dequantizeRows(live, row, count, panel);
        matmulReference(x, panel, y, m, n, k, row, count);
      }
      return y;
    };
    const dispose = () => {
      live = null;
    };
    return {
      n,
      k,
      run,
      runAsync: async (x, m, out) => run(x, m, out),
      explain: () => ({
        backend: "reference",
        kernel: `f32_${w.format.name}_matmul__reference`,
        activations,
        reasons: ["plain loops in binary64 over decoded rows"],
      }),
      dispose,
      [Symbol.dispose]: dispose,
    };
  },
};
