// 2:4 sparse 4-bit weights on the WebAssembly backend: int8 activations, a scale per row and block of the weight.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { activations as activationFamily } from "../../../kernels/wasm/dot/activations.ts";
import { activationRecord } from "../../../kernels/wasm/dot/gemmspec.ts";
import type { DotOperand } from "../../../kernels/wasm/engine/features.ts";
import { kernel } from "../../../kernels/wasm/engine/family.ts";
import { recordJob } from "../../../kernels/wasm/engine/items.ts";
import type { Runtime } from "../../../kernels/wasm/engine/runtime.ts";
import { tileRows } from "../../../kernels/wasm/products/tiles.ts";
import {
  packTwoFour,
  TWO_FOUR_ARGUMENTS,
  TWO_FOUR_MOST,
  TWO_FOUR_ROWS,
  TWO_FOUR_SPAN,
  twoFour,
  twoFourGroup,
  type TwoFourSpec,
} from "../../../kernels/wasm/sparse/two-four.ts";
import { twoFourName } from "../../../kernels/wasm/sparse/variants.ts";
import type { WeightSource } from "../../../kernels/weight.ts";
import { disposed } from "../layer.ts";
import { weightSource } from "../source.ts";
import type { SyncLayer } from "../types.ts";
import { productLayer } from "./layer.ts";
import { stage, weightMemory, type Product } from "./product.ts";

const refuse = (w: PackedTensor, got: string, remedy: string): LowbitError =>
  new LowbitError(
    "E_UNSUPPORTED",
    `prepareSparse activations "int8", ${w.format.name}: expected 2:4 weights of 4 bits in blocks of a multiple of ${TWO_FOUR_SPAN}, got ${got}. ${remedy}`,
  );

const STYLES: Readonly<Record<DotOperand, TwoFourSpec["style"]>> = { none: "simd", i7: "madd16", u8: "dot-u", s8: "dot-s" };

const FORMAT = 'Prune to a format of such blocks (prune(w, "2:4", { format: format("int4_b32") })), or take float32 activations.';

/** The integers of a weight's codes. @throws LowbitError E_UNSUPPORTED */
function integersOf(w: PackedTensor, source: WeightSource): Int8Array {
  const { values, role, span } = source;
  if (values === null || !values.every((v) => Number.isInteger(v) && v >= -8 && v <= 7)) throw refuse(w, "other values", FORMAT);
  if (role !== "none") throw refuse(w, "zero points", FORMAT);
  if (span % TWO_FOUR_SPAN !== 0) throw refuse(w, `blocks of ${span}`, FORMAT);
  return Int8Array.from(values);
}

/** @throws LowbitError E_UNSUPPORTED for weights that are not 2:4, or of other formats; E_DEVICE */
export function prepareTwoFour(runtime: Runtime, w: PackedTensor): SyncLayer {
  if (!runtime.live) throw disposed();
  const source = weightSource(w);
  const integers = integersOf(w, source);
  const { rows: n, k } = w;
  const { span } = source;
  const groups = Math.ceil(k / span);
  const blocks = Math.ceil(n / 16);
  const style = STYLES[runtime.features.dot];
  const groupBytes = twoFourGroup(span, style);
  const packed = new Uint8Array(blocks * 4 * groups * groupBytes);
  const rows = Array.from({ length: TWO_FOUR_ROWS }, () => new Int8Array(k));
  const codes = new Uint8Array(k);
  const scales = Array.from({ length: TWO_FOUR_ROWS }, () => new Float64Array(groups));
  for (let four = 0; four < 4 * blocks; four++) {
    for (let i = 0; i < TWO_FOUR_ROWS; i++) {
      const r = TWO_FOUR_ROWS * four + i;
      rows[i].fill(0);
      scales[i].fill(0);
      if (r >= n) continue;
      source.codes(r, codes);
      for (let j = 0; j < k; j++) rows[i][j] = integers[codes[j]];
      source.scales(r, scales[i]);
    }
    for (let g = 0; g < groups; g++) {
      const start = g * span;
      const parts = rows.map((row) => row.subarray(start, start + span));
      const into = packed.subarray((four * groups + g) * groupBytes, (four * groups + g + 1) * groupBytes);
      const own = Float32Array.from(scales, (row) => row[g]);
      if (!packTwoFour(parts, Math.min(span, k - start), span, own, style, into))
        throw refuse(w, `more than two weights of four in rows ${TWO_FOUR_ROWS * four} to ${TWO_FOUR_ROWS * four + 3}`, 'Prune first: prune(w, "2:4", ...).'); // prettier-ignore
    }
  }
  return productLayer(runtime, twoFourProduct(runtime, { n, k, span, groups, blocks, packed, style }, w.format.name), n, k);
}

interface PackedTwoFour {
  readonly n: number;
  readonly k: number;
  readonly span: number;
  readonly groups: number;
  readonly blocks: number;
  readonly packed: Uint8Array;
  readonly style: TwoFourSpec["style"];
}

function twoFourProduct(runtime: Runtime, { k, span, groups, blocks: all, packed, style }: PackedTwoFour, label: string): Product {
  const { space, address } = weightMemory(runtime, packed.length);
  const { shared } = runtime;
  const record = activationRecord({ style: "dot", activationBits: 8, group: span, mr: 1 });
  const quantizer = { style: "dot", inOrder: false, activationBits: 8, codeBits: 8, mr: 1, totals: true, mixed: false, shared } as const;
  const specs = Array.from({ length: TWO_FOUR_MOST }, (_, i): TwoFourSpec => ({ style, mr: i + 1, short: span === TWO_FOUR_SPAN, shared }));
  const specOf = (m: number): TwoFourSpec => specs[tileRows(m, TWO_FOUR_MOST) - 1];
  const padded = (m: number): number => Math.ceil(m / specOf(m).mr) * specOf(m).mr;
  return {
    space,
    address,
    activations: "int8",
    name: (m) => twoFourName(specOf(m), label),
    reasons: ["two weights of four are stored and multiplied: 6 bits for two, and scales"],
    rows: padded,
    pack: () => new Uint8Array(space.buffer, address, packed.length).set(packed),
    kernel: () => kernel(twoFour, specOf(1)),
    multiply(x, m, c, stride, blocks = all) {
      const rows = padded(m);
      const a = space.scratch("a", rows * groups * record.bytes);
      const staged = stage(space, x, m, rows, { k, span, group: span, groups });
      const records = recordJob({ x: staged, a, tiles: rows, mr: 1, groups, group: span, bytes: record.bytes });
      runtime.work(space, kernel(activationFamily, quantizer), records.items, records.args, 0);
      const values = { a, w: address, c, ldc: 4 * stride, groups, steps: span / TWO_FOUR_SPAN, tiles: rows / specOf(m).mr };
      const args = Int32Array.from(TWO_FOUR_ARGUMENTS, (name) => values[name]);
      runtime.work(space, kernel(twoFour, specOf(m)), blocks, args, 0);
    },
  };
}
