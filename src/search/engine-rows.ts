// Packed rows in the memory of a backend, in chunks: codes as the scan kernel reads them, and for each row its factor,
// scale, id and what else the metric and the kernel need. A chunk begins at a multiple of 8 rows, so that a bitmap of
// rows needs no shifting.
import { codeArray, packedBytes, unpackInto } from "../../formats/core/pack.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { kernel } from "../../kernels/wasm/engine/family.ts";
import { PACK_ARGUMENTS, pack, packStep, type PackSpec } from "../../kernels/wasm/search/pack.ts";
import { CHUNK_BYTES, type RankSpec } from "../../kernels/wasm/search/rank.ts";
import { queryBytes, queryRange, type ScanSpec } from "../../kernels/wasm/search/scan.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import type { EngineMemory, Region } from "../backends/wasm/memory.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor } from "../tensor/tensor.ts";
import { lists, readList, runRank, runScan, type Later, type Lists } from "./engine.ts";
import type { Operands } from "./operands.ts";
import { writeQuery } from "./query.ts";
import { coarseScales, isCoarse } from "./coarse.ts";
import type { Candidates, Metric, ScanStore } from "./types.ts";

interface Chunk {
  readonly first: number;
  readonly capacity: number;
  count: number;
  readonly codes: Region;
  /** WORDS words a row, each kind in a run of its own. */
  readonly words: Region;
}

/** Floats that are packed at once, in scratch space. */
const PANEL = 1 << 20;
const LEAST_CHUNK = 1024;
const roundUp = (n: number, step: number): number => step * Math.ceil(n / step);

/** Words of a row, by kind. Not every store has all. */
type Word = "factors" | "ids" | "scales" | "offsets" | "sums";

/** A store that a later stage reads in the engine. */
export interface EngineRows extends ScanStore {
  /** How its bytes are scored with float32 queries by the rank kernel; null where they cannot be. */
  readonly rescore: RankSpec["rescore"];
  /** Merges the lists `from` and scores them with these rows; the best `want` of each. */
  rank(from: Lists, queries: readonly Float64Array[], want: number): Candidates[];
  /** Scans into lists that are not joined yet. */
  scanLists(queries: readonly Float64Array[], want: number, mask: Uint8Array | null, precise: boolean): Lists;
}

