// Quantized layers as GPTQ, AWQ, compressed-tensors and bitsandbytes store them, one function each: tensors of a module
// in, packed tensor out. Specs: AutoGPTQ qlinear and GPTQModel (checkpoint_format); casper-hansen/AutoAWQ
// packing_utils; vllm-project/compressed-tensors compressors; bitsandbytes functional.py (QuantState.as_dict),
// Linear8bitLt.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { PackedTensor } from "../../../formats/core/types.ts";
import { formatOfDtype, SAFE_DTYPES } from "../safetensors/dtypes.ts";
import type { SafeTensor } from "../safetensors/read.ts";
import { groupFormat, packParts, scalar, transposed } from "./pack.ts";
import { mxfp4 } from "../../../formats/mxfp4.ts";
import { nvfp4 } from "../../../formats/nvfp4.ts";
import type { NumberFormat } from "../../../formats/core/types.ts";
import { defineBlock } from "../../../formats/define/block.ts";

/** The tensors of one module by the last part of their names. */
export type Module = ReadonlyMap<string, SafeTensor>;

/** One layer of a checkpoint: W [out, in]. */
export interface ImportedLayer {
  readonly packed: PackedTensor;
  /** GPTQ with activation order: column j of `packed` is column `columns[j]` of the weight. */
  readonly columns?: Int32Array;
}

const bad = (name: string, expected: string, got: unknown): LowbitError =>
  new LowbitError("E_CONTAINER", `${name}: expected ${expected}, got ${String(got).slice(0, 80)}. Is config.json that of these weights?`);

function need(module: Module, name: string, part: string): SafeTensor {
  const t = module.get(part);
  if (t === undefined) throw bad(name, part, [...module.keys()].join(", "));
  return t;
}

function scaleFormat(t: SafeTensor): NumberFormat {
  const f = formatOfDtype(SAFE_DTYPES.get(t.dtype)!);
  if (f === undefined || !["F16", "BF16", "F32", "F8_E4M3", "F8_E8M0", "U8"].includes(t.dtype))
    throw bad(t.name, "scales in F16, BF16 or F32", t.dtype);
  return f;
}

const words = async (t: SafeTensor): Promise<Int32Array> => {
  const data = await t.elements();
  if (!(data instanceof Int32Array)) throw bad(t.name, "I32", t.dtype);
  return data;
};
const matrix = (t: SafeTensor): readonly [number, number] => {
  if (t.shape.length !== 2) throw bad(t.name, "a matrix", `[${t.shape.join(", ")}]`);
  return [t.shape[0], t.shape[1]];
};

/** Fields of `bits` bits along a run of words, the lowest first, across words where bits is 3. */
function field(data: Int32Array, at: number, stride: number, i: number, bits: number): number {
  const bit = i * bits;
  const low = data[at + (bit >> 5) * stride] >>> (bit & 31);
  const over = (bit & 31) + bits - 32;
  return (over > 0 ? low | (data[at + ((bit >> 5) + 1) * stride] << (bits - over)) : low) & (2 ** bits - 1);
}

/** GPTQ: qweight packed along K, zero points along N; `v1` stores them less one. */
export async function gptqLayer(name: string, module: Module, bits: number, v1: boolean): Promise<ImportedLayer> {
  const [qweight, qzeros, scales] = ["qweight", "qzeros", "scales"].map((part) => need(module, name, part));
  const [packedRows, n] = matrix(qweight);
  const [groups, scaleColumns] = matrix(scales);
  const k = (packedRows * 32) / bits;
  const [zeroRows, zeroColumns] = matrix(qzeros);
  if (scaleColumns !== n || zeroRows !== groups || zeroColumns * 32 !== n * bits || k % groups !== 0)
    throw bad(
      name,
      `${bits}-bit qweight, qzeros and scales that fit each other`,
      `qweight [${qweight.shape}], qzeros [${qzeros.shape}], scales [${scales.shape}]`,
    );
  const [data, zeroWords, order] = await Promise.all([
    words(qweight),
    words(qzeros),
    module.has("g_idx") ? words(module.get("g_idx")!) : undefined,
  ]);
  const span = k / groups;
  const columns = order === undefined ? undefined : groupOrder(name, order, k, groups, span);
  const codes = new Uint8Array(n * k);
  for (let j = 0; j < k; j++) {
    const from = columns?.[j] ?? j;
    for (let r = 0; r < n; r++) codes[r * k + j] = field(data, r, n, from, bits);
  }
  const zeros = new Uint8Array(n * groups);
  for (let g = 0; g < groups; g++)
    for (let r = 0; r < n; r++) zeros[r * groups + g] = field(zeroWords, g * zeroColumns, 1, r, bits) + (v1 ? 1 : 0);
  const element = scalar(`uint${bits}`);
  // stored less one, a zero point of 2^bits - 1 means 2^bits, which the element's own width cannot say
  const zeroFormat = zeros.some((z) => z >= 2 ** bits) ? scalar("uint8") : element;
  if (bits === 8 && v1 && zeros.some((z) => z === 0)) throw bad(name, "zero points up to 255", 256);
  const packed = packParts({
    ...{ method: "gptq-checkpoint", rows: n, k, codes, zeroPoints: zeros },
    format: groupFormat(element, scaleFormat(scales), span, zeroFormat),
    scales: transposed(await scales.bytes(), groups, n, scaleFormat(scales).bits / 8),
  });
  return { packed, ...(columns === undefined ? {} : { columns }) };
}

