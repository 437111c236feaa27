// Queries in the layout of the scan kernel: integer planes whose element i meets field i of the codes, a bit for each
// sign, or float32.
import { QUERY_HEAD, queryRange, queryVectors, type ScanSpec } from "../../kernels/wasm/search/layout.ts";
import type { Operands } from "./operands.ts";

/**
 * Writes a query at the start of `bytes` (zeros before). Returns what is lost: the norm of the difference between the
 * query and what was written.
 */
export function writeQuery(bytes: Uint8Array, q: Float64Array, spec: ScanSpec, operands: Operands | null): number {
  if (spec.kind === "float") return writeFloats(bytes, q);
  if (spec.kind === "hamming") return writeSigns(bytes, q);
  return writePlanes(bytes, q, spec, operands!);
}

function writeFloats(bytes: Uint8Array, q: Float64Array): number {
  const floats = new Float32Array(bytes.buffer, bytes.byteOffset + QUERY_HEAD, q.length);
  floats.set(q);
  let lost = 0;
  for (let i = 0; i < q.length; i++) lost += (q[i] - floats[i]) ** 2;
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

function writePlanes(bytes: Uint8Array, q: Float64Array, spec: ScanSpec, { shift }: Operands): number {
  const { bits, planes, style, vectors } = spec;
  const range = queryRange(spec);
  const head = new DataView(bytes.buffer, bytes.byteOffset, QUERY_HEAD);
  const rest = q.slice();
  const fields = 8 / bits;
  const wide = style === "simd" ? 2 : 1;
  const perVector = 16 * queryVectors(spec);
  const small = new Int8Array(bytes.buffer, bytes.byteOffset, bytes.length);
  const large = new Int16Array(bytes.buffer, bytes.byteOffset, bytes.length >> 1);
  if (range.offset !== 0) small.fill(range.offset, QUERY_HEAD, QUERY_HEAD + vectors * perVector);
  for (let plane = 0; plane < planes; plane++) {
    let most = 0;
    for (let i = 0; i < rest.length; i++) most = Math.max(most, Math.abs(rest[i]));
    const scale = Math.fround(most / range.max) || 1;
    let sum = 0;
    for (let i = 0; i < rest.length; i++) {
      const value = Math.max(-range.max, Math.min(range.max, Math.round(rest[i] / scale)));
      rest[i] -= value * scale;
      sum += value;
      // byte and field of the code that it meets
      const byte = Math.floor(i / fields);
      const at = QUERY_HEAD + (byte >> 4) * perVector + 16 * wide * ((i % fields) * planes + plane);
      if (wide === 1) small[at + (byte & 15)] = value + range.offset;
      else large[(at >> 1) + (byte & 15)] = value;
    }
    head.setFloat32(8 * plane, scale, true);
    head.setInt32(8 * plane + 4, shift * sum, true);
  }
  return Math.sqrt(rest.reduce((sum, x) => sum + x * x, 0));
}
