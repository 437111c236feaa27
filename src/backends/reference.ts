// The reference backend: every format, all kinds of activations, plain loops in binary64 over decoded rows. What other
// backends are compared with.
import { dequantizeRows } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { ACTIVATION_BITS, groupSpan, integerRefusal, quantizeActivations } from "../../kernels/activations.ts";
import { weightWord } from "../../kernels/names.ts";
import { matmulReference } from "../../kernels/reference/matmul.ts";
import { checkHadamard, checkRun, disposed } from "./layer.ts";
import { weightSource } from "./source.ts";
import type { Backend, PrepareOptions, SyncLayer } from "./types.ts";

/** Rows of the weight that are decoded at once. */
const PANEL = 16;

/** Every block of n numbers times the Walsh-Hadamard matrix over the root of n. */
function rotated(x: Float32Array, n: number): Float32Array {
  const out = x.slice();
  for (let h = 1; h < n; h *= 2)
    for (let i = 0; i < out.length; i += 2 * h)
      for (let j = i; j < i + h; j++) {
        const [a, b] = [out[j], out[j + h]];
        out[j] = a + b;
        out[j + h] = a - b;
      }
  return out.map((v) => v / Math.sqrt(n));
}

export const reference: Backend<SyncLayer> = {
  name: "reference",
  prepare(w: PackedTensor, options: PrepareOptions): SyncLayer {
    const activations = options.activations ?? "float32";
    const source = weightSource(w);
    const refusal = activations === "float32" ? null : integerRefusal(source);
    const bits = refusal !== null ? null : (ACTIVATION_BITS.get(activations) ?? null);
    const { rows: n, k } = w;
    const { hadamard } = options;
    if (hadamard !== undefined) checkHadamard(hadamard, k, activations);
    let live: PackedTensor | null = w;
    const run = (given: Float32Array, m: number, out?: Float32Array): Float32Array => {
      if (live === null) throw disposed();
      let x = given;
      const y = checkRun(x, m, n, k, out);
      let rows: Float32Array | Float64Array = x;
      if (hadamard !== undefined) rows = x = rotated(x, hadamard);
      if (bits !== null) {
        rows = new Float64Array(m * k);
        const span = groupSpan(source.span, k);
        for (let r = 0; r < m; r++)
          quantizeActivations(x.subarray(r * k, (r + 1) * k), bits, span, rows.subarray(r * k, (r + 1) * k) as Float64Array);
      }
      const panel = new Float64Array(Math.min(PANEL, n) * k);
      for (let row = 0; row < n; row += PANEL) {
        const count = Math.min(PANEL, n - row);
        dequantizeRows(live, row, count, panel);
        matmulReference(rows, panel, y, m, n, k, row, count);
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
        kernel: `${bits === null ? "f32" : `a${bits}`}_${weightWord(w.format.name)}_matmul__reference`,
        activations: bits === null ? "float32" : activations,
        reasons: [
          ...(source.note === undefined ? [] : [source.note]),
          ...(refusal === null ? [] : [`no integer product (${refusal}): activations stay float32`]),
          "plain loops in binary64 over decoded rows",
        ],
      }),
      dispose,
      [Symbol.dispose]: dispose,
    };
  },
};
