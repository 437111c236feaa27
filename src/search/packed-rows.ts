// Packed rows of any format, as packed tensors: floats of 8 and 16 bits are copied panel by panel to where the scan
// kernel reads them, and what it does not read is decoded into float32 there. Also float32 itself, whose rows may be
// the caller's own array.
import { dequantizeRows, rowScales } from "../../formats/core/packed.ts";
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { queryBytes, type ScanSpec } from "../../kernels/wasm/search/layout.ts";
import { wasmSync } from "../backends/wasm/backend.ts";
import type { EngineMemory } from "../backends/wasm/memory.ts";
import { rowDecoder, type RowDecoder } from "../tensor/dequantize.ts";
import { quantize } from "../tensor/quantize/index.ts";
import { tensor } from "../tensor/tensor.ts";
import { lists, readList, runRank, runScan } from "./engine.ts";
import { floatOperandsOf } from "./operands.ts";
import { lengthOf, writeQuery } from "./query.ts";
import { joinRows, rowsApart, takeRows } from "./rows.ts";
import type { Metric, ScanStore } from "./types.ts";

/** Rows that lie together: packed, or floats as they are. */
interface Segment {
  readonly first: number;
  readonly rows: number;
  readonly packed: PackedTensor | null;
  readonly floats: Float32Array | null;
  readonly decode: RowDecoder;
}

/** Bytes of a panel: it stays in the second cache. */
const PANEL = 1 << 18;
/** So many queries cost more to decode codes for, each anew, than all of them at once. */
const DECODED = 4;
/** A last segment of fewer rows is joined with what is added. */
const JOINED = 1024;

