// What packers of weights share: fields into vectors, and what follows the codes of a record. 16-row blocks of (group
// of k) records; each family packs its own (dot/pack.ts, float/pack.ts, lookup/lutpack.ts).
import { addendOf } from "../../offsets.ts";
import type { WeightSource } from "../../weight.ts";
import { fieldLayout, type FieldLayout } from "./fields.ts";

/** How k is cut: groups of `span` elements, each padded to `group`. */
export interface FieldShape {
  readonly span: number;
  readonly group: number;
  readonly groups: number;
}

/**
 * Places the fields of a row in the vectors of records. A quad of a row is one 32-bit word both among its field bytes
 * and in a vector, so that a piece of four fields moves at once.
 */
export class FieldWriter {
  readonly #source: WeightSource;
  readonly #shape: FieldShape;
  readonly #remap: Uint8Array;
  /**
   * Fields that are codes with some bits flipped, and groups without padding, are moved as codes; the flip then is part
   * of the move.
   */
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
  constructor(bytes: Uint8Array, source: WeightSource, shape: FieldShape, remap: Uint8Array, bits: number, byK: boolean) {
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

/**
 * Writes what follows the codes of a record: scale, zero point and addend of one row, those of them that the record
 * has.
 */
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
      floats[(base + record.add) / 4 + row] = addendOf(role, parts.zeroPoint, scale, offset, bias);
    }
  };
}
