// Packed rows in the memory of a backend, in chunks: codes as the scan kernel reads them, and for each row its factor,
// scale, id and what else the metric and the kernel need. A chunk begins at a multiple of 8 rows, so that a bitmap of
// rows needs no shifting.
import { codeArray, packedBytes, unpackInto } from "../../formats/core/pack.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { queryBytes, queryRange, type ScanSpec } from "../../kernels/wasm/search/layout.ts";
import { CHUNK_BYTES } from "../../kernels/wasm/search/rank.ts";
import type { EngineMemory, Region } from "../backends/wasm/memory.ts";
import { allFull, lists, readList, readScores, runRank, runScan, type Later, type Lists } from "./engine.ts";
import type { Operands } from "./operands.ts";
import { fastPack, packPanel, panelRows, quantizePanel, refuseBad, type PackPlace } from "./pack-rows.ts";
import { lengthOf, writeQuery } from "./query.ts";
import { coarseScales, isCoarse } from "./coarse.ts";
import type { Candidates, Metric, ScanStore } from "./types.ts";

interface Chunk {
  readonly first: number;
  readonly capacity: number;
  count: number;
  /** The id of every row is its number: ids need not be read. */
  numbered: boolean;
  readonly codes: Region;
  /** WORDS words a row, each kind in a run of its own. */
  readonly words: Region;
}

const LEAST_CHUNK = 1024;
/** One row in so many is looked at to begin a scan for many candidates, this many or more. */
const SAMPLED = 128;
const LEAST_SAMPLED = 64;
const roundUp = (n: number, step: number): number => step * Math.ceil(n / step);

/** Words of a row, by kind. Not every store has all. */
type Word = "factors" | "ids" | "scales" | "offsets" | "sums";

/** Lists in the engine, and for each query the norm of what was lost of it. */
export interface Found {
  readonly into: Lists;
  readonly lost: readonly number[];
  /** Not joined and cut to the best yet. */
  readonly open: boolean;
}

/** A store in the engine, whose lists need not leave it between two stages. */
export interface EngineRows extends ScanStore {
  /** Scans into lists that are not joined yet. `signs`: by differing bits, where the format is signs. */
  scanLists(queries: readonly Float64Array[], want: number, mask: Uint8Array | null, signs: boolean): Found;
  /** The best of one row in `part`, in blocks of neighbours, in no order. */
  scanPart(queries: readonly Float64Array[], want: number, part: number, signs: boolean): { rows: Uint32Array; scores: Float32Array }[];
  /**
   * Joins the lists `from` and scores their rows again with these: the best `want` of each. `name`: of the scratch
   * space, another one than that of `from`. `signs`: by differing bits, where the format is signs.
   */
  rankLists(from: Lists, queries: readonly Float64Array[], want: number, name: string, signs?: boolean): Found;
  /** The rows of lists, which it joins: with `k`, those that can be among the best `k`. */
  read(found: Found, queries: readonly Float64Array[], k?: number): Candidates[];
}

