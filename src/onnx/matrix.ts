// The weight of a layer as a matrix [rows, k], rows the outputs and k contracted, whatever the operator's storage:
// which stored element is which entry. A grouped convolution has `groups` parts of rows / groups rows, each of which
// sees inputs of its own.
import type { NodeProto } from "./file/gen/onnx_pb.ts";
import { attributeInt } from "./graph/graph.ts";
import type { Layer } from "./layers.ts";

export interface WeightLayout {
  readonly rows: number;
  readonly k: number;
  readonly groups: number;
  /**
   * Consecutive rows that belong to one output channel (the kernel of a ConvTranspose), and columns to one input
   * channel (that of a Conv).
   */
  readonly rowSpan: number;
  readonly columnSpan: number;
  /**
   * The stored shape, axes split where only a part of one belongs to the rows, and the order of its axes in the matrix:
   * rows, then k.
   */
  readonly dims: readonly number[];
  readonly order: readonly number[];
  /** Entry [r, j] is stored at rowOffsets[r] + columnOffsets[j]. */
  readonly rowOffsets: Float64Array;
  readonly columnOffsets: Float64Array;
}

/**
 * The matrix [rows, k] that is quantized, where its entries are stored, and the shape of the packed tensor: [rows, k],
 * or for k of several axes all.
 */
export interface LayerMatrix extends WeightLayout {
  readonly shape: readonly number[];
  /** The values are multiplied by this (Gemm's alpha) before they are quantized. */
  readonly factor: number;
}

const product = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

/** A shape and how far apart neighbours along each of its axes are stored. */
interface Strided {
  readonly dims: readonly number[];
  readonly strides: readonly number[];
}

const inRow = (dims: readonly number[]): Strided => ({ dims, strides: dims.map((_, i) => product(dims.slice(i + 1))) });

/** Offsets of all index combinations of some axes, the last one fastest. */
function offsets({ dims, strides }: Strided, axes: readonly number[]): Float64Array {
  const out = new Float64Array(product(axes.map((axis) => dims[axis])));
  let repeat = out.length;
  for (const axis of axes) {
    const size = dims[axis];
    const stride = strides[axis];
    repeat /= size;
    for (let i = 0; i < out.length; i++) out[i] += (Math.floor(i / repeat) % size) * stride;
  }
  return out;
}

function layoutOf(
  strided: Strided,
  rowAxes: readonly number[],
  columnAxes: readonly number[],
  extra: Partial<WeightLayout> = {},
): WeightLayout {
  const rowOffsets = offsets(strided, rowAxes);
  const columnOffsets = offsets(strided, columnAxes);
  const order = [...rowAxes, ...columnAxes];
  const sizes = { rows: rowOffsets.length, k: columnOffsets.length, groups: 1, rowSpan: 1, columnSpan: 1 };
  return { ...sizes, dims: strided.dims, order, rowOffsets, columnOffsets, ...extra };
}

const range = (from: number, to: number): number[] => Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i);

/** Whether the stored matrix of a MatMul or Gemm has k as its first axis. */
function kFirst(node: NodeProto, input: number): boolean {
  if (node.opType === "MatMul") return input === 1;
  return input === 1 ? attributeInt(node, "transB", 0) === 0 : attributeInt(node, "transA", 0) !== 0;
}

/**
 * The layout of a layer's weight. Gather: a row per entry of axis 0. Other operators: the last axis is contracted (LSTM
 * and GRU are so).
 * @param view where the weight is stored otherwise than row-major, its strides
 */
export function weightLayout(
  layer: Pick<Layer, "node" | "input" | "shape">,
  view: { readonly strides: readonly number[]; readonly offset: number } = { strides: inRow(layer.shape).strides, offset: 0 },
): WeightLayout {
  const { node, input, shape } = layer;
  const rank = shape.length;
  const all = range(0, rank);
  const whole: Strided = { dims: shape, strides: view.strides };
  const layout = (): WeightLayout => {
    switch (node.opType) {
      case "MatMul":
      case "Gemm": {
        if (rank < 2) return layoutOf(whole, [], all);
        const [outer, inner] = kFirst(node, input) ? [rank - 1, rank - 2] : [rank - 2, rank - 1];
        return layoutOf(whole, [...range(0, rank - 2), outer], [inner]);
      }
      case "Conv":
        return layoutOf(whole, [0], range(1, rank), { groups: attributeInt(node, "group", 1), columnSpan: product(shape.slice(2)) });
      case "ConvTranspose": {
        const groups = attributeInt(node, "group", 1);
        const [first, ...rest] = view.strides;
        const split = { dims: [groups, shape[0] / groups, ...shape.slice(1)], strides: [(first * shape[0]) / groups, first, ...rest] };
        return layoutOf(split, [0, ...range(2, rank + 1)], [1], { groups, rowSpan: product(shape.slice(2)) });
      }
      case "Gather":
        return layoutOf(whole, [0], range(1, rank));
      default:
        return layoutOf(whole, range(0, rank - 1), [rank - 1]);
    }
  };
  const made = layout();
  return view.offset === 0 ? made : { ...made, rowOffsets: made.rowOffsets.map((at) => at + view.offset) };
}

/** Entries of a layout, row-major, from stored values. */
export function toMatrix(values: ArrayLike<number>, layout: WeightLayout): Float64Array<ArrayBuffer> {
  const { rows, k, rowOffsets, columnOffsets } = layout;
  const out = new Float64Array(rows * k);
  for (let r = 0, at = 0; r < rows; r++) for (let j = 0; j < k; j++) out[at++] = values[rowOffsets[r] + columnOffsets[j]];
  return out;
}

/** Stored values from the entries of a matrix. */
export function fromMatrix(matrix: ArrayLike<number>, layout: WeightLayout): Float32Array<ArrayBuffer> {
  const { rows, k, rowOffsets, columnOffsets } = layout;
  const out = new Float32Array(rows * k);
  for (let r = 0, at = 0; r < rows; r++) for (let j = 0; j < k; j++) out[rowOffsets[r] + columnOffsets[j]] = matrix[at++];
  return out;
}

/** The common difference of a list of offsets; undefined where there is none. */
export function commonStride(list: Float64Array): number | undefined {
  const stride = list.length > 1 ? list[1] - list[0] : 1;
  for (let i = 1; i < list.length; i++) if (list[i] - list[i - 1] !== stride) return undefined;
  return stride;
}
