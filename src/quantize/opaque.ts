// Columns of opaque formats (ggml blocks) for GPTQ. Their codes are found by probing bytes: a bit belongs to one
// element where flipping it never changes another one's value. With the scales that the encoder chooses for a block as
// it is, each element's values are read off by decoding the block with every code in it. Only codes that the encoder
// itself emits are used. Formats whose elements share bits (base-3 digits, outlier pairs) have no columns and are
// refused.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Codes } from "../../formats/core/pack.ts";
import { packedSizes } from "../../formats/core/packed.ts";
import type { OpaqueFormat, PackedTensor, QuantConfig } from "../../formats/core/types.ts";
import { gaussian, seededRandom } from "./random.ts";

/** Which bits of a block are whose, and the codes that the encoder uses. */
interface CodeLayout {
  /** Bit positions (byte * 8 + bit) of each element's code, the lowest first. */
  readonly bits: readonly (readonly number[])[];
  /** Codes in use by any element. */
  readonly codes: readonly number[];
}

const PROBES = 6;
const SAMPLES = 256;
/** Longest code that is tried out value by value. */
const MAX_BITS = 8;

const layouts = new WeakMap<OpaqueFormat, CodeLayout | null>();

/** The layout of a format; null where elements share bits. */
function layoutOf(format: OpaqueFormat): CodeLayout | null {
  const known = layouts.get(format);
  if (known !== undefined) return known;
  const found = probe(format);
  layouts.set(format, found);
  return found;
}

function probe(format: OpaqueFormat): CodeLayout | null {
  const { blockSize, blockBytes } = format;
  const random = seededRandom(1);
  const normal = gaussian(random);
  const total = 8 * blockBytes;
  const owner = new Int32Array(total).fill(-1);
  const shared = new Uint8Array(total);
  for (let p = 0; p < PROBES; p++) {
    const bytes = format.encodeBytes(Float32Array.from({ length: blockSize }, () => (p % 2 ? 2 * random() - 1 : normal())));
    const base = format.decodeBytes(bytes);
    for (let bit = 0; bit < total; bit++) {
      const flipped = bytes.slice();
      flipped[bit >> 3] ^= 1 << (bit & 7);
      const values = format.decodeBytes(flipped);
      for (let i = 0; i < blockSize; i++) {
        if (Object.is(values[i], base[i])) continue;
        if (owner[bit] >= 0 && owner[bit] !== i) shared[bit] = 1;
        owner[bit] = i;
      }
    }
  }
  const bits = Array.from({ length: blockSize }, (): number[] => []);
  for (let bit = 0; bit < total; bit++) if (owner[bit] >= 0 && !shared[bit]) bits[owner[bit]].push(bit);
  if (bits.some((list) => list.length === 0 || list.length > MAX_BITS)) return null;
  const seen = new Set<number>();
  const sample = format.encodeBytes(
    Float32Array.from({ length: SAMPLES * blockSize }, (_, i) => (i % (2 * blockSize) < blockSize ? 2 * random() - 1 : normal())),
  );
  for (let b = 0; b < SAMPLES; b++) for (let i = 0; i < blockSize; i++) seen.add(readCode(bits[i], sample, b * blockBytes));
  const layout = { bits, codes: [...seen].sort((a, b) => a - b) };
  return independent(format, layout, random) ? layout : null;
}

function readCode(bits: readonly number[], bytes: Uint8Array, at: number): number {
  let code = 0;
  for (let b = 0; b < bits.length; b++) code |= ((bytes[at + (bits[b] >> 3)] >> (bits[b] & 7)) & 1) << b;
  return code;
}

function writeCode(bits: readonly number[], bytes: Uint8Array, at: number, code: number): void {
  for (let b = 0; b < bits.length; b++) {
    const byte = at + (bits[b] >> 3);
    const mask = 1 << (bits[b] & 7);
    bytes[byte] = (code >> b) & 1 ? bytes[byte] | mask : bytes[byte] & ~mask;
  }
}

/** Is the value of every element that of its own code, whatever the others are? */
function independent(format: OpaqueFormat, { bits, codes }: CodeLayout, random: () => number): boolean {
  const { blockSize } = format;
  const block = format.encodeBytes(Float32Array.from({ length: blockSize }, () => 2 * random() - 1));
  const table = codes.map((code) => {
    const bytes = block.slice();
    for (let i = 0; i < blockSize; i++) writeCode(bits[i], bytes, 0, code);
    return format.decodeBytes(bytes);
  });
  for (let trial = 0; trial < 8; trial++) {
    const picked = Array.from({ length: blockSize }, () => Math.floor(random() * codes.length));
    const bytes = block.slice();
    picked.forEach((c, i) => writeCode(bits[i], bytes, 0, codes[c]));
    const values = format.decodeBytes(bytes);
    if (picked.some((c, i) => values[i] !== table[c][i])) return false;
  }
  return true;
}

