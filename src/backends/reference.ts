// The reference backend: every format, all kinds of activations, plain loops in binary64 over decoded rows. What other
// backends are compared with.
import { dequantizeRows } from "../../formats/core/packed.ts";
import type { PackedTensor } from "../../formats/core/types.ts";
import { ACTIVATION_BITS, groupSpan, integerRefusal, quantizeActivations, type ActivationBits } from "../../kernels/activations.ts";
import { weightWord } from "../../kernels/names.ts";
import { matmulReference } from "../../kernels/reference/matmul.ts";
import { arranged, checkHadamard, checkMixed, checkRun, disposed } from "./layer.ts";
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
    const { hadamard, mixed } = options;
    if (hadamard !== undefined) checkHadamard(hadamard, k, activations);
    const span = groupSpan(source.span, k);
    const { wide, order } = checkMixed(mixed, { k, span, activations, hadamard });
    let live: PackedTensor | null = w;
    const run = (given: Float32Array, m: number, out?: Float32Array): Float32Array => {
      if (live === null) throw disposed();
      let x = given;
      const y = checkRun(x, m, n, k, out);
      let rows: Float32Array | Float64Array = x;
      if (hadamard !== undefined) rows = x = rotated(x, hadamard);
      if (order !== null) rows = x = arranged(x, order);
      if (bits !== null) {
        rows = new Float64Array(m * k);
        const codes = rows as Float64Array;
        const round = (from: number, to: number, width: ActivationBits): void =>
          quantizeActivations(x.subarray(from, to), width, span, codes.subarray(from, to));
        for (let r = 0; r < m; r++) {
          if (wide > 0) round(r * k, r * k + wide, 8);
          round(r * k + wide, (r + 1) * k, bits);
        }
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
          ...(wide === 0 || bits === null ? [] : [`the first ${wide} of ${k} channels keep 8 bits`]),
          "plain loops in binary64 over decoded rows",
        ],
      }),
      dispose,
      [Symbol.dispose]: dispose,
    };
  },
};
