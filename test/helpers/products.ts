// What a sweep of packed products needs: formats, weights, and the oracle's result with a bound computed from the data
// (test/oracle/product.ts), flips of a code where an activation lies on the border between two codes included.
import { dequantizeRows, elementOf, rowScales } from "../../formats/core/packed.ts";
import { allFormats, defineBlock, defineInt, format, type Format, type PackedTensor } from "../../formats/index.ts";
import { dequantize } from "../../src/index.ts";
import { activationSpan, largestCode, product, quantizedActivations, type Expected } from "../oracle/product.ts";

const named = [
  "int2_b32", "int2_b256", "int3_b32", "int3_b256", "int4_b8", "int4_b16", "int4_b32", "int4_b64", "int4_b128", "int4_b256", "int5_b32", "int6_b32", "int7_b32", "int8_b32", "int4_row", "int8_row",
  "int8_tensor", "uint2_b32_zp", "uint4_b32_zp", "uint8_b32_zp", "uint4_row_zp", "float8_e4m3fn_tensor", "float4_e2m1fn_b32",
]; // prettier-ignore

const user: Format[] = [
  defineBlock({
    name: "user_int4_24",
    element: defineInt({ name: "user_int4", bits: 4, signed: true }),
    scales: [{ format: format("float32") as never, span: 24 }],
  } as never),
];

/** Formats of the library, parametric ones and one of a user. */
export function productFormats(): Format[] {
  const all = [...allFormats, ...named.map((name) => format(name)), ...user] as Format[];
  return [...new Map(all.map((f) => [f.name, f])).values()];
}

/** Elements of a block along k, or 32. */
export const blockOf = (f: Format): number =>
  f.kind === "opaque" ? f.blockSize : f.kind === "block" && typeof f.scales[0].span === "number" ? f.scales[0].span : 32;

/** Whether k must be whole blocks. */
export const wholeBlocks = (f: Format): boolean => f.kind === "opaque" || (f.kind === "block" && f.tail === "error");

/**
 * The span of a scale, magnitudes that stand for |w| where offsets cancel, and `slack`: a unit of 1/32767 of the
 * largest value of the element under its scale, for kernels that keep a table as fixed point.
 */
export function productFacts(w: PackedTensor): { readonly span: number; readonly size: Float64Array; readonly slack: Float64Array } {
  const { rows, k, format: f } = w;
  const size = new Float64Array(rows * k);
  const slack = new Float64Array(rows * k);
  dequantizeRows(w, 0, rows, size);
  for (let i = 0; i < size.length; i++) size[i] = Math.abs(size[i]);
  if (f.kind === "opaque" && f.planes !== undefined) {
    const span = f.planes.scales[0].span as number;
    const mins = new Float64Array((rows * k) / span);
    f.readPlanes!(w.codes, new Uint8Array(rows * k), new Float64Array(mins.length), mins);
    for (let i = 0; i < rows * k; i++) size[i] += 2 * Math.abs(mins[Math.floor(i / span)]);
    return { span, size, slack };
  }
  const element = elementOf(w);
  if (element === null) return { span: k, size, slack };
  const largest = Math.max(
    ...(element.table === null ? [element.limits.max] : Array.from(element.table).filter(Number.isFinite).map(Math.abs)),
  );
  if (f.kind !== "block") return { span: k, size, slack: slack.fill(largest / 32767) };
  const levels = rowScales(w, f);
  const scale = new Float64Array(levels.blocks);
  const offset = new Float64Array(levels.blocks);
  for (let r = 0; r < rows; r++) {
    levels.fill(r, scale, offset);
    for (let i = 0; i < k; i++) {
      const b = Math.floor(i / levels.span);
      slack[r * k + i] = (Math.abs(scale[b]) * largest) / 32767;
      if (f.offset !== undefined) size[r * k + i] += 2 * Math.abs(f.offset.role === "zeroPoint" ? offset[b] * scale[b] : offset[b]);
    }
  }
  return { span: levels.span, size, slack };
}

/**
 * The oracle's x * w^T with activations quantized to `bits` (null: as they are). `eps`: relative error of storing an
 * activation, beside float32 sums.
 */
export function expectedProduct(w: PackedTensor, x: Float32Array, m: number, bits: number | null, eps = 0): Expected {
  const { rows: n, k } = w;
  const { span, size } = productFacts(w);
  const values = dequantize(w, { dtype: "float64" });
  const group = bits === null ? k : activationSpan(span, k);
  const acts = bits === null ? x : quantizedActivations(x, m, k, bits, group);
  const expected = product(acts, values, m, n, k, { steps: k + 16, size, slack: size.map((v) => v * eps) });
  if (bits === null) return expected;
  // WGSL divides within 2.5 units in the last place: a quotient that close to a half may round to either side
  const max = largestCode(bits);
  for (let r = 0; r < m; r++)
    for (let begin = 0; begin < k; begin += group) {
      const end = Math.min(k, begin + group);
      let amax = 0;
      for (let i = begin; i < end; i++) amax = Math.max(amax, Math.abs(x[r * k + i]));
      const scale = Math.fround(amax / max);
      for (let i = begin; i < end; i++) {
        const quotient = Math.abs(x[r * k + i]) / scale;
        if (Math.abs(quotient - Math.floor(quotient) - 0.5) > quotient * 2 ** -20) continue;
        for (let c = 0; c < n; c++) expected.bound[r * n + c] += scale * size[c * k + i];
      }
    }
  return expected;
}
