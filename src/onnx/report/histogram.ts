// Where the weights of a layer lie against the code points of its format: values in units of their block's scale, so
// that all blocks share one axis.
import { format as formatNamed } from "../../../formats/registry.ts";
import type { Format } from "../../../formats/core/types.ts";
import { weightSource } from "../../backends/source.ts";
import { quantize } from "../../tensor/quantize/index.ts";
import { matrixView, readRows, tensor } from "../../tensor/tensor.ts";
import type { OnnxModel } from "../file/model.ts";
import type { LayerReport } from "../options.ts";
import { modelLayers, readWeight, type ModelLayer } from "../primitives.ts";

/** A layer's weights in units of their scales, against the values that the format has. */
export interface WeightHistogram {
  readonly layer: string;
  readonly format: string;
  /** Code points in units of the scale, ascending. */
  readonly points: readonly number[];
  readonly from: number;
  readonly to: number;
  /** Weights by bin, of equal widths between from and to. */
  readonly counts: readonly number[];
  /** Weights that were counted: a sample of the rows. */
  readonly weights: number;
}

const BINS = 96;
const ROWS = 64;
const VALUES = 1 << 17;

/**
 * Histograms of the layers that lost most, at most `count`.
 * @example
 * const { report } = await quantizeModelBytes(bytes, { dtype: "q8" });
 * worstHistograms(readModelBytes(bytes), report.layers, 2).map(({ layer }) => layer) // the two worst
 */
export function worstHistograms(model: OnnxModel, layers: readonly LayerReport[], count = 6): WeightHistogram[] {
  const worst = layers
    .filter((layer) => layer.format !== null && layer.sqnrDb !== null && Number.isFinite(layer.sqnrDb) && layer.sharedWith === undefined)
    .sort((a, b) => a.sqnrDb! - b.sqnrDb!)
    .slice(0, count);
  const byName = new Map(modelLayers(model).map((layer) => [layer.name, layer]));
  return worst.flatMap(({ name, format }) => {
    const layer = byName.get(name);
    const found = layer === undefined ? null : layerHistogram(model, layer, format!);
    return found === null ? [] : [found];
  });
}

/** Of a sample of a layer's rows; null for formats of the user's own, known by their definition only. */
function layerHistogram(model: OnnxModel, layer: ModelLayer, name: string): WeightHistogram | null {
  let format;
  try {
    format = formatNamed(name);
  } catch {
    return null;
  }
  const view = matrixView(readWeight(model, layer));
  const { k } = view;
  const rows = Math.max(1, Math.min(view.rows, ROWS, Math.floor(VALUES / k)));
  const values = new Float32Array(rows * k);
  for (let r = 0; r < rows; r++) readRows(view, Math.floor((r * view.rows) / rows), 1, values.subarray(r * k, (r + 1) * k));
  return histogramOf(layer.name, values, { rows, k }, format);
}

/**
 * A histogram of a matrix [rows, k], rounded to nearest in the format, whatever rounded the file: the scales are what
 * matters here. Null for formats without codes.
 */
export function histogramOf(
  label: string,
  values: Float32Array,
  { rows, k }: { readonly rows: number; readonly k: number },
  format: Format,
): WeightHistogram | null {
  if (format.kind !== "block") return null;
  const source = weightSource(quantize(tensor(values, [rows, k]), format));
  if (source.values === null) return null;
  const points = [...new Set(source.values)].filter(Number.isFinite).sort((a, b) => a - b);
  const scaled = inScales(source, values, rows, k);
  const [from, to] = [Math.min(points[0], ...edges(scaled, -1)), Math.max(points.at(-1)!, ...edges(scaled, 1))];
  const counts = new Array<number>(BINS).fill(0);
  for (const value of scaled)
    if (value >= from && value <= to) counts[Math.min(BINS - 1, Math.floor(((value - from) / (to - from)) * BINS))]++;
  return { layer: label, format: format.name, points, from, to, counts, weights: scaled.length };
}

/** Beyond the code points, as far as one step on either side is of interest. */
const edges = (scaled: Float64Array, sign: number): number[] => {
  const most = scaled.reduce((m, v) => Math.max(m, sign * v), -Infinity);
  return Number.isFinite(most) ? [sign * most] : [];
};

function inScales(source: ReturnType<typeof weightSource>, values: Float32Array, rows: number, k: number): Float64Array {
  const blocks = Math.ceil(k / source.span);
  const [scales, offsets] = [new Float64Array(blocks), new Float64Array(blocks)];
  const out: number[] = [];
  for (let r = 0; r < rows; r++) {
    source.scales(r, scales);
    if (source.role !== "none") source.offsets(r, offsets);
    for (let i = 0; i < k; i++) {
      const block = Math.floor(i / source.span);
      const [scale, offset, value] = [scales[block], offsets[block], values[r * k + i]];
      if (scale === 0) continue;
      out.push(source.role === "add" ? (value - offset) / scale : value / scale + (source.role === "none" ? 0 : offset));
    }
  }
  return Float64Array.from(out);
}
