// A block in its format, with codes and scales; fetched when a block format is chosen. Pure functions over the
// library, tested in Node.
import { bitCard, type Format, type PackedTensor } from "../../../formats/index.ts";
import { hexCode } from "../../../formats/core/explain.ts";
import { unpackCodes } from "../../../formats/core/pack.ts";
import { weightSource } from "../../../src/backends/source.ts";
import { gaussian, seededRandom } from "../../../src/quantize/random.ts";
import { dequantize } from "../../../src/tensor/dequantize.ts";
import { quantize } from "../../../src/tensor/quantize/index.ts";
import { tensor } from "../../../src/tensor/tensor.ts";
import { readNumber, type ExplorerState, type View } from "./state";

export interface BlockCodes {
  readonly codes: readonly string[];
  /** One for every block of the row. */
  readonly scales: readonly number[];
  /** Zero points or minima; empty without. */
  readonly offsets: readonly number[];
  readonly span: number;
}

/** Codes and scales of the first row of a packed tensor; null where its bytes have no such parts. */
export function blockCodes(packed: PackedTensor): BlockCodes | null {
  const { format, k } = packed;
  if (format.kind !== "block") return null;
  const source = weightSource(packed);
  const blocks = Math.ceil(k / source.span);
  const [scales, offsets] = [new Float64Array(blocks), new Float64Array(blocks)];
  source.scales(0, scales);
  if (source.role !== "none") source.offsets(0, offsets);
  const codes = unpackCodes(packed.codes, format.element.bits, k);
  return {
    codes: Array.from(codes, (code) => hexCode(Number(code), format.element.bits)),
    scales: [...scales],
    offsets: source.role === "none" ? [] : [...offsets],
    span: source.span,
  };
}

/** Values to begin with: normal ones, and ones with an outlier of more than eight standard deviations. */
export function drawBlock(count: number, kind: "normal" | "outlier", seed: number): string {
  const random = gaussian(seededRandom(seed));
  const values = Array.from({ length: count }, random);
  if (kind === "outlier" && count > 3) values[3] += values[3] < 0 ? -8 : 8;
  return values.map((v) => Number(v.toPrecision(3))).join(" ");
}

/** The block of a state; what is no list of numbers is an error. */
export function blockView(f: Format, state: ExplorerState): View {
  const values = state.block.split(/[\s,]+/).filter((part) => part !== "").map(readNumber); // prettier-ignore
  const wrong = values.findIndex((v) => v === undefined);
  if (values.length === 0 || wrong >= 0)
    return {
      kind: "error",
      message: `block: expected numbers, got ${values.length === 0 ? "nothing" : `something else in place ${wrong + 1}`}.`,
    };
  const size = f.kind === "opaque" ? f.blockSize : 1;
  const data = new Float32Array(Math.ceil(values.length / size) * size);
  data.set(values as number[]);
  const packed = quantize(tensor(data, [1, data.length]), f);
  const stored = dequantize(packed);
  const rows = Array.from(data, (v, i) => [v, stored[i], stored[i] - v] as const);
  const power = rows.reduce((sum, [v]) => sum + v * v, 0);
  const noise = rows.reduce((sum, [, , e]) => sum + e * e, 0);
  return { kind: "block", format: f, card: bitCard(f).lines, packed, rows, sqnr: 10 * Math.log10(power / noise) };
}
