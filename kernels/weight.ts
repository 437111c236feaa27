// What kernels are told about a weight matrix: properties and codes, never a format's name. Anything that can be
// described so, a user's own format included, runs on every kernel that its properties allow.
import { isWide } from "./plan.ts";

/** How an offset enters the value: (element - zeroPoint) * scale, or element * scale + add. */
export type OffsetRole = "none" | "zeroPoint" | "add";

/**
 * Rows of codes one after the other, least significant bit first, each row on whole bytes of which bits beyond the last
 * code are 0; and scales where they are float32.
 */
export interface DenseRows {
  readonly rowBytes: number;
  codes(row: number, count: number, into: Uint8Array): void;
  /** ceil(k / span) of each row. */
  readonly scales?: ((row: number, count: number, into: Float32Array) => void) | undefined;
}

/** A [rows, k] matrix of codes with block scales along k. Readers fill `out` from index 0. */
export interface WeightSource {
  readonly rows: number;
  readonly k: number;
  /** Bits of a code. */
  readonly bits: number;
  /** Value of every code (2^bits of them) where bits <= 16, else null. */
  readonly values: Float64Array | null;
  /** Elements along k that share a scale; k where a row has one scale. The last block may be short. */
  readonly span: number;
  readonly role: OffsetRole;
  /**
   * Every zero point there can be is an integer, and so near all values that sums of value - zero point keep to
   * `MOST_STEPS` of plan.ts.
   */
  readonly integerZeros: boolean;
  /** Codes of row r: k of them. */
  codes(r: number, out: Uint32Array | Uint16Array | Uint8Array): void;
  /** Scales of row r (product of all levels): ceil(k / span) of them. */
  scales(r: number, out: Float64Array): void;
  /**
   * Offsets of row r (zero points in element units, or addends): ceil(k / span) of them. Called only where role is not
   * "none".
   */
  offsets(r: number, out: Float64Array): void;
  /** Reads many rows at once, where they are dense. */
  readonly dense?: DenseRows;
  /**
   * Exact values of row r, offsets and scales applied; used for matrices that are decoded before they are multiplied.
   */
  decode(r: number, out: Float64Array): void;
  /** How the codes came about, where that is no plain reading: `explain()` says so. */
  readonly note?: string;
}

/**
 * What the scales of a matrix are where its elements have a wide range, so that products must not be summed before they
 * are scaled: `one` (all 1, or no such elements: no matter), `any`, or `outside` where a float32 cannot hold one.
 */
export function wideScales(source: WeightSource, unit: number): "one" | "any" | "outside" {
  if (source.values === null || !isWide(source.values)) return "one";
  const scales = new Float64Array(Math.ceil(source.k / source.span));
  let found: "one" | "any" = "one";
  for (let r = 0; r < source.rows; r++) {
    source.scales(r, scales);
    for (const scale of scales) {
      const exact = scale * unit;
      const kept = Math.fround(exact);
      if (Number.isFinite(exact) && Math.abs(kept - exact) > Math.abs(exact) * 2 ** -24) return "outside";
      if (exact !== 1) found = "any";
    }
  }
  return found;
}
