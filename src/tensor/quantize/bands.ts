// quantize for matrices larger than an array may be: bands of rows are read, quantized and put below each other. Where
// all rows share a scale (spans "tensor") the matrix is walked over panel by panel, as often as the rule needs. Same
// codes and scales as of the whole.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import { packedSizes } from "../../../formats/core/packed.ts";
import type { Format, PackedTensor, ScaleLevel } from "../../../formats/core/types.ts";
import { matrixView, readRows, type Tensor, type TensorData } from "../tensor.ts";
import { checkFormat, type QuantizeOptions, type WeightQuantizer } from "./index.ts";
import { quantizeMeasured, quantizeRead, type Measured } from "./measure.ts";
import { checkOptions } from "./policy.ts";

/** A matrix whose rows are read when they are asked for. */
export interface BandSource {
  /** [rows, k], or for k of several axes all. */
  readonly shape: readonly number[];
  readonly rows: number;
  readonly k: number;
  /** Rows of one band, as many as suit the memory; the last one may have fewer. */
  readonly bandRows: number;
  /** Rows [row, row + count) as [count, k]; what was read before may be overwritten. */
  band(row: number, count: number): Tensor<Float32Array>;
}

type Plane = "codes" | "scales" | "superScales" | "offsets";
const PLANES: readonly Plane[] = ["codes", "scales", "superScales", "offsets"];

const levelsOf = (format: Format): readonly ScaleLevel[] =>
  format.kind === "block" ? [...format.scales, ...(format.offset?.levels ?? [])] : [];

/** Do no scales reach over the rows of several bands, of `rows` rows each? */
export const isApart = (format: Format, rows: number): boolean =>
  levelsOf(format).every(({ span }) => (Array.isArray(span) ? rows % (span as readonly number[])[0] === 0 : span !== "tensor"));

const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));

/**
 * `quantizeMeasured` band by band.
 * @param flat all values are one row, blocks go on from row to row
 * @throws LowbitError E_VALUE for a weight that is not finite, by its row and column; else as `quantize`
 */
export function quantizeBands(source: BandSource, format: Format, options: QuantizeOptions | WeightQuantizer = {}, flat = false): Measured {
  checkFormat(format);
  checkOptions(options);
  const { k } = source;
  // whole blocks, where they go on from row to row, and whole tiles of rows
  const levels = levelsOf(format);
  const step = Math.max(
    1,
    ...levels.map(({ span }) =>
      Array.isArray(span) ? (span as readonly number[])[0] : flat && typeof span === "number" ? span / gcd(k, span) : 1,
    ),
  );
  const bandRows = Math.max(step, source.bandRows - (source.bandRows % step));
  if ("quantizeWeight" in options || isApart(format, bandRows)) return joined(source, format, options, flat, bandRows);
  return quantizeRead(panelsOf(source), source.shape, format, options);
}

/** Every band for itself, its planes below those before. */
function joined(source: BandSource, format: Format, options: QuantizeOptions | WeightQuantizer, flat: boolean, bandRows: number): Measured {
  const { rows, k } = source;
  const shape = flat ? [rows * k] : [...source.shape];
  const sizes = packedSizes(format, shape);
  const planes = {
    codes: new Uint8Array(sizes.codes),
    scales: plane(sizes.scales),
    superScales: plane(sizes.superScales),
    offsets: plane(sizes.offsets),
  };
  const at = { codes: 0, scales: 0, superScales: 0, offsets: 0 };
  let [signal, noise] = [0, 0];
  let last: PackedTensor | undefined;
  for (let row = 0; row < rows; row += bandRows) {
    const count = Math.min(bandRows, rows - row);
    const read = source.band(row, count);
    const made = quantizeBand(flat ? flattened(read, count * k) : read, row, k, format, options);
    for (const name of PLANES) {
      const bytes = made.packed[name];
      if (bytes === null) continue;
      planes[name]!.set(bytes, at[name]);
      at[name] += bytes.length;
    }
    signal += made.signal;
    noise += made.noise;
    last = made.packed;
  }
  return { packed: { ...last!, ...planes, shape, rows: sizes.rows, k: sizes.k, rowBytes: sizes.rowBytes }, signal, noise };
}

const plane = (bytes: number | null): Uint8Array | null => (bytes === null ? null : new Uint8Array(bytes));

/** A band as one row. */
function flattened(band: Tensor<Float32Array>, length: number): Tensor<Float32Array> {
  const data = new Float32Array(length);
  const view = matrixView(band);
  readRows(view, 0, view.rows, data);
  return { data, shape: [length], stride: [1], offset: 0 };
}

/** One band; a value that is not finite is named by its place in the whole. */
function quantizeBand(
  band: Tensor<Float32Array>,
  row: number,
  k: number,
  format: Format,
  options: QuantizeOptions | WeightQuantizer,
): Measured {
  try {
    return quantizeMeasured(band, format, options);
  } catch (error) {
    if (!isLowbitError(error) || error.code !== "E_VALUE") throw error;
    const view = matrixView(band);
    const values = new Float32Array(view.k);
    for (let r = 0; r < view.rows; r++) {
      readRows(view, r, 1, values);
      const j = values.findIndex((value) => !Number.isFinite(value));
      if (j < 0) continue;
      const place = `[${row + r + Math.floor(j / k)}, ${j % k}]`;
      throw new LowbitError(
        "E_VALUE",
        `quantize: expected finite numbers, got ${values[j]} at ${place}. Clean the tensor, or leave it in its own format.`,
        { cause: error },
      );
    }
    throw error;
  }
}

/** The rows as a view that reads them: one band is held at a time. */
function panelsOf(source: BandSource) {
  const { rows, k, bandRows } = source;
  let first = 0;
  let held: ReturnType<typeof matrixView> | undefined;
  const read = (row: number, count: number, out: TensorData): void => {
    for (let done = 0; done < count;) {
      const at = row + done;
      if (held === undefined || at < first || at >= first + held.rows) {
        first = at - (at % bandRows);
        held = matrixView(source.band(first, Math.min(bandRows, rows - first)));
      }
      const some = Math.min(count - done, first + held.rows - at);
      readRows(held, at - first, some, done === 0 ? out : out.subarray(done * k));
      done += some;
    }
  };
  return { data: new Float32Array(0), rows, k, offset: 0, rowStride: k, kStride: 1, kOffsets: null, read };
}
