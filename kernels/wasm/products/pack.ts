// Packs a weight matrix for the kernels: 16-row blocks of (group of k) records, see gemm.ts and float.ts. Runs once per matrix.
import { groupSpan } from "../../activations.ts";
import type { WeightSource } from "../../weight.ts";
import { fieldLayout, type FieldLayout } from "./fields.ts";
import { floatRecord } from "../float/float.ts";
import type { FloatPlan } from "../float/floatplan.ts";
import { paddedGroup, weightRecord } from "../dot/gemmspec.ts";
import type { DotPlan } from "../../plan.ts";

export interface PackedShape {
  /** Rows of W per block. */
  readonly blocks: number;
  readonly groups: number;
  /** Elements of K per group, and the same with padding. */
  readonly span: number;
  readonly group: number;
  readonly bytes: number;
}

export function packedShape(source: WeightSource, plan: DotPlan): PackedShape {
  const span = groupSpan(source.span, source.k);
  const group = paddedGroup(plan.bits, span);
  const groups = Math.ceil(source.k / span);
  const blocks = Math.ceil(source.rows / 16);
  const record = weightRecord({ bits: plan.bits, group, ...offsetParts(source, plan) });
  return { blocks, groups, span, group, bytes: blocks * groups * record.bytes };
}

/** Which offset arrays a record carries. */
export function offsetParts(source: WeightSource, plan: DotPlan): { readonly zeroPoint: boolean; readonly add: boolean } {
  const zeroPoint = source.role === "zeroPoint" && source.integerZeros && plan.exact && plan.bias === 0;
  return { zeroPoint, add: (source.role !== "none" && !zeroPoint) || plan.bias !== 0 };
}

/**
 * Places the fields of a row in the vectors of records. A quad of a row is one 32-bit word both among its field bytes and in a vector, so that a piece of four fields moves at
 * once.
 */
class FieldWriter {
  readonly #source: WeightSource;
  readonly #shape: Pick<PackedShape, "span" | "group" | "groups">;
  readonly #remap: Uint8Array;
  /** Fields that are codes with some bits flipped, and groups without padding, are moved as codes; the flip then is part of the move. */
  readonly #asCodes: boolean;
  readonly #flip: number;
  readonly #codes: Uint8Array;
  /** What is moved of a row: groups of field bytes (or codes), zeros beyond the end of the row. */
  readonly #fields: Uint8Array;
  readonly #quads: Int32Array;
  readonly #bytes: Uint8Array;
  readonly #words: Int32Array;
  readonly #layout: FieldLayout;
  readonly #pieces: readonly {
    readonly quad: number;
    readonly to: number;
    readonly mask: number;
    readonly from: number;
    readonly vector: number;
  }[];
  readonly #byK: boolean;

  /** The bytes must be zero before. `byK`: bytes of a vector ordered by k, then row, instead of row, then k. */
  constructor(
    bytes: Uint8Array,
    source: WeightSource,
    shape: Pick<PackedShape, "span" | "group" | "groups">,
    remap: Uint8Array,
    bits: number,
    byK: boolean,
  ) {
    this.#source = source;
    this.#shape = shape;
    this.#remap = remap;
    const flip = remap[0];
    this.#asCodes = shape.span === shape.group && remap.every((field, code) => field === (code ^ flip));
    this.#flip = this.#asCodes ? Math.imul(flip, 0x01010101) : 0;
    this.#codes = new Uint8Array(source.k);
    this.#fields = new Uint8Array(shape.groups * shape.group);
    this.#quads = new Int32Array(this.#fields.buffer);
    this.#bytes = bytes;
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    this.#layout = fieldLayout(bits);
    this.#byK = byK;
    this.#pieces = this.#layout.pieces.flatMap((pieces, quad) =>
      pieces.map((piece) => ({ quad, to: piece.to, mask: ((1 << piece.bits) - 1) * 0x01010101, from: piece.from, vector: piece.vector })),
    );
  }

  /** Reads the codes of row r. */
  read(r: number): void {
    if (this.#asCodes) {
      this.#source.codes(r, this.#fields);
      return;
    }
    const codes = this.#codes;
    const fields = this.#fields;
    const remap = this.#remap;
    this.#source.codes(r, codes);
    const { span, group } = this.#shape;
    for (let first = 0, at = 0; first < codes.length; first += span, at += group) {
      const last = Math.min(codes.length, first + span);
      for (let i = first; i < last; i++) fields[at + i - first] = remap[codes[i]];
    }
  }

  /** Writes group g of the row that was read to the record at `record`, as row lane 0..15. */
  put(record: number, row: number, g: number): void {
    const quads = this.#quads;
    const flip = this.#flip;
    const first = (g * this.#shape.group) / 4;
    const end = first + this.#shape.group / 4;
    const step = this.#layout.quads;
    const stride = 64 * this.#layout.vectors;
    for (let p = 0; p < this.#pieces.length; p++) {
      const { quad, to, mask, from, vector } = this.#pieces[p];
      if (this.#byK) {
        const bytes = this.#bytes;
        let at = record + 64 * vector + 16 * (row >> 2) + (row & 3);
        for (let q = first + quad; q < end; q += step, at += stride) {
          const piece = (((quads[q] ^ flip) >>> to) & mask) << from;
          bytes[at] |= piece;
          bytes[at + 4] |= piece >>> 8;
          bytes[at + 8] |= piece >>> 16;
          bytes[at + 12] |= piece >>> 24;
        }
      } else {
        const words = this.#words;
        let at = record / 4 + 16 * vector + row;
        for (let q = first + quad; q < end; q += step, at += stride / 4) words[at] |= (((quads[q] ^ flip) >>> to) & mask) << from;
      }
    }
  }
}