export function engineRows(memory: EngineMemory, format: Format, operands: Operands, dims: number, metric: Metric): EngineRows {
  const { element, bits, flip, integers, unit, scaled } = operands;
  const rowBytes = packedBytes(dims, bits);
  const stride = roundUp(rowBytes, 16);
  const vectors = stride / 16;
  const style = memory.features.dot === "none" ? "simd" : memory.features.dot === "i7" ? "madd16" : "dot";
  const base = { style, bits, vectors, stride, table: operands.table, doubled: operands.doubled, most: operands.most } as const;
  const offset = metric === "euclidean";
  const withSums = queryRange({ style, bits }).offset !== 0;
  const kinds: readonly Word[] = [
    "factors",
    "ids",
    ...(scaled ? (["scales"] as const) : []),
    ...(offset ? (["offsets"] as const) : []),
    ...(withSums ? (["sums"] as const) : []),
  ];
  const packSpec = fastPack(format, operands, memory.shared);
  const coarse = scaled && isCoarse(element);
  const chunks: Chunk[] = [];
  let count = 0;
  /** The largest norm of a row, in the units of a score. */
  let norm = 0;

  const word = (chunk: Chunk, kind: Word): number => {
    const i = kinds.indexOf(kind);
    return i < 0 ? 0 : chunk.words.address + 4 * i * chunk.capacity;
  };
  const grow = (rows: number): Chunk => {
    const capacity = roundUp(Math.max(count === 0 ? 0 : LEAST_CHUNK, rows, Math.floor(count / 4)), 8);
    const codes = memory.allocate(capacity * stride + 64);
    let words: Region;
    try {
      words = memory.allocate(4 * kinds.length * capacity);
    } catch (error) {
      codes.free();
      throw error;
    }
    new Uint8Array(memory.buffer, codes.address, codes.bytes).fill(flip);
    new Uint8Array(memory.buffer, words.address, words.bytes).fill(0);
    const chunk = { first: count, capacity, count: 0, codes, words };
    chunks.push(chunk);
    return chunk;
  };
  /**
   * Factors, offsets and ids of rows that were packed just now: from the sum of squares of their integers and their
   * scale.
   * @throws LowbitError E_VALUE
   */
  const finish = (chunk: Chunk, row: number, rows: number, squares: ArrayLike<number>, ids: Uint32Array): void => {
    const factors = memory.floats(word(chunk, "factors") + 4 * row, rows);
    const scales = scaled ? memory.floats(word(chunk, "scales") + 4 * row, rows) : null;
    const offsets = offset ? memory.floats(word(chunk, "offsets") + 4 * row, rows) : null;
    for (let r = 0; r < rows; r++) {
      const scale = unit * (scales === null ? 1 : scales[r]);
      const size = Math.abs(scale) * Math.sqrt(squares[r]);
      if (!(size < 1e18))
        throw new LowbitError(
          "E_VALUE",
          `search vectors: expected norms below 1e18, got ${size} for the vector of id ${ids[r]}. Scale the vectors.`,
        );
      factors[r] = metric === "cosine" ? (squares[r] > 0 ? Math.sign(scale) / Math.sqrt(squares[r]) : 0) : scale;
      if (offsets !== null) offsets[r] = -(size * size) / 2;
      norm = Math.max(norm, metric === "cosine" ? 1 : size);
    }
    new Uint32Array(memory.buffer, word(chunk, "ids") + 4 * row, rows).set(ids.subarray(0, rows));
    chunk.count = row + rows;
    count = chunk.first + chunk.count;
  };
  /** Calls `each` for runs of rows that fit the last chunk and a panel. */
  const inPanels = (rows: number, each: (chunk: Chunk, row: number, from: number, many: number) => void): void => {
    const most = Math.max(1, Math.floor(PANEL / roundUp(dims, 32)));
    for (let from = 0; from < rows;) {
      const last = chunks.at(-1);
      const chunk = last === undefined || last.count === last.capacity ? grow(rows - from) : last;
      const many = Math.min(rows - from, chunk.capacity - chunk.count, most);
      each(chunk, chunk.count, from, many);
      from += many;
    }
  };

  const store: EngineRows = {
    format,
    dims,
    rescore: bits === 8 && operands.shift === 0 && !operands.doubled ? { flip: 0, vectors, stride, offset } : null,
    get count() {
      return count;
    },
    get bytes() {
      return chunks.reduce((sum, { codes, words }) => sum + codes.bytes + words.bytes, 0);
    },
    append(x, rows, ids) {
      inPanels(rows, (chunk, row, from, many) => {
        const values = x.subarray(from * dims, (from + many) * dims);
        const scales = coarse ? coarseScales(values, dims, element) : null;
        const squares = packSpec === null ? null : packPanel(memory, packSpec, values, dims, many, place(chunk, row), scales);
        if (squares !== null) finish(chunk, row, many, squares, ids.subarray(from));
        else appendCodes(chunk, row, quantizePanel(values, many, dims, format, operands, scales), 0, many, ids.subarray(from));
      });
    },
    appendPacked(packed, ids) {
      inPanels(packed.rows, (chunk, row, from, many) => appendCodes(chunk, row, packed, from, many, ids.subarray(from)));
    },
    decode(row, out) {
      const chunk = chunkOf(chunks, row);
      const local = row - chunk.first;
      const bytes = new Uint8Array(memory.buffer, chunk.codes.address + local * stride, rowBytes).slice();
      if (flip !== 0) for (let i = 0; i < rowBytes; i++) bytes[i] ^= flip;
      const codes = codeArray(bits, dims);
      unpackInto(bytes, 0, bits, codes, 0, dims);
      const scale = unit * (scaled ? memory.floats(word(chunk, "scales") + 4 * local, 1)[0] : 1);
      for (let i = 0; i < dims; i++) out[i] = integers[codes[i]] * scale;
    },
    packed() {
      if (count === 0) return [];
      const codes = new Uint8Array(count * rowBytes);
      const scales = scaled ? new Float32Array(count) : null;
      for (const chunk of chunks) {
        const bytes = new Uint8Array(memory.buffer, chunk.codes.address, chunk.count * stride);
        const to = chunk.first * rowBytes;
        if (stride === rowBytes) codes.set(bytes, to);
        else for (let r = 0; r < chunk.count; r++) codes.set(bytes.subarray(r * stride, r * stride + rowBytes), to + r * rowBytes);
        scales?.set(memory.floats(word(chunk, "scales"), chunk.count), chunk.first);
      }
      if (flip !== 0) for (let i = 0; i < codes.length; i++) codes[i] ^= flip;
      clearTail(codes, count, rowBytes, dims, bits);
      const recipe = { version: 1, algorithm: coarse ? "search" : "rtn" } as const;
      const plane = scales === null ? null : new Uint8Array(scales.buffer);
      return [
        { format, shape: [count, dims], rows: count, k: dims, rowBytes, codes, scales: plane, superScales: null, offsets: null, recipe },
      ];
    },
    scanLists(queries, want, mask, precise) {
      return scanInto(queries, want, mask, precise).into;
    },
    scan(queries, want, mask, precise) {
      const { into, lost } = scanInto(queries, want, mask, precise);
      runRank(memory, { rescore: null, shared: memory.shared }, into, null);
      return queries.map((q, i) => ({ ...readList(memory, into, i), error: bound(q, lost[i]) }));
    },
    rank(from, queries, want) {
      const padded = roundUp(dims, 16);
      const query = memory.scratch("search later query", 4 * padded * queries.length);
      const floats = memory.floats(query, padded * queries.length).fill(0);
      queries.forEach((q, i) => floats.set(q, i * padded));
      const table = memory.scratch("search chunks", CHUNK_BYTES * chunks.length);
      const words = new Int32Array(memory.buffer, table, 4 * chunks.length);
      chunks.forEach((chunk, i) => words.set([chunk.first, chunk.codes.address, word(chunk, "factors"), word(chunk, "offsets")], 4 * i));
      const results = lists(memory, "search results", queries.length, want, 1);
      const later: Later = { chunks: table, chunkCount: chunks.length, query, queryBytes: 4 * padded, results };
      runRank(memory, { rescore: store.rescore, shared: memory.shared }, from, later);
      return queries.map((q, i) => ({ ...readList(memory, results, i), error: bound(q, 0) }));
    },
    dispose() {
      for (const { codes, words } of chunks) {
        codes.free();
        words.free();
      }
      chunks.length = 0;
      count = 0;
    },
  };

  /** What a score may be off by: what the query lost, and float32 arithmetic. */
  function bound(q: Float64Array, lost: number): number {
    const size = Math.sqrt(q.reduce((sum, v) => sum + v * v, 0));
    return lost * norm + 4e-6 * (size * norm + (offset ? (norm * norm) / 2 : 0));
  }
  function place(chunk: Chunk, row: number): PackPlace {
    const at = (kind: Word): number => (kinds.includes(kind) ? word(chunk, kind) + 4 * row : 0);
    return { codes: chunk.codes.address + row * stride, stride, scales: at("scales"), sums: at("sums") };
  }
  /** Rows of a packed tensor into a chunk. */
  function appendCodes(chunk: Chunk, row: number, packed: PackedTensor, from: number, many: number, ids: Uint32Array): void {
    const to = new Uint8Array(memory.buffer, chunk.codes.address + row * stride, many * stride);
    const codes = codeArray(bits, dims);
    const squares = new Float64Array(many);
    const sums = withSums ? new Int32Array(memory.buffer, word(chunk, "sums") + 4 * row, many) : null;
    if (scaled) {
      const values = new Float32Array(packed.scales!.slice(4 * from, 4 * (from + many)).buffer);
      memory.floats(word(chunk, "scales") + 4 * row, many).set(values);
    }
    for (let r = 0; r < many; r++) {
      const source = packed.codes.subarray((from + r) * packed.rowBytes, (from + r + 1) * packed.rowBytes);
      unpackInto(packed.codes, (from + r) * packed.rowBytes, bits, codes, 0, dims);
      let square = 0;
      let sum = 0;
      for (let i = 0; i < dims; i++) {
        const value = integers[codes[i]];
        square += value * value;
        if (sums !== null) sum += ((codes[i] ^ flip) << 24) >> 24;
      }
      squares[r] = square;
      const target = to.subarray(r * stride, (r + 1) * stride);
      for (let i = 0; i < rowBytes; i++) target[i] = source[i] ^ flip;
      target.fill(0, rowBytes);
      if (operands.signs && dims % 8 !== 0) target[rowBytes - 1] &= (1 << (dims % 8)) - 1;
      if (sums !== null) sums[r] = sum;
    }
    finish(chunk, row, many, squares, ids);
  }
  function scanInto(
    queries: readonly Float64Array[],
    want: number,
    mask: Uint8Array | null,
    precise: boolean,
  ): { into: Lists; lost: number[] } {
    const hamming = operands.signs && !precise;
    const spec: ScanSpec = {
      ...base,
      kind: hamming ? "hamming" : "dot",
      planes: precise && !hamming ? 2 : 1,
      offset,
      shared: memory.shared,
      ...(hamming ? { style: "simd" as const, table: null, doubled: true } : {}),
    };
    const size = queryBytes(spec);
    const query = memory.scratch("search query", size * queries.length);
    const bytes = new Uint8Array(memory.buffer, query, size * queries.length).fill(0);
    const lost = queries.map((q, i) => writeQuery(bytes.subarray(i * size, (i + 1) * size), q, spec, operands));
    const into = lists(memory, "search lists", queries.length, want, memory.threads);
    let masks = 0;
    if (mask !== null) {
      masks = memory.scratch("search mask", mask.length + 64);
      new Uint8Array(memory.buffer, masks, mask.length).set(mask);
    }
    for (const chunk of chunks)
      runScan(
        memory,
        spec,
        {
          codes: chunk.codes.address,
          factors: word(chunk, "factors"),
          offsets: word(chunk, "offsets"),
          sums: word(chunk, "sums"),
          ids: word(chunk, "ids"),
          mask: mask === null ? 0 : masks + chunk.first / 8,
          rows: chunk.count,
          firstRow: chunk.first,
        },
        query,
        into,
      );
    return { into, lost };
  }
  return store;
}