/** What GPTQ asks of the columns of an opaque format. Memory: 4 bytes for each row, element of a block and code. */
export class OpaqueColumns {
  readonly format: OpaqueFormat;
  readonly rows: number;
  readonly k: number;
  readonly span: number;
  readonly bits = MAX_BITS;
  readonly #layout: CodeLayout;
  readonly #bytes: Uint8Array;
  readonly #rowBytes: number;
  /** Values by code: table[c][row * span + i]. */
  #table: Float32Array[] = [];
  /** Index into `codes` of the encoder's choice. */
  readonly #own: Uint8Array;

  /** @throws LowbitError E_UNSUPPORTED for a format whose elements share bits, E_SHAPE */
  constructor(format: OpaqueFormat, rows: number, k: number) {
    const { rowBytes, codes } = packedSizes(format, [rows, k]); // throws where k does not fit the blocks
    this.format = format;
    this.rows = rows;
    this.k = k;
    this.span = format.blockSize;
    const layout = layoutOf(format);
    if (layout === null)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `gptq: expected a format with bits for each element, got ${format.name}, whose elements share theirs: codes cannot be chosen column by column. Use rtn().`,
      );
    this.#layout = layout;
    this.#rowBytes = rowBytes;
    this.#bytes = new Uint8Array(codes);
    this.#own = new Uint8Array(rows * format.blockSize);
  }

  /** The encoder's bytes of the block of columns from i on, for every row; wt holds columns as rows. */
  fill(wt: Float64Array, i: number): void {
    const { format, rows, span } = this;
    const { blockBytes } = format;
    const x = new Float32Array(rows * span);
    for (let j = 0; j < span; j++) for (let row = 0; row < rows; row++) x[row * span + j] = wt[(i + j) * rows + row];
    const bytes = format.encodeBytes(x);
    const at = (i / span) * blockBytes;
    for (let row = 0; row < rows; row++)
      this.#bytes.set(bytes.subarray(row * blockBytes, (row + 1) * blockBytes), row * this.#rowBytes + at);
    const layout = this.#layout;
    const indexOf = new Int16Array(1 << MAX_BITS).fill(-1);
    layout.codes.forEach((code, c) => (indexOf[code] = c));
    for (let row = 0; row < rows; row++)
      for (let j = 0; j < span; j++) this.#own[row * span + j] = Math.max(0, indexOf[readCode(layout.bits[j], bytes, row * blockBytes)]);
    const clear = new Uint8Array(blockBytes).fill(255);
    for (const list of layout.bits) for (const bit of list) clear[bit >> 3] &= ~(1 << (bit & 7));
    const set = new Uint8Array(blockBytes);
    this.#table = layout.codes.map((code) => {
      for (const list of layout.bits) writeCode(list, set, 0, code);
      for (let b = 0; b < bytes.length; b += blockBytes)
        for (let n = 0; n < blockBytes; n++) bytes[b + n] = (bytes[b + n] & clear[n]) | set[n];
      return format.decodeBytes(bytes);
    });
  }

  /** As BlockGrid.quantizeColumn; codes are indices into those of the layout. */
  quantizeColumn(j: number, x: Float64Array, xAt: number, codes: Codes, values: Float64Array): void {
    const { rows, span } = this;
    const table = this.#table;
    const column = j % span;
    for (let row = 0; row < rows; row++) {
      const at = row * span + column;
      const v = x[xAt + row];
      let best = this.#own[at];
      let value = table[best][at];
      let distance = Math.abs(v - value);
      for (let c = 0; c < table.length; c++) {
        const d = Math.abs(v - table[c][at]);
        if (d < distance) [best, value, distance] = [c, table[c][at], d];
      }
      codes[row] = best;
      values[row] = value;
    }
  }

  pack(codes: Codes, shape: readonly number[], recipe: QuantConfig): PackedTensor {
    const { format, rows, k, span } = this;
    const layout = this.#layout;
    for (let row = 0; row < rows; row++)
      for (let j = 0; j < k; j++) {
        const at = row * this.#rowBytes + Math.floor(j / span) * format.blockBytes;
        writeCode(layout.bits[j % span], this.#bytes, at, layout.codes[codes[row * k + j]]);
      }
    return {
      ...{ format, shape: [...shape], rows, k, rowBytes: this.#rowBytes, codes: this.#bytes },
      ...{ scales: null, superScales: null, offsets: null, recipe },
    };
  }
}
