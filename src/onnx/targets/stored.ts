// Weights of any format as packed codes in the file, read by nodes that a runtime folds when it loads the model: the
// file is as small as the format, the memory of a plain runtime is that of float32. For formats that no operator takes
// (3 bits, FP8, MX, NVFP4, NF4, posits, a user's own), and for every operator with a weight. The format is written down
// in the model's metadata, so that `readStored` (inspect, lowbit/runtime) finds the packed tensor again.
import { elementOf, levelCodes, packedSizes, unpack } from "../../../formats/core/packed.ts";
import { packInto, type Codes } from "../../../formats/core/pack.ts";
import { spanGrid, type SpanGrid } from "../../../formats/core/span.ts";
import type { Format, PackedTensor, ScaleLevel } from "../../../formats/core/types.ts";
import type { TensorProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { Scope } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import { layerMatrix, layerType, setWeight } from "../weights.ts";
import { weightFromBasis } from "./basis.ts";
import { constantNodes, lookUpTables, planesReason, sharedInts, storeCodes, type Sink, type StoredCodes, type Tables } from "./planes.ts";
import { recordStored, type StoredWeight } from "./record.ts";
import type { Target, TargetContext } from "./target.ts";
import { madeBytes, perWeight } from "./target.ts";

/** Why a format cannot be stored; undefined where it can. */
function formatReason(format: Format, opset: number): string | undefined {
  if (format.kind === "opaque") return format.planes === undefined ? `the blocks of ${format.name} are no codes of one format` : undefined;
  if (format.kind !== "block") return planesReason(format, opset);
  for (const level of [...format.scales, ...(format.offset?.levels ?? [])]) {
    const reason = planesReason(level.format, opset);
    if (reason !== undefined) return reason;
  }
  return planesReason(format.element, opset);
}

/** A packed tensor of opaque blocks as one of codes with float32 scales and minima; others as they are. */
export function asPlanes(packed: PackedTensor): PackedTensor {
  const { format, rows, k } = packed;
  if (format.kind !== "opaque" || format.planes === undefined) return packed;
  const planes = format.planes;
  const span = planes.scales[0].span as number;
  const sizes = packedSizes(planes, packed.shape);
  const codes = new Uint8Array(sizes.codes);
  const perRow = Math.ceil(k / span);
  const scales = new Float32Array(rows * perRow);
  const mins = new Float32Array(rows * perRow);
  const rowCodes = new Uint8Array(k);
  const rowScales = new Float64Array(perRow);
  const rowMins = new Float64Array(perRow);
  for (let r = 0; r < rows; r++) {
    format.readPlanes!(packed.codes.subarray(r * packed.rowBytes, (r + 1) * packed.rowBytes), rowCodes, rowScales, rowMins);
    packInto(rowCodes, 0, k, planes.element.bits, codes, r * sizes.rowBytes);
    scales.set(rowScales, r * perRow);
    mins.set(rowMins, r * perRow);
  }
  return {
    ...packed,
    format: planes,
    rowBytes: sizes.rowBytes,
    codes,
    scales: new Uint8Array(scales.buffer),
    superScales: null,
    offsets: planes.offset === undefined ? null : new Uint8Array(mins.buffer),
  };
}

/** The decoded matrix of a packed tensor as a value, and what its codes are stored in. */
interface Decoded {
  /** float32 [rows, k]. */
  readonly value: string;
  readonly codes: string;
  readonly bytes: number;
  readonly views: Map<string, string>;
}

export function storedTarget(): Target {
  const once = perWeight<Decoded>();
  const sinks = new Map<Scope, Sink>();
  const records: StoredWeight[] = [];
  let tables: Tables | undefined;
  const sinkOf = (scope: Scope): Sink => {
    let sink = sinks.get(scope);
    if (sink === undefined) sinks.set(scope, (sink = { nodes: [], tensors: [] }));
    return sink;
  };

  function decode(layer: Layer, weight: PackedTensor, context: TargetContext): Decoded {
    return once(weight, () => {
      tables ??= lookUpTables(context);
      const sink = sinkOf(layer.weight!.scope);
      const first = sink.tensors.length;
      const base = layer.weight!.name;
      const planes = asPlanes(weight);
      const { value: decoded, record } = decodeNodes(context, sink, tables, base, planes);
      const value = weightFromBasis(constantNodes(context, sink, base), context, planes, base, decoded);
      records.push(record);
      return { value, codes: record.codes[0], bytes: madeBytes(sink.tensors.slice(first)), views: new Map() };
    });
  }

  return {
    name: "stored",
    opTypes: ["MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", "LSTM", "GRU", "RNN", "MoE"],
    defaultOpTypes: ["MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "MoE"],
    reason(layer, format, context) {
      const matrix = layerMatrix(layer);
      if (typeof matrix === "string") return matrix;
      if (context.opset() < 7) return `the nodes that read the codes need opset 7, the model has ${context.opset()}`;
      if (format.kind === "opaque" && matrix.k % format.blockSize !== 0)
        return `rows of ${matrix.k} values are no whole blocks of ${format.blockSize}`;
      if (format.kind === "block" && format.tail === "error" && matrix.k % (format.scales[0].span as number) !== 0)
        return `rows of ${matrix.k} values are no whole blocks of ${String(format.scales[0].span)}`;
      return formatReason(format, context.opset());
    },
    write(layer, weight, context) {
      const decoded = decode(layer, weight, context);
      const matrix = layerMatrix(layer);
      if (typeof matrix === "string") throw new Error(matrix);
      const type = layerType(layer);
      // the matrix back in the order and shape in which the node reads its weight
      const { dims, order } = matrix;
      const key = [...layer.shape, "/", ...order, type].join();
      let view = decoded.views.get(key);
      if (view === undefined) {
        const build = constantNodes(context, sinkOf(layer.weight!.scope), layer.weight!.name);
        view = decoded.value;
        const moved = order.some((axis, i) => axis !== i);
        const inOrder = order.map((axis) => dims[axis]);
        if (moved && inOrder.length !== 2) view = build.reshape(view, inOrder, "axes");
        if (moved) view = build.transpose(view, inverse(order), "transposed");
        if (layer.shape.length !== 2 || (moved && dims.length !== 2)) view = build.reshape(view, layer.shape, "dequantized");
        if (type !== T.FLOAT) view = build.cast(view, type, "typed");
        decoded.views.set(key, view);
      }
      setWeight(layer, view);
      return { nodes: null, codes: decoded.codes, bytes: decoded.bytes };
    },
    finish(context) {
      if (records.length > 0) recordStored(context.model, records);
      records.length = 0;
      for (const [scope, { nodes, tensors }] of sinks) {
        context.before(scope, nodes);
        for (const tensor of tensors) scope.graph.initializer.push(tensor);
      }
      sinks.clear();
    },
  };
}

const inverse = (order: readonly number[]): number[] => order.map((_, i) => order.indexOf(i));

/** Entries of one grid where another one has them: for each entry of `to` along one side, its index in `from`. */
const indices = (count: number, to: number, from: number): number[] => Array.from({ length: count }, (_, i) => Math.floor((i * to) / from));

function decodeNodes(
  context: TargetContext,
  sink: Sink,
  tables: Tables,
  base: string,
  w: PackedTensor,
): { readonly value: string; readonly record: StoredWeight } {
  const { format, rows, k } = w;
  const build = constantNodes(context, sink, base);
  const element = elementOf(w)!;
  const block = format.kind === "block" ? format : null;
  const stored = storeCodes(context, sink, tables, { base: `${base}_codes`, format: element, codes: unpack(w), dims: [rows, k] });
  const names = (tensors: readonly TensorProto[]): string[] => tensors.map((tensor) => tensor.name);
  const record = { format: format.definition, rows, k, shape: [...w.shape], recipe: w.recipe, codes: names(stored.tensors) };
  if (block === null) return { value: stored.value, record: { ...record, value: stored.value, scales: [], superScales: [], offsets: [] } };

  const level = (what: string, at: ScaleLevel, bytes: Uint8Array): StoredCodes & { readonly grid: SpanGrid } => {
    const grid = spanGrid(at.span, rows, k);
    const codes: Codes = levelCodes(at, bytes, rows, k);
    return {
      ...storeCodes(context, sink, tables, { base: `${base}_${what}`, format: at.format, codes, dims: [grid.gridRows, grid.gridK] }),
      grid,
    };
  };
  /** A level's values on a finer grid; a side of one entry broadcasts by itself. */
  const spread = (value: string, from: SpanGrid, to: SpanGrid, what: string): string => {
    let out = value;
    if (from.gridRows !== 1 && from.gridRows !== to.gridRows)
      out = build.gather(out, sharedInts(context, "rows", indices(to.gridRows, to.rows, from.rows)), 0, `${what}_by_row`);
    if (from.gridK !== 1 && from.gridK !== to.gridK)
      out = build.gather(out, sharedInts(context, "cells", indices(to.gridK, to.k, from.k)), 1, `${what}_by_cell`);
    return out;
  };
  const inner = level("scales", block.scales[0], w.scales!);
  const outer = block.scales.length > 1 ? level("super_scales", block.scales[1], w.superScales!) : null;
  const offset = block.offset === undefined ? null : level("offsets", block.offset.levels[0], w.offsets!);
  let scale = inner.value;
  if (outer !== null) scale = build.add("Mul", [scale, spread(outer.value, outer.grid, inner.grid, "super")], "scale");
  if (offset !== null && block.offset!.role === "mean")
    scale = build.add("Add", [scale, spread(offset.value, offset.grid, inner.grid, "mean")], "scale_around_mean");

  // [rows, k] as [rows, cells, span], so that a scale per cell broadcasts; where the last cell is short, scales are
  // spread to every value.
  const { grid } = inner;
  const cells = grid.rows === 1 && grid.gridK > 1 && k % grid.k === 0;
  const whole: SpanGrid = { rows: 1, k: 1, gridRows: rows, gridK: k };
  const fit = (value: string, from: SpanGrid, what: string): string => {
    if (!cells) return spread(value, from, whole, what);
    const even = spread(value, from, grid, what);
    const rowsOf = from.gridRows === 1 ? 1 : rows;
    return build.reshape(even, [rowsOf, from.gridK === 1 ? 1 : grid.gridK, 1], `${what}_cells`);
  };
  let value = cells ? build.reshape(stored.value, [rows, grid.gridK, grid.k], "cells") : stored.value;
  const role = block.offset?.role;
  if (offset !== null && role === "zeroPoint") value = build.add("Sub", [value, fit(offset.value, offset.grid, "zero")], "centred");
  value = build.add("Mul", [value, fit(scale, grid, "scale")], "scaled");
  if (offset !== null && role === "min") value = build.add("Add", [value, fit(offset.value, offset.grid, "min")], "shifted");
  if (cells) value = build.reshape(value, [rows, k], "matrix");
  return {
    value,
    record: {
      ...record,
      value,
      scales: names(inner.tensors),
      superScales: outer === null ? [] : names(outer.tensors),
      offsets: offset === null ? [] : names(offset.tensors),
    },
  };
}