function chunkOf(chunks: readonly Chunk[], row: number): Chunk {
  let i = chunks.length - 1;
  while (chunks[i].first > row) i--;
  return chunks[i];
}

/** Bits of a row's last byte beyond its codes are zero in a packed tensor. */
function clearTail(codes: Uint8Array, rows: number, rowBytes: number, dims: number, bits: number): void {
  const used = (dims * bits) % 8;
  if (used === 0) return;
  for (let r = 1; r <= rows; r++) codes[r * rowBytes - 1] &= (1 << used) - 1;
}

/** The packing kernel for a format, or null. */
function fastPack(format: Format, operands: Operands, shared: boolean): PackSpec | null {
  const { element, bits, integers, flip } = operands;
  if (bits === 1) {
    // zero is positive, as the encoder of the format has it
    const plain = operands.signs && integers[1] > 0 && element.encode(0) === 1 && element.encode(-1e-30) === 0;
    return plain ? { bits, max: 1, flip: 0, shared } : null;
  }
  if (bits === 2 || format.kind !== "block" || format.scaleRule !== "max" || format.rangeRule !== "narrow") return null;
  const half = 2 ** (bits - 1);
  const twos = element.kind === "int" && integers.every((value, code) => value === (code < half ? code : code - 2 * half));
  return twos ? { bits, max: half - 1, flip, shared } : null;
}

