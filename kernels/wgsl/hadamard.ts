// Fast Walsh-Hadamard transform of rows of n = 2^p float32 in place, WGSL: y = scale * H x, Sylvester order. `tile`
// does every level below its length in workgroup memory, two at a time in registers; `far` does up to three levels at
// distances of whole tiles. Butterflies are those of the textbook in the same order, so results differ from float32
// ones only where a device flushes subnormal numbers. Levels are parameters: few pipelines serve every n.

export type HadamardShader =
  | { readonly part: "tile"; /** Values of a workgroup; 16 KiB of memory at most. */ readonly length: 1024 | 4096 }
  | { readonly part: "far"; readonly levels: 1 | 2 | 3 };

export interface HadamardPass {
  readonly spec: HadamardShader;
  /** tile: n, or its own length. far: the distance between the elements of a butterfly of its first level. */
  readonly distance: number;
}

/** Invocations of a workgroup. */
const SIZE = 256;
/** Values per invocation and butterfly of `tile`. */
const RADIX = 4;

/** Passes over rows of n values, in order: each is one dispatch. */
export function hadamardPasses(n: number): readonly HadamardPass[] {
  const length = n <= 1024 ? 1024 : 4096;
  const passes: HadamardPass[] = [{ spec: { part: "tile", length }, distance: Math.min(n, length) }];
  for (let distance = length; distance < n;) {
    const levels = Math.min(3, Math.log2(n / distance)) as 1 | 2 | 3;
    passes.push({ spec: { part: "far", levels }, distance });
    distance *= 2 ** levels;
  }
  return passes;
}

/** Workgroups of a pass over `count` values. */
export const hadamardGroups = (spec: HadamardShader, count: number): number =>
  Math.ceil(count / (spec.part === "tile" ? spec.length : SIZE * 2 ** spec.levels));

/** Butterflies on registers v0, v1, ... at distance h. */
const butterflies = (radix: number, h: number): string =>
  Array.from({ length: radix }, (_, i) => i)
    .filter((i) => (i & h) === 0)
    .map((i) => `t = v${i} - v${i + h}; v${i} += v${i + h}; v${i + h} = t;`)
    .join(" ");

const header = `
struct Params { count: u32, distance: u32, scale: f32 }
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> params: Params;
`;
const entry = `@compute @workgroup_size(${SIZE}) fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) id: u32) {`;

function tileShader(length: number): string {
  const names = Array.from({ length: RADIX }, (_, i) => `v${i}`);
  return `${header}
var<workgroup> tile: array<f32, ${length}>;
${entry}
  let base = (group.x + group.y * groups.x) * ${length}u;
  for (var i = id; i < ${length}u; i += ${SIZE}u) {
    tile[i] = 0.0;
    if (base + i < params.count) { tile[i] = x[base + i]; }
  }
  let n = params.distance;
  for (var stride = 1u; stride < n; stride *= ${RADIX}u) {
    workgroupBarrier();
    for (var i = id; i < ${length / RADIX}u; i += ${SIZE}u) {
      let first = (i / stride) * (stride * ${RADIX}u) + i % stride;
      var t: f32;
      ${names.map((v, i) => `var ${v} = tile[first + ${i}u * stride];`).join("\n      ")}
      ${butterflies(RADIX, 1)}
      if (2u * stride < n) { ${butterflies(RADIX, 2)} }
      ${names.map((v, i) => `tile[first + ${i}u * stride] = ${v};`).join("\n      ")}
    }
  }
  workgroupBarrier();
  for (var i = id; i < ${length}u; i += ${SIZE}u) {
    if (base + i < params.count) { x[base + i] = tile[i] * params.scale; }
  }
}
`;
}

function farShader(levels: number): string {
  const radix = 2 ** levels;
  const names = Array.from({ length: radix }, (_, i) => `v${i}`);
  return `${header}
${entry}
  let i = (group.x + group.y * groups.x) * ${SIZE}u + id;
  let d = params.distance;
  let first = (i / d) * (d * ${radix}u) + i % d;
  if (first >= params.count) { return; }
  var t: f32;
  ${names.map((v, j) => `var ${v} = x[first + ${j}u * d];`).join("\n  ")}
  ${Array.from({ length: levels }, (_, level) => butterflies(radix, 2 ** level)).join("\n  ")}
  ${names.map((v, j) => `x[first + ${j}u * d] = ${v} * params.scale;`).join("\n  ")}
}
`;
}

/** WGSL of one pass. Bindings: x (read and written), params { count, distance, scale } (uniform). */
export const hadamardShader = (spec: HadamardShader): string => (spec.part === "tile" ? tileShader(spec.length) : farShader(spec.levels));

export const hadamardShaderName = (spec: HadamardShader): string =>
  `f32_hadamard_${spec.part === "tile" ? `tile${spec.length}` : `far${2 ** spec.levels}`}__wgsl`;
