// Quantized layers as torchao stores them in safetensors: a tensor subclass is taken apart into
// `<module>._weight_<part>` and described in the file's metadata, one JSON object for each name in `tensor_names`.
// Spec: pytorch/ao torchao/prototype/safetensors (flatten_tensor_state_dict), torchao/quantization/quantize_/workflows.
// Not here: layouts tiled for one device (Int4TilePackedTo4dTensor, Int4PlainInt32Tensor, opaque ones).
import { LowbitError } from "../../../formats/core/errors.ts";
import type { BlockFormat, NumberFormat, Span } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/block.ts";
import { formatOfDtype, SAFE_DTYPES } from "../safetensors/dtypes.ts";
import type { SafeTensor } from "../safetensors/read.ts";
import type { ImportedLayer, Module } from "./methods.ts";
import { packParts, scalar, transposed } from "./pack.ts";

/** What the metadata say of one weight. */
export interface TorchaoWeight {
  /** Int4Tensor, IntxUnpackedToInt8Tensor, Int8Tensor, Float8Tensor. */
  readonly type: string;
  readonly blockSize: readonly number[];
  /** int1 to int8, of IntxUnpackedToInt8Tensor. */
  readonly target?: string;
}

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);

function parse(what: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new LowbitError("E_CONTAINER", `${what}: expected JSON of torchao, got ${JSON.stringify(text.slice(0, 60))}.`, { cause });
  }
}

/** Quantized weights by module, from a file's metadata. @throws LowbitError E_CONTAINER */
export function torchaoWeights(metadata: ReadonlyMap<string, string>): Map<string, TorchaoWeight> {
  const out = new Map<string, TorchaoWeight>();
  const names = parse("tensor_names", metadata.get("tensor_names") ?? "[]");
  if (!Array.isArray(names)) throw new LowbitError("E_CONTAINER", `tensor_names: expected a list, got ${typeof names}.`);
  for (const name of names) {
    const entry = typeof name === "string" ? parse(name, metadata.get(name) ?? "null") : null;
    if (!isObject(entry) || typeof entry._type !== "string")
      throw new LowbitError("E_CONTAINER", `${String(name)}: expected { _type, _data } in the metadata, got none.`);
    if (!(name as string).endsWith(".weight") || !isObject(entry._data)) continue;
    const { block_size: blockSize, target_dtype: target } = entry._data;
    const dtype = isObject(target) && typeof target._data === "string" ? target._data : undefined;
    out.set((name as string).slice(0, -".weight".length), {
      type: entry._type,
      blockSize: Array.isArray(blockSize) && blockSize.every((d) => Number.isSafeInteger(d) && d > 0) ? (blockSize as number[]) : [],
      ...(dtype === undefined ? {} : { target: dtype }),
    });
  }
  return out;
}

const bad = (name: string, expected: string, got: unknown): LowbitError =>
  new LowbitError("E_CONTAINER", `${name}: expected ${expected}, got ${String(got).slice(0, 80)}. Is the file whole?`);

function need(module: Module, name: string, part: string): SafeTensor {
  const found = module.get(`_weight_${part}`);
  if (found === undefined) throw bad(name, `_weight_${part}`, [...module.keys()].join(", "));
  return found;
}

/** Types that scales and minima have. */
const FLOATS: ReadonlySet<string> = new Set(["F32", "F16", "BF16"]);
/** Types of the codes that a Float8Tensor has. */
const FLOAT8: ReadonlySet<string> = new Set(["F8_E4M3", "F8_E5M2"]);

function floatOf(t: SafeTensor): NumberFormat {
  const found = FLOATS.has(t.dtype) ? formatOfDtype(SAFE_DTYPES.get(t.dtype)!) : undefined;
  if (found === undefined) throw bad(t.name, "F32, F16 or BF16", t.dtype);
  return found;
}

/** The part of a matrix [n, k] that shares a scale. */
function spanOf(name: string, { blockSize }: TorchaoWeight, n: number, k: number): Span {
  const [rows, columns] = blockSize;
  if (blockSize.length !== 2 || n % rows !== 0 || k % columns !== 0)
    throw bad(name, `a block_size that divides [${n}, ${k}]`, `[${blockSize.join(", ")}]`);
  if (rows === n && columns === k) return "tensor";
  return rows === 1 ? (columns === k ? "row" : columns) : [rows, columns];
}

const matrixOf = (t: SafeTensor): readonly [number, number] => {
  if (t.shape.length !== 2) throw bad(t.name, "a matrix", `[${t.shape.join(", ")}]`);
  return [t.shape[0], t.shape[1]];
};
const same = async (t: SafeTensor, count: number): Promise<Uint8Array> => {
  const elements = t.shape.reduce((a, b) => a * b, 1);
  if (elements !== count) throw bad(t.name, `${count} values`, elements);
  return t.bytes();
};

/** W [out, in] of one module. @throws LowbitError E_CONTAINER, E_UNSUPPORTED */
export async function torchaoLayer(name: string, module: Module, weight: TorchaoWeight): Promise<ImportedLayer> {
  if (module.has("_weight_act_pre_scale"))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${name}: expected weights for inputs as they are, got act_pre_scale, which scales the inputs (AWQ, SmoothQuant). Fold it into the layer before.`,
    );
  switch (weight.type) {
    case "Int4Tensor":
      return int4(name, module, weight);
    case "IntxUnpackedToInt8Tensor":
    case "Int8Tensor":
      return intx(name, module, weight);
    case "Float8Tensor":
      return float8(name, module, weight);
    default:
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${name}: expected Int4Tensor, IntxUnpackedToInt8Tensor, Int8Tensor or Float8Tensor, got ${weight.type}, a layout for one device. Save it with the plain layout.`,
      );
  }
}

