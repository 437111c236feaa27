// quantize: round-to-nearest onto a format. Per tensor, row, tile or block of any size along k, symmetric or with zero
// points, one or two levels of scales; any strided source without a copy of the whole. Other quantizers (GPTQ, ...)
// come as `WeightQuantizer` objects from lowbit/quantize. This folder is the one place where numbers become codes:
// panels.ts walks over rows, scales.ts and scale-rules.ts choose scales, levels.ts stores them, encode.ts rounds,
// policy.ts says by which rules. nibbles.ts is the common case of ONNX weights in one pass.
import { encodeArray } from "../../../formats/core/bulk.ts";
import { codeArray, packInto } from "../../../formats/core/pack.ts";
import { packedSizes } from "../../../formats/core/packed.ts";
import type { Format, NumberFormat, OpaqueFormat, PackedTensor } from "../../../formats/core/types.ts";
import type { BulkCodec } from "../../backends/types.ts";
import { matrixView, type MatrixView, type Tensor } from "../tensor.ts";
import { quantizeBlocks, type Quantized } from "./blocks.ts";
import { forPanels, PANEL_ROWS, refuseNonFinite } from "./panels.ts";
import { checkOptions, scalarRecipe, type QuantizeOptions } from "./policy.ts";

export type { QuantizeOptions } from "./policy.ts";

/** A quantizer of lowbit/quantize: it makes the packed tensor itself and records how. */
export interface WeightQuantizer {
  readonly algorithm: string;
  quantizeWeight(weight: Tensor, format: Format): PackedTensor;
}

/**
 * Quantizes a tensor to nearest. [k] is one row, [rows, k] a matrix, more dimensions are [shape[0], rest] (a
 * convolution weight by output channel). A scalar format casts without scale.
 * @param format a descriptor, never a name
 * @throws LowbitError E_VALUE for NaN or infinite data; E_SHAPE; E_UNSUPPORTED for options that the format cannot
 * follow; TypeError for options that are none
 * @example quantize(tensor(data, [n, k]), format("int4_b32"))
 */
export function quantize(weight: Tensor, format: Format, options: QuantizeOptions | WeightQuantizer = {}): PackedTensor {
  checkFormat(format);
  checkOptions(options);
  if ("quantizeWeight" in options) return options.quantizeWeight(weight, format);
  return quantizeView(matrixView(weight), weight.shape.slice(), format, options).packed;
}

/** @throws TypeError for what is no format */
export function checkFormat(format: Format): void {
  if (typeof format !== "object" || format === null || typeof format.kind !== "string")
    throw new TypeError(`quantize format: expected a format descriptor, got ${typeof format}. Look it up: format("int4_b32").`);
}

/** Round to nearest, of a view. */
export function quantizeView(view: MatrixView, shape: number[], format: Format, options: QuantizeOptions): Quantized {
  if (format.kind === "opaque") return { packed: quantizeOpaque(view, shape, format, options.backend?.codec) };
  if (format.kind !== "block") return { packed: quantizeScalar(view, shape, format, options) };
  return quantizeBlocks(view, shape, format, options);
}

function quantizeScalar(m: MatrixView, shape: number[], format: NumberFormat, options: QuantizeOptions): PackedTensor {
  const { rows, k, rowBytes, codes: bytes } = packedSizes(format, shape);
  const codes = new Uint8Array(bytes);
  const encode = { rounding: options.rounding, overflow: options.overflow ?? ("saturate" as const), random: options.random };
  const buffer = codeArray(format.bits, Math.min(rows, PANEL_ROWS) * k);
  const codec = options.backend?.codec;
  forPanels(m, (values, row, count) => {
    if (codec !== undefined && values instanceof Float32Array) codec.encode(format, values.subarray(0, count * k), encode, buffer);
    else encodeArray(format, values.subarray(0, count * k), buffer, encode);
    for (let r = 0; r < count; r++) packInto(buffer, r * k, k, format.bits, codes, (row + r) * rowBytes);
  });
  const recipe = scalarRecipe(format, options);
  return { format, shape, rows, k, rowBytes, codes, scales: null, superScales: null, offsets: null, recipe };
}

function quantizeOpaque(m: MatrixView, shape: number[], format: OpaqueFormat, codec: BulkCodec | undefined): PackedTensor {
  const { rows, k, rowBytes, codes: bytes } = packedSizes(format, shape);
  const codes = new Uint8Array(bytes);
  forPanels(m, (values, row, count) => {
    const x = values instanceof Float32Array ? values : Float32Array.from(values);
    if (x.some((v) => !Number.isFinite(v))) refuseNonFinite(values, row, count, k);
    const encoded = x.subarray(0, count * k);
    codes.set(codec === undefined ? format.encodeBytes(encoded) : codec.encodeBlocks(format, encoded), row * rowBytes);
  });
  const recipe = { version: 1, algorithm: "rtn" } as const;
  return { format, shape, rows, k, rowBytes, codes, scales: null, superScales: null, offsets: null, recipe };
}