/** Writes what follows the codes of a record: scale, zero point and addend of one row, those of them that the record has. */
export function termWriter(
  role: WeightSource["role"],
  plan: { readonly unit: number; readonly shift: number; readonly bias: number },
  record: { readonly codes: number; readonly zeroPoint: number; readonly add: number },
  parts: { readonly scale?: boolean; readonly zeroPoint: boolean; readonly add: boolean },
  floats: Float32Array,
  words: Int16Array,
): (base: number, row: number, scale: number, offset: number) => void {
  const { unit, shift, bias } = plan;
  return (base, row, scale, offset) => {
    if (parts.scale !== false) floats[(base + record.codes) / 4 + row] = scale * unit;
    if (parts.zeroPoint) words[(base + record.zeroPoint) / 2 + row] = Math.round(offset / unit) + shift;
    if (parts.add) {
      const own = role === "add" ? offset : role === "zeroPoint" ? -offset * scale : 0;
      floats[(base + record.add) / 4 + row] = own + bias * scale;
    }
  };
}

/** Writes the packed matrix of an integer kernel at `address` of `buffer`, where zeros are. */
export function packWeight(source: WeightSource, plan: DotPlan, shape: PackedShape, buffer: ArrayBufferLike, address: number): void {
  const { rows, k } = source;
  const { span, group, groups } = shape;
  const parts = offsetParts(source, plan);
  const record = weightRecord({ bits: plan.bits, group, ...parts });
  const bytes = new Uint8Array(buffer, address, shape.bytes);
  const floats = new Float32Array(buffer, address, shape.bytes / 4);
  const words = new Int16Array(buffer, address, shape.bytes / 2);
  const blocks = Math.ceil(k / source.span);
  const scales = new Float64Array(blocks);
  const offsets = new Float64Array(blocks);
  const writer = new FieldWriter(bytes, source, shape, plan.remap, plan.bits, false);
  const terms = termWriter(source.role, plan, record, parts, floats, words);
  for (let r = 0; r < rows; r++) {
    writer.read(r);
    source.scales(r, scales);
    if (source.role !== "none") source.offsets(r, offsets);
    const row = r & 15;
    for (let g = 0; g < groups; g++) {
      const base = ((r >> 4) * groups + g) * record.bytes;
      writer.put(base, row, g);
      const block = Math.floor((g * span) / source.span);
      terms(base, row, scales[block], offsets[block]);
    }
  }
}

/** Writes the packed matrix of a float kernel at `address` of `buffer`, where zeros are. */
export function packFloat(source: WeightSource, plan: FloatPlan, buffer: ArrayBufferLike, address: number): void {
  const { rows, k } = source;
  const { span, groups, bytes: total, layout } = plan;
  const record = floatRecord(layout);
  const bytes = new Uint8Array(buffer, address, total);
  const floats = new Float32Array(buffer, address, total / 4);
  const words = new Int16Array(buffer, address, total / 2);
  const decoded = layout.bits === 32;
  const codes = source.bits <= 16 ? new Uint16Array(k) : new Uint32Array(k);
  const values = new Float64Array(decoded ? k : 0);
  const blocks = Math.ceil(k / source.span);
  const scales = new Float64Array(blocks).fill(1);
  const offsets = new Float64Array(blocks);
  const terms = termWriter(source.role, plan, record, layout, floats, words);
  const writer =
    layout.bits > 8
      ? null
      : new FieldWriter(
          bytes,
          source,
          { span, group: layout.group, groups },
          plan.remap as Uint8Array,
          layout.bits,
          plan.decode.kind === "table4",
        );
  for (let r = 0; r < rows; r++) {
    if (decoded) source.decode(r, values);
    else {
      if (writer !== null) writer.read(r);
      else source.codes(r, codes);
      source.scales(r, scales);
      if (source.role !== "none") source.offsets(r, offsets);
    }
    const row = r & 15;
    for (let g = 0; g < groups; g++) {
      const base = ((r >> 4) * groups + g) * record.bytes;
      const first = g * span;
      const last = Math.min(k, first + span);
      if (decoded) {
        for (let i = first; i < last; i++) floats[base / 4 + 16 * (i - first) + row] = values[i];
        continue;
      }
      if (writer !== null) writer.put(base, row, g);
      else
        for (let i = first; i < last; i++) {
          const within = i - first;
          words[base / 2 + 32 * (within >> 1) + 2 * row + (within & 1)] = plan.remap === null ? codes[i] : plan.remap[codes[i]];
        }
      const block = Math.floor(first / source.span);
      terms(base, row, scales[block], offsets[block]);
    }
  }
}