/** Columns sorted by group; undefined where they are in order already. */
function groupOrder(name: string, order: Int32Array, k: number, groups: number, span: number): Int32Array | undefined {
  if (order.length !== k || order.some((g) => g < 0 || g >= groups))
    throw bad(`${name}.g_idx`, `${k} groups below ${groups}`, order.length);
  if (order.every((g, j) => g === Math.floor(j / span))) return undefined;
  const columns = Int32Array.from(order.keys()).sort((a, b) => order[a] - order[b] || a - b);
  if (columns.some((c, j) => order[c] !== Math.floor(j / span)))
    throw bad(`${name}.g_idx`, `groups of ${span} columns`, "groups of other sizes");
  return columns;
}

/** Column of a word of eight that nibble i holds. */
const AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7];

/** AWQ: qweight [K, N / 8] and qzeros packed along N in its own order; 4 bits. */
export async function awqLayer(name: string, module: Module, bits: number): Promise<ImportedLayer> {
  if (bits !== 4)
    throw new LowbitError("E_UNSUPPORTED", `${name}: expected AWQ of 4 bits, got ${bits}. Other widths have no published layout.`);
  const [qweight, qzeros, scales] = ["qweight", "qzeros", "scales"].map((part) => need(module, name, part));
  const [k, wide] = matrix(qweight);
  const [groups, n] = matrix(scales);
  if (wide * 8 !== n || qzeros.shape[0] !== groups || qzeros.shape[1] !== wide || k % groups !== 0)
    throw bad(
      name,
      "qweight, qzeros and scales that fit each other",
      `qweight [${qweight.shape}], qzeros [${qzeros.shape}], scales [${scales.shape}]`,
    );
  const [data, zeroWords] = await Promise.all([words(qweight), words(qzeros)]);
  const codes = new Uint8Array(n * k);
  const zeros = new Uint8Array(n * groups);
  for (let w = 0; w < wide; w++)
    for (let i = 0; i < 8; i++) {
      const r = 8 * w + AWQ_ORDER[i];
      for (let j = 0; j < k; j++) codes[r * k + j] = (data[j * wide + w] >>> (4 * i)) & 15;
      for (let g = 0; g < groups; g++) zeros[r * groups + g] = (zeroWords[g * wide + w] >>> (4 * i)) & 15;
    }
  const element = scalar("uint4");
  return {
    packed: packParts({
      ...{ method: "awq-checkpoint", rows: n, k, codes, zeroPoints: zeros },
      format: groupFormat(element, scaleFormat(scales), k / groups, element),
      scales: transposed(await scales.bytes(), groups, n, scaleFormat(scales).bits / 8),
    }),
  };
}

/** What of a compressed-tensors group's `weights` is read. */
export interface CompressedWeights {
  readonly num_bits: number;
  readonly type: string;
  readonly symmetric?: boolean;
}

/** compressed-tensors: by the tensors that a module has. */
export async function compressedLayer(name: string, module: Module, weights: CompressedWeights): Promise<ImportedLayer> {
  const scale = need(module, name, "weight_scale");
  if (module.has("weight_packed")) {
    if (module.has("weight_global_scale")) return nvfp4Layer(name, module, scale);
    if (weights.type === "float") return mxfp4Layer(name, module, scale);
    return packedIntegers(name, module, scale, weights);
  }
  const weight = need(module, name, "weight");
  const [n, k] = matrix(weight);
  const element = formatOfDtype(SAFE_DTYPES.get(weight.dtype)!);
  if (element === undefined || element.bits !== 8) throw bad(name, "weights of 8 bits (F8_E4M3, I8)", weight.dtype);
  return {
    packed: packParts({
      ...{ method: "compressed-tensors", rows: n, k, codes: new Uint8Array(await weight.bytes()) },
      format: groupFormat(element, scaleFormat(scale), spanOf(name, scale, n, k)),
      scales: await scale.bytes(),
    }),
  };
}

