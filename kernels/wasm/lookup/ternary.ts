// Ternary weights, -1, 0, 1 times a unit: products by additions only. A mask of the plus signs and one of "no minus
// sign" are the two planes of a look-up kernel (lut.ts, `equal`): value = unit * (plus + notMinus - 1), so both sums of
// activations count once and no product is formed but those with the scales. A weight is ternary by the values that its
// codes stand for and use, never by the name of its format: a format may have codes that the matrix does not use.
import type { WeightSource } from "../../weight.ts";
import type { LutPlan } from "./lut.ts";

/**
 * The planes of a matrix whose values are all -unit, 0 or unit, or null for any other. Reads codes until a value says
 * no.
 */
export function ternaryPlan(source: WeightSource): LutPlan | null {
  const { values, bits, rows, k } = source;
  if (values === null || bits > 8) return null;
  const used = new Uint8Array(values.length);
  const codes = new Uint8Array(k);
  let unit = 0;
  for (let r = 0; r < rows; r++) {
    source.codes(r, codes);
    for (let i = 0; i < k; i++) {
      const code = codes[i];
      if (used[code] === 1) continue;
      used[code] = 1;
      const magnitude = Math.abs(values[code]);
      if (magnitude === 0) continue;
      if (!Number.isFinite(magnitude) || (unit !== 0 && magnitude !== unit)) return null;
      unit = magnitude;
    }
  }
  const remap = Uint8Array.from(values, (v, code) => (used[code] === 0 ? 0 : (v > 0 ? 1 : 0) | (v < 0 ? 0 : 2)));
  return { planes: 2, equal: true, remap, unit: unit === 0 ? 1 : unit, shift: 1, doubled: false, bias: 0 };
}