interface PackPlace {
  readonly codes: number;
  readonly stride: number;
  readonly scales: number;
  readonly sums: number;
}

/**
 * Packs rows of `x` in place; returns the sums of squares of their integers, or null where the general way is needed.
 * @throws nothing: values that are not finite are refused there
 */
function packPanel(
  memory: EngineMemory,
  spec: PackSpec,
  x: Float32Array,
  dims: number,
  rows: number,
  to: PackPlace,
  scales: Float32Array | null,
): ArrayLike<number> | null {
  const width = roundUp(dims, packStep(spec));
  const words = memory.scratch("search pack", 4 * (rows * width + 3 * rows + 16));
  const staged = memory.floats(words, rows * width);
  if (width === dims) staged.set(x);
  else {
    staged.fill(spec.bits === 1 ? -1 : 0);
    for (let r = 0; r < rows; r++) staged.set(x.subarray(r * dims, (r + 1) * dims), r * width);
  }
  const squares = words + 4 * rows * width;
  const spare = squares + 4 * rows;
  const refused = squares + 12 * rows;
  new Int32Array(memory.buffer, refused, 1)[0] = 0;
  const rowsPerItem = Math.max(1, Math.floor(16384 / width));
  const values = {
    x: words,
    codes: to.codes,
    stride: to.stride,
    rows,
    rowsPerItem,
    width,
    scales: to.scales === 0 ? spare : to.scales,
    squares,
    sums: to.sums === 0 ? spare + 4 * rows : to.sums,
    refused,
  };
  memory.run(
    kernel(pack, spec),
    Math.ceil(rows / rowsPerItem),
    Int32Array.from(PACK_ARGUMENTS, (name) => values[name]),
  );
  if (new Int32Array(memory.buffer, refused, 1)[0] > 0) return null;
  if (scales !== null) memory.floats(to.scales, rows).set(scales);
  return spec.bits === 1 ? new Float64Array(rows).fill(dims) : new Int32Array(memory.buffer, squares, rows).slice();
}

/**
 * The general way: `quantize`, with scales of the caller's where a format has too few values for the rule of the
 * largest one.
 */
function quantizePanel(
  x: Float32Array,
  rows: number,
  dims: number,
  format: Format,
  { element }: Operands,
  scales: Float32Array | null,
): PackedTensor {
  const backend = wasmSync();
  if (scales === null || format.kind !== "block") return quantize(tensor(x.slice(), [rows, dims]), format, { backend });
  const divided = x.map((v, i) => v / scales[Math.floor(i / dims)]);
  const codes = quantize(tensor(divided, [rows, dims]), element, { backend });
  return { ...codes, format, scales: new Uint8Array(scales.slice().buffer) };
}