/** A scale per tensor, row, group, or tile. */
function spanOf(name: string, scale: SafeTensor, n: number, k: number): "tensor" | "row" | number | readonly [number, number] {
  const count = scale.shape.reduce((a, b) => a * b, 1);
  if (count === 1) return "tensor";
  const [rows, groups] = scale.shape.length === 1 ? [scale.shape[0], 1] : matrix(scale);
  if (rows === n) return groups === 1 ? "row" : Math.ceil(k / groups);
  if (n % rows !== 0 || k % groups !== 0) throw bad(name, "a scale for the tensor, each row, group or tile", `[${scale.shape.join(", ")}]`);
  return [n / rows, k / groups];
}

async function packedIntegers(name: string, module: Module, scale: SafeTensor, weights: CompressedWeights): Promise<ImportedLayer> {
  const bits = weights.num_bits;
  const weight = need(module, name, "weight_packed");
  const [n, wide] = matrix(weight);
  const shape = Array.from((await need(module, name, "weight_shape").elements()) as ArrayLike<number | bigint>, Number);
  const perWord = Math.floor(32 / bits);
  const k = shape[1];
  if (shape[0] !== n || !(k > 0) || Math.ceil(k / perWord) !== wide || module.has("weight_g_idx") || bits > 8)
    throw bad(
      name,
      `${bits}-bit weights [${n}, ${wide} words] of the shape in weight_shape, without weight_g_idx`,
      `[${shape.join(", ")}]`,
    );
  const data = await words(weight);
  // stored with 2^(bits - 1) added; two's complement here
  const flip = 2 ** (bits - 1);
  const codes = new Uint8Array(n * k);
  for (let r = 0; r < n; r++)
    for (let j = 0; j < k; j++)
      codes[r * k + j] = ((data[r * wide + Math.floor(j / perWord)] >>> ((j % perWord) * bits)) & (2 ** bits - 1)) ^ flip;
  const element = scalar(`int${bits}`);
  const span = spanOf(name, scale, n, k);
  let zeroPoints: Uint8Array | undefined;
  const zero = module.get("weight_zero_point");
  if (zero !== undefined) {
    // packed along rows
    const [zeroRows, groups] = matrix(zero);
    const zeroWords = await words(zero);
    if (zeroRows !== Math.ceil(n / perWord)) throw bad(`${name}.weight_zero_point`, `${Math.ceil(n / perWord)} rows`, zeroRows);
    zeroPoints = new Uint8Array(n * groups);
    for (let r = 0; r < n; r++)
      for (let g = 0; g < groups; g++)
        zeroPoints[r * groups + g] =
          ((zeroWords[Math.floor(r / perWord) * groups + g] >>> ((r % perWord) * bits)) & (2 ** bits - 1)) ^ flip;
  }
  return {
    packed: packParts({
      ...{ method: "compressed-tensors", rows: n, k, codes, ...(zeroPoints === undefined ? {} : { zeroPoints }) },
      format: groupFormat(element, scaleFormat(scale), span, zeroPoints === undefined ? undefined : element),
      scales: await scale.bytes(),
    }),
  };
}

/** Two codes to a byte, the low nibble first: the same as rows of packed codes. */
async function nibbles(t: SafeTensor): Promise<{ n: number; k: number; codes: Uint8Array }> {
  const [n, half] = matrix(t);
  const bytes = await t.bytes();
  return { n, k: 2 * half, codes: Uint8Array.from({ length: 2 * bytes.length }, (_, i) => (bytes[i >> 1] >> ((i & 1) * 4)) & 15) };
}

async function nvfp4Layer(name: string, module: Module, scale: SafeTensor): Promise<ImportedLayer> {
  const { n, k, codes } = await nibbles(need(module, name, "weight_packed"));
  const [global] = await need(module, name, "weight_global_scale").values();
  if (!(global > 0) || scale.dtype !== "F8_E4M3")
    throw bad(name, "a global scale above zero and scales in F8_E4M3", `${global}, ${scale.dtype}`);
  // the file's global scale divides, ours multiplies
  const superScales = new Uint8Array(Float32Array.of(1 / global).buffer);
  return {
    packed: packParts({
      method: "compressed-tensors",
      rows: n,
      k,
      codes,
      format: nvfp4,
      scales: await scale.bytes(),
      superScales,
    }),
  };
}

async function mxfp4Layer(name: string, module: Module, scale: SafeTensor): Promise<ImportedLayer> {
  const { n, k, codes } = await nibbles(need(module, name, "weight_packed"));
  return {
    packed: packParts({ method: "compressed-tensors", rows: n, k, codes, format: mxfp4, scales: await scale.bytes() }),
  };
}