/**
 * qdata [n, k / 2], signed nibbles, the low one first; scale and zero_point [groups, n], floats: W = q * scale +
 * zero_point.
 */
async function int4(name: string, module: Module, weight: TorchaoWeight): Promise<ImportedLayer> {
  const [qdata, scale, zero] = ["qdata", "scale", "zero_point"].map((part) => need(module, name, part));
  const [n, half] = matrixOf(qdata);
  const k = 2 * half;
  const span = weight.blockSize[1];
  if (weight.blockSize.length !== 2 || weight.blockSize[0] !== 1 || k % span !== 0)
    throw bad(name, `groups that divide ${k}`, `[${weight.blockSize.join(", ")}]`);
  const groups = k / span;
  const bytes = await qdata.bytes();
  const [scaleFormat, zeroFormat] = [floatOf(scale), floatOf(zero)];
  const inRows = async (t: SafeTensor, format: NumberFormat): Promise<Uint8Array> =>
    transposed(await same(t, groups * n), groups, n, format.bits / 8);
  const format = defineBlock({
    element: scalar("int4"),
    scales: [{ format: scaleFormat, span }],
    offset: { role: "min", levels: [{ format: zeroFormat, span }] },
  });
  const offsets = await inRows(zero, zeroFormat);
  const zeroPoints = zeroFormat.bits === 16 ? new Uint16Array(offsets.slice().buffer) : new Uint32Array(offsets.slice().buffer);
  const codes = Uint8Array.from({ length: n * k }, (_, i) => (bytes[i >> 1] >> ((i & 1) * 4)) & 15);
  return { packed: packParts({ method: "torchao", rows: n, k, codes, format, scales: await inRows(scale, scaleFormat), zeroPoints }) };
}

/** qdata int8 [n, k]; scale and zero_point by block: W = (q - zero_point) * scale. */
async function intx(name: string, module: Module, weight: TorchaoWeight): Promise<ImportedLayer> {
  const [qdata, scale] = ["qdata", "scale"].map((part) => need(module, name, part));
  const [n, k] = matrixOf(qdata);
  if (qdata.dtype !== "I8") throw bad(qdata.name, "I8", qdata.dtype);
  const span = spanOf(name, weight, n, k);
  const blocks = (n / weight.blockSize[0]) * (k / weight.blockSize[1]);
  const bits = /^int([1-8])$/.exec(weight.target ?? "int8")?.[1];
  if (bits === undefined) throw bad(name, "a target_dtype from int1 to int8", weight.target);
  const values = new Int8Array((await qdata.bytes()).slice().buffer);
  const mask = 2 ** Number(bits) - 1;
  const element = scalar(`int${bits}`);
  const codes = Uint8Array.from(values, (v) => v & mask);
  if (values.some((v, i) => element.decode(codes[i]) !== v))
    throw bad(
      qdata.name,
      `values of ${element.name}`,
      values.find((v, i) => element.decode(codes[i]) !== v),
    );
  const scaleFormat = floatOf(scale);
  const zero = module.get("_weight_zero_point");
  const zeros = zero === undefined ? undefined : await zero.values();
  if (zeros !== undefined && (zeros.length !== blocks || zeros.some((z) => !Number.isInteger(z) || z < -128 || z > 127)))
    throw bad(`${name}._weight_zero_point`, `${blocks} integers from -128 to 127`, zeros.find((z) => !Number.isInteger(z)) ?? zeros.length);
  const plain = zeros === undefined || zeros.every((z) => z === 0);
  if (!plain && typeof span !== "number" && span !== "row")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${name}: expected zero points by row or group, got blocks of [${weight.blockSize.join(", ")}].`,
    );
  const format: BlockFormat = defineBlock({
    element,
    scales: [{ format: scaleFormat, span }],
    ...(plain
      ? {}
      : {
          offset: { role: "zeroPoint" as const, levels: [{ format: scalar("int8"), span }] },
          name: `${element.name}_${typeof span === "number" ? `b${span}` : String(span)}_${scaleFormat.name}_int8zp`,
        }),
  });
  const zeroPoints = plain ? {} : { zeroPoints: Uint8Array.from(zeros, (z) => z & 255) };
  return { packed: packParts({ method: "torchao", rows: n, k, codes, format, scales: await same(scale, blocks), ...zeroPoints }) };
}

/** qdata float8 [n, k]; scale by block: W = q * scale. */
async function float8(name: string, module: Module, weight: TorchaoWeight): Promise<ImportedLayer> {
  const [qdata, scale] = ["qdata", "scale"].map((part) => need(module, name, part));
  const [n, k] = matrixOf(qdata);
  const element = FLOAT8.has(qdata.dtype) ? formatOfDtype(SAFE_DTYPES.get(qdata.dtype)!) : undefined;
  if (element === undefined) throw bad(qdata.name, "F8_E4M3 or F8_E5M2", qdata.dtype);
  const span = spanOf(name, weight, n, k);
  const blocks = (n / weight.blockSize[0]) * (k / weight.blockSize[1]);
  const format = defineBlock({ element, scales: [{ format: floatOf(scale), span }] });
  return { packed: packParts({ method: "torchao", rows: n, k, codes: await qdata.bytes(), format, scales: await same(scale, blocks) }) };
}