/** @param plain float32: rows are kept as they are, the first ones without a copy */
export function packedRows(memory: EngineMemory, format: Format, dims: number, metric: Metric, plain: boolean): ScanStore {
  const offset = metric === "euclidean";
  const segments: Segment[] = [];
  let count = 0;
  /** Rows whose factors are known. */
  let measured = 0;
  let norm = 0;
  let factors = new Float32Array(0);
  let offsets = new Float32Array(0);
  let allIds = new Uint32Array(0);
  const fields = plain ? null : floatOperandsOf(format);
  const common = { kind: "float", style: "simd", planes: 1, table: null, doubled: false, most: 0, offset, flat: false, shared: memory.shared } as const; // prettier-ignore
  const decoded: ScanSpec = { ...common, bits: 32, vectors: Math.ceil(dims / 4), stride: 4 * dims };
  const codeVectors = Math.ceil((dims * (fields?.bits ?? 0)) / 128);
  const coded: ScanSpec | null = fields && {
    ...common,
    bits: fields.bits,
    mantissaBits: fields.mantissaBits,
    vectors: codeVectors,
    stride: 16 * codeVectors,
  };

  const segmentOf = (row: number): Segment => {
    let i = segments.length - 1;
    while (segments[i].first > row) i--;
    return segments[i];
  };
  const make = (first: number, packed: PackedTensor | null, floats: Float32Array | null): Segment => ({
    first,
    rows: packed?.rows ?? floats!.length / dims,
    packed,
    floats,
    decode:
      packed === null
        ? (row, many, out) => out.set(floats!.subarray(row * dims, (row + many) * dims))
        : rowDecoder(packed, wasmSync().codec),
  });
  /** Codes of rows where the scan kernel reads them. */
  const copyCodes = ({ codes, rowBytes }: PackedTensor, row: number, many: number, to: number): void => {
    const stride = 16 * codeVectors;
    const bytes = new Uint8Array(memory.buffer, to, many * stride);
    if (rowBytes === stride) bytes.set(codes.subarray(row * rowBytes, (row + many) * rowBytes));
    else
      for (let r = 0; r < many; r++) {
        bytes.set(codes.subarray((row + r) * rowBytes, (row + r + 1) * rowBytes), r * stride);
        bytes.fill(0, r * stride + rowBytes, (r + 1) * stride);
      }
  };
  /** Multiplies factors by the scales of rows whose codes are scanned. */
  const scaleRows = (packed: PackedTensor, row: number, own: Float32Array): void => {
    if (packed.format.kind !== "block") return;
    const levels = rowScales(packed, packed.format);
    const [scale, none] = [new Float64Array(1), new Float64Array(1)];
    for (let r = 0; r < own.length; r++) {
      levels.fill(row + r, scale, none);
      own[r] *= scale[0];
    }
  };
  /**
   * Factors and offsets of rows up to `count`, which only scans need: of rows of the caller's own not before the first.
   * @throws LowbitError E_VALUE
   */
  const measureRows = (): void => {
    const step = Math.max(1, Math.floor(PANEL / 4 / dims));
    const panel = new Float32Array(step * dims);
    while (measured < count) {
      const segment = segmentOf(measured);
      const row = measured - segment.first;
      const many = Math.min(step, segment.rows - row);
      segment.decode(row, many, panel);
      for (let r = 0; r < many; r++, measured++) {
        let square = 0;
        for (let i = r * dims; i < (r + 1) * dims; i++) square += panel[i] * panel[i];
        const size = Math.sqrt(square);
        const id = allIds[measured];
        if (!Number.isFinite(square))
          throw new LowbitError("E_VALUE", `search vectors: expected finite numbers, got others for id ${id}. Repair the data.`);
        if (!(size < 1e18))
          throw new LowbitError("E_VALUE", `search vectors: expected norms below 1e18, got ${size} for id ${id}. Scale the vectors.`);
        factors[measured] = metric === "cosine" ? (size > 0 ? 1 / size : 0) : 1;
        offsets[measured] = -square / 2;
        norm = Math.max(norm, metric === "cosine" ? 1 : size);
      }
    }
  };
  const add = (packed: PackedTensor | null, floats: Float32Array | null, ids: Uint32Array, checked: boolean): void => {
    const fresh = make(count, packed, floats);
    const total = count + fresh.rows;
    reserve(total);
    allIds.set(ids.subarray(0, fresh.rows), count);
    const last = segments.at(-1);
    if (last !== undefined && last.rows < JOINED && rowsApart(format)) {
      segments.pop();
      const both =
        packed !== null ? make(last.first, joinRows(last.packed!, packed), null) : make(last.first, null, concat(last.floats!, floats!));
      segments.push(both);
    } else segments.push(fresh);
    count = total;
    if (!checked) measureRows();
  };
  const reserve = (total: number): void => {
    if (total <= factors.length) return;
    const size = count === 0 ? total : Math.max(total, Math.ceil(1.25 * factors.length), LEAST);
    const grown = <T extends Float32Array | Uint32Array>(from: T, to: T): T => (to.set(from as never), to);
    factors = grown(factors, new Float32Array(size));
    offsets = grown(offsets, new Float32Array(size));
    allIds = grown(allIds, new Uint32Array(size));
  };

  return {
    format,
    dims,
    get count() {
      return count;
    },
    get bytes() {
      const planes = ({ packed, floats }: Segment): number =>
        packed === null
          ? floats!.byteLength
          : packed.codes.length + (packed.scales?.length ?? 0) + (packed.superScales?.length ?? 0) + (packed.offsets?.length ?? 0);
      return segments.reduce((sum, s) => sum + planes(s), 0) + factors.byteLength + offsets.byteLength + allIds.byteLength;
    },
    checks: false,
    reserve: (rows) => reserve(count + rows),
    append(x, rows, ids) {
      // the caller has looked at x, whose values are kept
      if (plain) add(null, count === 0 ? x : x.slice(), ids, true);
      else add(quantize(tensor(x, [rows, dims]), format, { backend: wasmSync() }), null, ids, false);
    },
    appendPacked(packed, ids) {
      if (!plain) add(packed, null, ids, false);
      else add(null, new Float32Array(packed.codes.slice().buffer), ids, false);
    },
    truncate(rows) {
      while (segments.length > 0 && segments.at(-1)!.first >= rows) segments.pop();
      const last = segments.at(-1);
      if (last !== undefined && last.first + last.rows > rows) {
        const left = rows - last.first;
        segments.pop();
        const { first, packed, floats } = last;
        segments.push(
          packed === null
            ? make(first, null, floats!.subarray(0, left * dims))
            : make(
                first,
                takeRows(packed, (r) => r < left),
                null,
              ),
        );
      }
      count = rows;
      measured = Math.min(measured, rows);
    },
    exact(q, rows) {
      if (!plain || offset) return null;
      const count = rows.length;
      const out = new Float64Array(count);
      if (count === 0) return out;
      const own = new Array<Float32Array>(count);
      for (let i = 0; i < count; i++) {
        const segment = segmentOf(rows[i]);
        const from = (rows[i] - segment.first) * dims;
        own[i] = segment.floats!.subarray(from, from + dims);
      }
      out[0] = touch(own, dims);
      for (let i = 0; i < count; i += 2) scorePair(q, own[i], own[Math.min(i + 1, count - 1)], metric === "cosine", out, i);
      return out;
    },
    decode(row, out) {
      const segment = segmentOf(row);
      const local = row - segment.first;
      if (segment.packed === null) out.set(segment.floats!.subarray(local * dims, (local + 1) * dims));
      else dequantizeRows(segment.packed, local, 1, out);
    },
    packed() {
      return segments.map(({ packed, floats, rows }) => {
        if (packed !== null) return packed;
        const codes = new Uint8Array(floats!.buffer, floats!.byteOffset, floats!.byteLength);
        const recipe = { version: 1, algorithm: "rtn" } as const;
        return {
          format,
          shape: [rows, dims],
          rows,
          k: dims,
          rowBytes: 4 * dims,
          codes,
          scales: null,
          superScales: null,
          offsets: null,
          recipe,
        };
      });
    },
    scan(queries, want, mask, _precise) {
      measureRows();
      // for several queries rows are decoded once
      const own = queries.length < DECODED ? coded : null;
      const spec = own ?? decoded;
      const size = queryBytes(spec);
      const query = memory.scratch("search query", size * queries.length);
      const bytes = new Uint8Array(memory.buffer, query, size * queries.length).fill(0);
      const lacking = own === null ? 0 : fields!.lacking;
      const lost = queries.map((q, i) => writeQuery(bytes.subarray(i * size, (i + 1) * size), q, spec, null, lacking));
      const into = lists(memory, "search lists", [queries.length, want, memory.threads]);
      const step = Math.max(8, 8 * Math.floor(PANEL / spec.stride / 8));
      const panel = new Float32Array(own === null ? step * dims : 0);
      const staged = memory.scratch("search panel", step * (spec.stride + 12) + 64);
      const [factor, add, id] = [0, 1, 2].map((i) => staged + step * (spec.stride + 4 * i) + 16);
      for (const segment of segments)
        for (let row = 0; row < segment.rows; row += step) {
          const many = Math.min(step, segment.rows - row);
          const first = segment.first + row;
          const weights = memory.floats(factor, many);
          weights.set(factors.subarray(first, first + many));
          if (own !== null) {
            copyCodes(segment.packed!, row, many, staged);
            scaleRows(segment.packed!, row, weights);
          } else {
            segment.decode(row, many, panel);
            memory.floats(staged, many * dims).set(panel.subarray(0, many * dims));
            // the last vector of a row of odd length reads on, and multiplies by zero: what it reads must be finite
            memory.floats(staged + 4 * many * dims, 4).fill(0);
          }
          memory.floats(add, many).set(offsets.subarray(first, first + many));
          new Uint32Array(memory.buffer, id, many).set(allIds.subarray(first, first + many));
          const masks = mask === null ? 0 : stageMask(memory, mask, first, many);
          const rows = { codes: staged, factors: factor, offsets: add, sums: 0, ids: id, mask: masks, rows: many, firstRow: first };
          runScan(memory, spec, rows, query, into);
        }
      runRank(memory, null, into, null);
      return queries.map((q, i) => {
        const length = lengthOf(q);
        // float32 sums of `dims` products, and what float32 rounds of values, factors and offsets
        const rounding = (dims / 4 + 16) * 2 ** -23 * (length * norm + (offset ? norm * norm : 0));
        const { rows, least } = readList(memory, into, i);
        return { rows, ceiling: least + lost[i] * norm + rounding };
      });
    },
    dispose() {
      segments.length = 0;
      count = 0;
    },
  };
}

