// Exact integer products, WGSL: y[m, n] = slope * U + rowTerms[m] + columnTerms[n] modulo 2^32, where U[m, n] sums
// products of two kinds: `planes`: unsigned words of p and q bits by AND and countOneBits of single-bit planes, plane
// pair (i, j) with weight 2^(i + j), 128 elements of k per vec4u; `bytes`: int8 x int8 by dot4I8Packed, 16 elements of
// k per vec4u. Offsets (bipolar words, two's complement, uint8) are the caller's, in the terms. A workgroup makes
// `rows` x 64 results; four slices of it share k and add up in workgroup memory.

export type IntegerSpec =
  | { readonly kind: "planes"; /** One plane on either side. */ readonly single: boolean; readonly rows: number }
  | { readonly kind: "bytes"; readonly rows: number };

/** Columns of a workgroup; weights are padded to whole ones. */
export const INTEGER_COLUMNS = 64;
const SLICES = 4;

/** Elements of k in one vec4u. */
export const integerStep = (kind: IntegerSpec["kind"]): number => (kind === "planes" ? 128 : 16);

/** Rows of a workgroup: one for products with a vector, else four. */
export const integerRows = (m: number): number => (m === 1 ? 1 : 4);

/**
 * Writes words or bytes [n, k] (a function of row and element) as the weight of a kernel: vec4u by
 * [vector][plane][column], `columns` of them.
 */
export function packIntegerWeight(
  word: (row: number, at: number) => number,
  n: number,
  k: number,
  layout: { readonly kind: IntegerSpec["kind"]; readonly bits: number },
  target: Uint32Array,
): void {
  const columns = Math.ceil(n / INTEGER_COLUMNS) * INTEGER_COLUMNS;
  target.fill(0);
  for (let j = 0; j < n; j++)
    for (let i = 0; i < k; i++) {
      const u = word(j, i);
      if (layout.kind === "bytes") target[((i >> 4) * columns + j) * 4 + ((i >> 2) & 3)] |= (u & 255) << (8 * (i & 3));
      else
        for (let plane = 0; plane < layout.bits; plane++)
          target[(((i >> 7) * layout.bits + plane) * columns + j) * 4 + ((i >> 5) & 3)] |= ((u >> plane) & 1) << (i & 31);
    }
}

/** Words of a weight in the layout of `packIntegerWeight`. */
export const integerWeightWords = (n: number, k: number, kind: IntegerSpec["kind"], bits: number): number =>
  Math.ceil(n / INTEGER_COLUMNS) * INTEGER_COLUMNS * Math.ceil(k / integerStep(kind)) * (kind === "planes" ? bits : 1) * 4;

/**
 * Bindings: params { rows, columns, stride, vectors, slope, p, q } (uniform; p and q planes, 1 for bytes), a
 * [row][vector][plane], w [vector][plane][stride], rowTerms, columnTerms, y (written).
 */
export function integerShader(spec: IntegerSpec): string {
  const { rows } = spec;
  const each = (f: (r: number) => string): string => Array.from({ length: rows }, (_, r) => f(r)).join("\n");
  // numbers of planes are parameters: loops with constant bounds would be unrolled, 64 times over for 8 bits, and
  // drivers take seconds over those
  const inner =
    spec.kind === "bytes"
      ? `let b = w[v * params.stride + column];
${each((r) => `    u${r} += bytes(a[row${r} + v], b);`)}`
      : spec.single
        ? `let b = w[v * params.stride + column];
${each((r) => `    u${r} += ones(a[row${r} + v] & b);`)}`
        : `for (var j = 0u; j < params.q; j++) {
      let b = w[(v * params.q + j) * params.stride + column];
      for (var i = 0u; i < params.p; i++) {
${each((r) => `        u${r} += ones(a[row${r} + v * params.p + i] & b) << (i + j);`)}
      }
    }`;
  return `
struct Params { rows: u32, columns: u32, stride: u32, vectors: u32, slope: u32, p: u32, q: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4u>;
@group(0) @binding(2) var<storage, read> w: array<vec4u>;
@group(0) @binding(3) var<storage, read> rowTerms: array<u32>;
@group(0) @binding(4) var<storage, read> columnTerms: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<u32>;
var<workgroup> sums: array<u32, ${SLICES * INTEGER_COLUMNS * rows}>;
${
  spec.kind === "planes"
    ? "fn ones(v: vec4u) -> u32 { let c = countOneBits(v); return c.x + c.y + c.z + c.w; }"
    : `fn bytes(a: vec4u, b: vec4u) -> u32 {
  return bitcast<u32>(dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w));
}`
}
@compute @workgroup_size(${SLICES * INTEGER_COLUMNS})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) id: u32) {
  let blocks = params.stride / ${INTEGER_COLUMNS}u;
  let tile = group.x + group.y * groups.x;
  let first = (tile / blocks) * ${rows}u;
  if (first >= params.rows) { return; }
  let lane = id % ${INTEGER_COLUMNS}u;
  let column = (tile % blocks) * ${INTEGER_COLUMNS}u + lane;
${each((r) => `  let row${r} = min(first + ${r}u, params.rows - 1u) * params.vectors * params.p; var u${r} = 0u;`)}
  for (var v = id / ${INTEGER_COLUMNS}u; v < params.vectors; v += ${SLICES}u) {
    ${inner}
  }
${each((r) => `  sums[${r * SLICES * INTEGER_COLUMNS}u + id] = u${r};`)}
  workgroupBarrier();
  for (var r = id / ${INTEGER_COLUMNS}u; r < ${rows}u; r += ${SLICES}u) {
    if (first + r >= params.rows || column >= params.columns) { continue; }
    let at = r * ${SLICES * INTEGER_COLUMNS}u + lane;
    let u = ${Array.from({ length: SLICES }, (_, s) => `sums[at + ${s * INTEGER_COLUMNS}u]`).join(" + ")};
    y[(first + r) * params.columns + column] = params.slope * u + rowTerms[first + r] + columnTerms[column];
  }
}
`;
}

/** Workgroups of a product of `rows` rows with a weight of `stride` padded columns. */
export const integerGroups = (spec: IntegerSpec, rows: number, stride: number): number =>
  Math.ceil(rows / spec.rows) * (stride / INTEGER_COLUMNS);

export const integerShaderName = (spec: IntegerSpec): string =>
  `${spec.kind === "bytes" ? "a8_s32_int8" : spec.single ? "b1_s32_w1_bitplane" : "b_s32_w_bitplane"}_${spec.rows}x${INTEGER_COLUMNS}__wgsl`;