/** What of a bitsandbytes quant_state is read. */
interface QuantState {
  readonly quant_type: string;
  readonly blocksize: number;
  readonly shape: readonly number[];
  readonly nested_blocksize?: number;
  readonly nested_offset?: number;
}

function quantState(name: string, stateName: string, bytes: Uint8Array): QuantState {
  const text = new TextDecoder().decode(bytes);
  let state: unknown;
  try {
    state = JSON.parse(text);
  } catch {
    state = undefined;
  }
  if (typeof state !== "object" || state === null)
    throw bad(`${name}.${stateName}`, "an object as JSON", JSON.stringify(text.slice(0, 60)));
  return state as QuantState;
}

/**
 * bitsandbytes of 4 bits: a flat tensor of nibbles, the high one first, an absmax for each block, quantized itself
 * where it is nested.
 */
export async function bnb4Layer(name: string, module: Module): Promise<ImportedLayer> {
  const stateName = [...module.keys()].find((part) => part.startsWith("weight.quant_state.bitsandbytes__"));
  if (stateName === undefined) throw bad(name, "weight.quant_state.bitsandbytes__nf4 or __fp4", [...module.keys()].join(", "));
  const state = quantState(name, stateName, await module.get(stateName)!.bytes());
  const element = /^nf4$/.test(state.quant_type) ? scalar("normalfloat4") : state.quant_type === "fp4" ? scalar("fp4_bnb") : undefined;
  const { blocksize, shape } = state;
  if (element === undefined || !Array.isArray(shape) || shape.length !== 2 || !shape.every((d) => Number.isSafeInteger(d) && d > 0))
    throw bad(`${name}.${stateName}`, "quant_type nf4 or fp4 and a matrix", JSON.stringify(state));
  const [n, k] = shape;
  if (!(Number.isSafeInteger(blocksize) && blocksize > 0) || k % blocksize !== 0)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${name}: expected rows of whole blocks, got rows of ${k} in blocks of ${blocksize}, which run across rows. Dequantize it with bitsandbytes first.`,
    );
  const bytes = await need(module, name, "weight").bytes();
  const values = Float64Array.from(element.table!);
  const map = await need(module, name, "weight.quant_map").values();
  if (bytes.length * 2 !== n * k || map.length !== 16 || map.some((v, i) => v !== Math.fround(values[i])))
    throw bad(name, `${(n * k) / 2} bytes of ${state.quant_type} with its published levels`, `${bytes.length} bytes`);
  const absmax = await absmaxOf(name, module, state);
  return {
    packed: packParts({
      ...{ method: "bitsandbytes", rows: n, k },
      codes: Uint8Array.from({ length: n * k }, (_, i) => (bytes[i >> 1] >> (i & 1 ? 0 : 4)) & 15),
      format: defineBlock({ element, scales: [{ format: scalar("float32"), span: blocksize }] }),
      scales: new Uint8Array(absmax.buffer),
    }),
  };
}

/** Absmax of each block, in float32 as bitsandbytes computes it from the nested codes. */
async function absmaxOf(name: string, module: Module, state: QuantState): Promise<Float32Array> {
  const stored = need(module, name, "weight.absmax");
  if (stored.dtype !== "U8") return stored.values();
  const [codes, map, nested] = await Promise.all([
    stored.bytes(),
    need(module, name, "weight.nested_quant_map").values(),
    need(module, name, "weight.nested_absmax").values(),
  ]);
  const size = state.nested_blocksize ?? 256;
  if (map.length !== 256 || nested.length !== Math.ceil(codes.length / size))
    throw bad(name, "a nested map of 256 and an absmax for each run", nested.length);
  const offset = Math.fround(state.nested_offset ?? 0);
  return Float32Array.from(codes, (c, i) => Math.fround(Math.fround(map[c] * nested[Math.floor(i / size)]) + offset));
}

/** LLM.int8: rows of int8 with SCB, their absmax: W = q * SCB / 127. */
export async function bnb8Layer(name: string, module: Module): Promise<ImportedLayer> {
  const [weight, scb] = [need(module, name, "weight"), need(module, name, "SCB")];
  const [n, k] = matrix(weight);
  if (weight.dtype !== "I8") throw bad(name, "I8 weights", weight.dtype);
  const scales = (await scb.values()).map((v) => v / 127);
  return {
    packed: packParts({
      ...{ method: "bitsandbytes", rows: n, k, codes: new Uint8Array(await weight.bytes()) },
      format: groupFormat(scalar("int8"), scalar("float32"), "row"),
      scales: new Uint8Array(scales.buffer),
    }),
  };
}