const LEAST = 1024;

/** Floats of a line of a cache, and of what is fetched ahead once it is being read. */
const LINE = 16;
const PAGE = 256;

/** Asks for what begins rows, which lie anywhere, before the first is needed: misses are waited for together. */
function touch(rows: readonly Float32Array[], dims: number): number {
  let sum = 0;
  for (let i = 0; i < rows.length; i++) {
    const values = rows[i];
    sum += values[0];
    for (let j = LINE; j < dims; j += PAGE) sum += values[j];
  }
  return sum;
}

/**
 * `exactScore` of two rows of floats by dot or cosine, the same numbers, side by side: each waits for its last
 * addition. To `out[i]` and what follows, where that is not beyond its end.
 */
function scorePair(q: Float64Array, a: Float32Array, b: Float32Array, cosine: boolean, out: Float64Array, i: number): void {
  let [dotA, squareA, dotB, squareB] = [0, 0, 0, 0];
  for (let j = 0; j < q.length; j++) {
    dotA += q[j] * a[j];
    squareA += a[j] * a[j];
    dotB += q[j] * b[j];
    squareB += b[j] * b[j];
  }
  out[i] = scoreOf(dotA, squareA, cosine);
  out[i + 1] = scoreOf(dotB, squareB, cosine);
}
const scoreOf = (dot: number, square: number, cosine: boolean): number => (!cosine ? dot : square > 0 ? dot / Math.sqrt(square) : 0);

function concat(a: Float32Array, b: Float32Array): Float32Array {
  const out = new Float32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}

/** Bits first .. first + rows - 1 of a bitmap, from bit 0 on, in scratch space. */
function stageMask(memory: EngineMemory, mask: Uint8Array, first: number, rows: number): number {
  const bytes = Math.ceil(rows / 8);
  const address = memory.scratch("search mask", bytes + 64);
  const to = new Uint8Array(memory.buffer, address, bytes);
  const shift = first & 7;
  for (let i = 0, from = first >> 3; i < bytes; i++, from++) to[i] = (mask[from] >> shift) | ((mask[from + 1] ?? 0) << (8 - shift));
  return address;
}
