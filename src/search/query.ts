// Queries in the layout of the scan kernel: integer planes whose element i meets field i of the codes, a bit for each
// sign, or float32.
import { decodeOrder, QUERY_HEAD, queryRange, queryVectors, type ScanSpec } from "../../kernels/wasm/search/layout.ts";
import type { Operands } from "./operands.ts";

/**
 * Writes a query at the start of `bytes` (zeros before). `lacking`: powers of two that decoded floats lack. Returns
 * what is lost: the norm of the difference between the query and what was written.
 */
export function writeQuery(bytes: Uint8Array, q: Float64Array, spec: ScanSpec, operands: Operands | null, lacking = 0): number {
  if (spec.kind === "float") return writeFloats(bytes, q, spec, lacking);
  if (spec.kind === "hamming") return writeSigns(bytes, q);
  return writePlanes(bytes, q, spec, operands!);
}

/** Exponents of float32 about which products and sums of decoded fields stay, however small the fields are. */
const MIDDLE = 100;

/** Of floats of fewer bits: times a power of two, whose inverse is in the factor with what the fields lack. */
function writeFloats(bytes: Uint8Array, q: Float64Array, { bits }: ScanSpec, lacking: number): number {
  const floats = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
  const order = decodeOrder(bits);
  let most = 0;
  for (let i = 0; i < q.length; i++) most = Math.max(most, Math.abs(q[i]));
  const power =
    lacking === 0 || most === 0 ? 0 : Math.max(lacking - MIDDLE, Math.min(lacking + MIDDLE, MIDDLE - Math.floor(Math.log2(most))));
  const [scale, back] = [2 ** power, 2 ** -power];
  floats[0] = 2 ** (lacking - power);
  const head = QUERY_HEAD >> 2;
  let lost = 0;
  for (let from = 0; from < q.length; from += order.length)
    for (let i = 0; i < order.length; i++) {
      const value = q[from + order[i]] ?? 0;
      const at = head + from + i;
      floats[at] = value * scale;
      lost += (value - floats[at] * back) ** 2;
    }
  return Math.sqrt(lost);
}

/** q ~ mean |q| * sign(q): the products are (dims - 2 * differing bits) times that. */
function writeSigns(bytes: Uint8Array, q: Float64Array): number {
  let size = 0;
  for (let i = 0; i < q.length; i++) {
    size += Math.abs(q[i]);
    if (q[i] >= 0) bytes[QUERY_HEAD + (i >> 3)] |= 1 << (i & 7);
  }
  new Float32Array(bytes.buffer, bytes.byteOffset, 1)[0] = -size / q.length;
  new Int32Array(bytes.buffer, bytes.byteOffset + 4, 1)[0] = q.length;
  return Infinity;
}

/**
 * The length of a vector. A loop, as all that a query needs: callbacks on typed arrays cost ten times that.
 */
export function lengthOf(q: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < q.length; i++) sum += q[i] * q[i];
  return Math.sqrt(sum);
}

/** 1.5 * 2^52: adding and taking it away rounds a double of the size of a code, without a branch as Math.round has. */
const MAGIC = 6755399441055744;

/**
 * Both planes of 16 bits for codes of 8, in one pass: the second has the most that the first can leave for its range.
 * What a scan of signs ranks its candidates with, for every query.
 */
function writeWords(bytes: Uint8Array, q: Float64Array, shift: number): number {
  const { max } = queryRange({ style: "simd", bits: 8 });
  let most = 0;
  for (let i = 0; i < q.length; i++) {
    const size = q[i] < 0 ? -q[i] : q[i];
    if (size > most) most = size;
  }
  const high = Math.fround(most / max) || 1;
  const low = Math.fround(high / (2 * max));
  const [overHigh, overLow] = [1 / high, 1 / low];
  const out = new Int16Array(bytes.buffer, bytes.byteOffset + QUERY_HEAD, (bytes.length - QUERY_HEAD) >> 1);
  let [highs, lows, lost] = [0, 0, 0];
  for (let i = 0, at = 0; i < q.length; at += 16) {
    for (const end = Math.min(q.length, i + 16); i < end; i++, at++) {
      let value = q[i] * overHigh + MAGIC - MAGIC;
      value = value > max ? max : value < -max ? -max : value;
      const rest = q[i] - value * high;
      let second = rest * overLow + MAGIC - MAGIC;
      second = second > max ? max : second < -max ? -max : second;
      const left = rest - second * low;
      lost += left * left;
      highs += value;
      lows += second;
      out[at] = value;
      out[at + 16] = second;
    }
  }
  const head = new DataView(bytes.buffer, bytes.byteOffset, QUERY_HEAD);
  head.setFloat32(0, high, true);
  head.setInt32(4, shift * highs, true);
  head.setFloat32(8, low, true);
  head.setInt32(12, shift * lows, true);
  return Math.sqrt(lost);
}

function writePlanes(bytes: Uint8Array, q: Float64Array, spec: ScanSpec, { shift }: Operands): number {
  const { bits, planes, style, vectors } = spec;
  const range = queryRange(spec);
  const head = new DataView(bytes.buffer, bytes.byteOffset, QUERY_HEAD);
  const fields = 8 / bits;
  const wide = style === "simd" ? 2 : 1;
  if (fields === 1 && planes === 2 && wide === 2) return writeWords(bytes, q, shift);
  const rest = q.slice();
  const perVector = 16 * queryVectors(spec);
  const { max } = range;
  // one element a byte of codes, or of 16 bits
  const out =
    wide === 1
      ? new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length)
      : new Int16Array(bytes.buffer, bytes.byteOffset, bytes.length >> 1);
  if (range.offset !== 0) out.fill(range.offset, QUERY_HEAD, QUERY_HEAD + vectors * perVector);
  for (let plane = 0; plane < planes; plane++) {
    let most = 0;
    for (let i = 0; i < rest.length; i++) if (Math.abs(rest[i]) > most) most = Math.abs(rest[i]);
    const scale = Math.fround(most / range.max) || 1;
    // what a code is off by stays in the rest, so that any code near the quotient does; a division takes as long as all
    // else
    const inverse = 1 / scale;
    let sum = 0;
    let i = 0;
    for (let byte = 0; i < rest.length; byte++) {
      let at = ((QUERY_HEAD + (byte >> 4) * perVector) >> (wide - 1)) + 16 * plane + (byte & 15);
      for (let field = 0; field < fields && i < rest.length; field++, i++, at += 16 * planes) {
        const whole = rest[i] * inverse + MAGIC - MAGIC;
        const value = whole > max ? max : whole < -max ? -max : whole;
        rest[i] -= value * scale;
        sum += value;
        out[at] = value + range.offset;
      }
    }
    head.setFloat32(8 * plane, scale, true);
    head.setInt32(8 * plane + 4, shift * sum, true);
  }
  return lengthOf(rest);
}