/** @param centre of formats of signs: rows are packed as x - |x| centre */
export function engineRows(
  memory: EngineMemory,
  format: Format,
  operands: Operands,
  dims: number,
  metric: Metric,
  centre: Float32Array | null = null,
): EngineRows {
  const { element, bits, flip, integers, unit, scaled } = operands;
  const rowBytes = packedBytes(dims, bits);
  const stride = roundUp(rowBytes, 16);
  const vectors = stride / 16;
  const style = memory.features.dot === "none" ? "simd" : memory.features.dot === "i7" ? "madd16" : "dot";
  const offset = metric === "euclidean";
  const base = {
    style, bits, vectors, stride, offset, planes: 1, table: operands.table, doubled: operands.doubled, most: operands.most, flat: false, shared: memory.shared,
  } as const; // prettier-ignore
  /** Rows that are few are scored with queries of 14 bits. */
  const rankSpec: ScanSpec = { ...base, kind: "dot", style: "simd", planes: 2 };
  const scanSpec: ScanSpec = { ...base, kind: "dot" };
  const signSpec: ScanSpec = {
    ...base,
    kind: "hamming",
    style: "simd",
    table: null,
    doubled: true,
    flat: !operands.scaled && !offset,
  };
  const withSums = queryRange({ style, bits }).offset !== 0;
  const kinds: readonly Word[] = [
    "factors",
    "ids",
    ...(scaled ? (["scales"] as const) : []),
    ...(offset ? (["offsets"] as const) : []),
    ...(withSums ? (["sums"] as const) : []),
  ];
  const packSpec = fastPack(format, operands, memory.shared, centre !== null);
  const coarse = scaled && isCoarse(element);
  const chunks: Chunk[] = [];
  let count = 0;
  let planned = 0;
  /** The largest norm of a row, in the units of a score. */
  let norm = 0;

  const word = (chunk: Chunk, kind: Word): number => {
    const i = kinds.indexOf(kind);
    return i < 0 ? 0 : chunk.words.address + 4 * i * chunk.capacity;
  };
  const grow = (rows: number): Chunk => {
    const capacity = roundUp(Math.max(count === 0 ? 0 : LEAST_CHUNK, rows, planned - count, Math.floor(count / 4)), 8);
    const codes = memory.allocate(capacity * stride + 64);
    let words: Region;
    try {
      words = memory.allocate(4 * kinds.length * capacity);
    } catch (error) {
      codes.free();
      throw error;
    }
    // where rows are padded, padding is zero; what lies beyond the last row is computed, and left out
    if (stride !== rowBytes) new Uint8Array(memory.buffer, codes.address, codes.bytes).fill(flip);
    new Uint8Array(memory.buffer, words.address, words.bytes).fill(0);
    const chunk = { first: count, capacity, count: 0, numbered: true, codes, words };
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
    for (let r = 0; r < rows; r++) if (ids[r] !== chunk.first + row + r) chunk.numbered = false;
    new Uint32Array(memory.buffer, word(chunk, "ids") + 4 * row, rows).set(ids.subarray(0, rows));
    chunk.count = row + rows;
    count = chunk.first + chunk.count;
  };
  /** Calls `each` for runs of rows that fit the last chunk and a panel. */
  const inPanels = (rows: number, each: (chunk: Chunk, row: number, from: number, many: number) => void): void => {
    const most = panelRows(dims);
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
    get count() {
      return count;
    },
    get bytes() {
      return chunks.reduce((sum, { codes, words }) => sum + codes.bytes + words.bytes, 0);
    },
    checks: packSpec !== null,
    reserve(rows) {
      planned = count + rows;
    },
    append(x, rows, ids, staged) {
      inPanels(rows, (chunk, row, from, many) => {
        const values = x.subarray(from * dims, (from + many) * dims);
        const scales = coarse ? coarseScales(values, dims, element) : null;
        const panel = { x: values, dims, rows: many, staged: staged === 0 ? 0 : staged + 4 * from * dims };
        const squares = packSpec === null ? null : packPanel(memory, packSpec, panel, place(chunk, row), { scales, centre });
        const own = ids.subarray(from, from + many);
        if (squares !== null) finish(chunk, row, many, squares, own);
        else {
          refuseBad(values, dims, own);
          const packed = quantizePanel(centre === null ? values : lessCentre(values, centre), many, dims, format, operands, scales);
          appendCodes(chunk, row, packed, 0, many, own);
        }
      });
    },
    truncate(rows) {
      while (chunks.length > 0 && chunks.at(-1)!.first >= rows) {
        const { codes, words } = chunks.pop()!;
        codes.free();
        words.free();
      }
      const last = chunks.at(-1);
      if (last !== undefined) last.count = Math.min(last.count, rows - last.first);
      count = rows;
    },
    appendPacked(packed, ids) {
      inPanels(packed.rows, (chunk, row, from, many) => appendCodes(chunk, row, packed, from, many, ids.subarray(from)));
    },
    exact(q, rows) {
      if (offset || bits !== 8) return null;
      const out = new Float64Array(rows.length);
      for (let i = 0; i < rows.length; i++) {
        const chunk = chunkOf(chunks, rows[i]);
        const local = rows[i] - chunk.first;
        const bytes = new Uint8Array(memory.buffer, chunk.codes.address + local * stride, rowBytes);
        const scale = unit * (scaled ? memory.floats(word(chunk, "scales") + 4 * local, 1)[0] : 1);
        out[i] = scoreBytes(q, bytes, operands, scale, metric === "cosine");
      }
      return out;
    },
    decode(row, out) {
      const chunk = chunkOf(chunks, row);
      const local = row - chunk.first;
      const bytes = new Uint8Array(memory.buffer, chunk.codes.address + local * stride, rowBytes);
      const scale = unit * (scaled ? memory.floats(word(chunk, "scales") + 4 * local, 1)[0] : 1);
      decodeCodes(bytes, out, dims, operands, scale);
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
    scanLists,
    scanPart(queries, want, part, signs) {
      const { run } = prepareScan(queries, null, operands.signs && signs);
      const into = lists(memory, "search sample", [queries.length, want, memory.threads]);
      run(into, part);
      runRank(memory, null, into, null);
      return queries.map((_, i) => readScores(memory, into, i));
    },
    rankLists,
    read({ into, lost, open }, queries, k) {
      if (open) runRank(memory, null, into, null);
      return queries.map((q, i) => {
        const off = bound(q, lost[i]);
        const { rows, least } = readList(memory, into, i, k === undefined ? null : { k, off });
        return { rows, ceiling: least + off };
      });
    },
    scan(queries, want, mask, precise) {
      if (!precise) {
        return store.read(scanLists(queries, want, mask, operands.signs), queries);
      }
      // one plane of the query over all rows, both planes over the best of them
      const first = scanLists(queries, Math.min(count, 4 * want + 128), mask, false);
      const found = rankLists(first.into, queries, want, "search ranked");
      const outer = queries.map((q, i) => readList(memory, first.into, i).least + bound(q, first.lost[i]));
      return store.read(found, queries).map(({ rows, ceiling }, i) => ({ rows, ceiling: Math.max(ceiling, outer[i]) }));
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
    const size = lengthOf(q);
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
  /** Queries as a scan by `spec` reads them, in scratch space. */
  function placeQueries(spec: ScanSpec, queries: readonly Float64Array[]): { query: number; lost: number[] } {
    const size = queryBytes(spec);
    const query = memory.scratch("search query", size * queries.length);
    const bytes = new Uint8Array(memory.buffer, query, size * queries.length).fill(0);
    return { query, lost: queries.map((q, i) => writeQuery(bytes.subarray(i * size, (i + 1) * size), q, spec, operands)) };
  }
  /** A scan as a function of the lists that it fills and the part of the rows that it reads. */
  function prepareScan(queries: readonly Float64Array[], mask: Uint8Array | null, hamming: boolean) {
    const spec = hamming ? signSpec : scanSpec;
    const { query, lost } = placeQueries(spec, queries);
    let masks = 0;
    if (mask !== null) {
      masks = memory.scratch("search mask", mask.length + 64);
      new Uint8Array(memory.buffer, masks, mask.length).set(mask);
    }
    const run = (into: Lists, part: number): void => {
      for (const chunk of chunks) {
        const rows = {
          codes: chunk.codes.address,
          factors: word(chunk, "factors"),
          offsets: word(chunk, "offsets"),
          sums: word(chunk, "sums"),
          ids: chunk.numbered ? 0 : word(chunk, "ids"),
          mask: mask === null ? 0 : masks + chunk.first / 8,
          rows: chunk.count,
          firstRow: chunk.first,
        };
        runScan(memory, spec, rows, query, into, part);
      }
    };
    return { run, lost };
  }
  function scanLists(queries: readonly Float64Array[], want: number, mask: Uint8Array | null, signs: boolean): Found {
    const hamming = operands.signs && signs;
    const { run, lost } = prepareScan(queries, mask, hamming);
    const shape = [queries.length, want, memory.threads] as const;
    const begin = hamming && mask === null && want >= LEAST_SAMPLED && count >= 32 * want ? sampled(run, shape) : null;
    let into = lists(memory, "search lists", shape, begin);
    run(into, 1);
    if (begin !== null && !allFull(memory, into)) {
      into = lists(memory, "search lists", shape);
      run(into, 1);
    }
    return { into, lost, open: true };
  }
  /**
   * Scores from which to begin: those that more than `want` rows reach, by one in SAMPLED of all. Lists that begin with
   * them take a few times what they keep, not thousands of times; where the guess was too high, all is done again.
   */
  function sampled(run: (into: Lists, part: number) => void, [queries, want, slots]: readonly [number, number, number]): Float32Array {
    const share = want / SAMPLED;
    const few = Math.ceil(1.25 * share + 3 * Math.sqrt(share) + 4);
    const sample = lists(memory, "search sample", [queries, few, slots]);
    run(sample, SAMPLED);
    runRank(memory, null, sample, null);
    return Float32Array.from({ length: queries }, (_, i) => readList(memory, sample, i).least);
  }
  function rankLists(from: Lists, queries: readonly Float64Array[], want: number, name: string, signs = false): Found {
    const spec = operands.signs && signs ? signSpec : rankSpec;
    const { query, lost } = placeQueries(spec, queries);
    const table = memory.scratch("search chunks", CHUNK_BYTES * chunks.length);
    const words = new Int32Array(memory.buffer, table, 4 * chunks.length);
    chunks.forEach((chunk, i) => words.set([chunk.first, chunk.codes.address, word(chunk, "factors"), word(chunk, "offsets")], 4 * i));
    // one query keeps all threads busy by parts of its list
    const parts = queries.length < memory.threads ? memory.threads : 1;
    const joined = parts > 1 ? { ...from, slots: 1 } : from;
    if (parts > 1) runRank(memory, null, from, null);
    const results = lists(memory, name, [queries.length, want, parts]);
    const later: Later = { chunks: table, chunkCount: chunks.length, query, queryBytes: queryBytes(spec), results };
    runRank(memory, spec, joined, later);
    return { into: results, lost, open: parts > 1 };
  }
  return store;
}

/** The values of a row: as a function of its own, the engine keeps all of it in registers. */
function decodeCodes(bytes: Uint8Array, out: Float64Array, dims: number, { bits, flip, integers }: Operands, scale: number): void {
  if (bits === 8) {
    for (let i = 0; i < dims; i++) out[i] = integers[bytes[i] ^ flip] * scale;
    return;
  }
  const mask = 2 ** bits - 1;
  for (let i = 0, at = 0; i < dims; i++, at += bits) out[i] = integers[((bytes[at >> 3] ^ flip) >> (at & 7)) & mask] * scale;
}

/** `decode` and `exactScore` of a row of codes of 8 bits in one loop, by dot or cosine: the same numbers. */
function scoreBytes(q: Float64Array, bytes: Uint8Array, { flip, integers }: Operands, scale: number, cosine: boolean): number {
  let [dot, square] = [0, 0];
  for (let i = 0; i < q.length; i++) {
    const value = integers[bytes[i] ^ flip] * scale;
    dot += q[i] * value;
    square += value * value;
  }
  return !cosine ? dot : square > 0 ? dot / Math.sqrt(square) : 0;
}

/** x - |x| centre, row by row. */
function lessCentre(x: Float32Array, centre: Float32Array): Float32Array {
  const dims = centre.length;
  const out = x.slice();
  for (let from = 0; from < x.length; from += dims) {
    let square = 0;
    for (let i = 0; i < dims; i++) square += x[from + i] * x[from + i];
    const size = Math.sqrt(square);
    for (let i = 0; i < dims; i++) out[from + i] -= size * centre[i];
  }
  return out;
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
