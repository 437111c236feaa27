// Fast Walsh-Hadamard transform of rows of n = 2^p float32 in place, WGSL: y = scale * H x, Sylvester order. `tile` does every level below its length in workgroup
// memory, radix 4 to 16 in registers; `far` does up to four levels at distances of whole tiles. Butterflies are those of the textbook in the same order, so
// results differ from float32 ones only where a device flushes subnormal numbers.
export interface HadamardShader {
  readonly part: "tile" | "far";
  /** tile: levels 0 .. levels - 1, at most 12. far: number of levels, at most 4. */
  readonly levels: number;
}

/** Invocations of a workgroup. */
const SIZE = 256;

/** Values that one workgroup of `tile` transforms: 16 KiB of workgroup memory at most. */
export const hadamardTile = (levels: number): number => Math.max(1024, 2 ** levels);

/** Levels of rows of n values, in order: each entry is one dispatch. `distance`: between the elements of a `far` butterfly of the first level. */
export function hadamardPasses(n: number): readonly (HadamardShader & { readonly distance: number })[] {
  const all = Math.log2(n);
  const first = Math.min(12, all);
  const passes: (HadamardShader & { distance: number })[] = [{ part: "tile", levels: first, distance: 1 }];
  for (let done = first; done < all;) {
    const levels = Math.min(4, all - done);
    passes.push({ part: "far", levels, distance: 2 ** done });
    done += levels;
  }
  return passes;
}

/** Workgroups of a pass over `count` values. */
export const hadamardGroups = (spec: HadamardShader, count: number): number =>
  Math.ceil(count / (spec.part === "tile" ? hadamardTile(spec.levels) : SIZE * 2 ** spec.levels));

/** Butterflies on registers v0, v1, ... at distances 1, 2, ... below `reach`. */
function butterflies(radix: number, reach: number): string[] {
  const lines: string[] = [];
  for (let h = 1; h < reach; h *= 2)
    for (let i = 0; i < radix; i++) {
      if ((i & h) !== 0) continue;
      lines.push(`t = v${i} - v${i + h}; v${i} += v${i + h}; v${i + h} = t;`);
    }
  return lines;
}

const header = `
struct Params { count: u32, distance: u32, scale: f32 }
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<uniform> params: Params;
`;
const entry = `@compute @workgroup_size(${SIZE}) fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) id: u32) {`;

function tileShader(levels: number): string {
  const length = hadamardTile(levels);
  const radix = length / SIZE;
  const names = Array.from({ length: radix }, (_, i) => `v${i}`);
  const passes: string[] = [];
  for (let stride = 1; stride < 2 ** levels; stride *= radix) {
    const at = (i: number): string => `tile[first + ${i * stride}u]`;
    passes.push(
      `first = (id / ${stride}u) * ${stride * radix}u + id % ${stride}u;`,
      ...names.map((v, i) => `${v} = ${at(i)};`),
      ...butterflies(radix, Math.min(radix, 2 ** levels / stride)),
      ...names.map((v, i) => `${at(i)} = ${v};`),
      "workgroupBarrier();",
    );
  }
  return `${header}
var<workgroup> tile: array<f32, ${length}>;
${entry}
  let base = (group.x + group.y * groups.x) * ${length}u;
  for (var i = id; i < ${length}u; i += ${SIZE}u) {
    tile[i] = 0.0;
    if (base + i < params.count) { tile[i] = x[base + i]; }
  }
  workgroupBarrier();
  var first: u32; var t: f32;
  ${names.map((v) => `var ${v}: f32;`).join(" ")}
  ${passes.join("\n  ")}
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
  ${butterflies(radix, radix).join("\n  ")}
  ${names.map((v, j) => `x[first + ${j}u * d] = ${v} * params.scale;`).join("\n  ")}
}
`;
}

/** WGSL of one pass. Bindings: x (read and written), params { count, distance, scale } (uniform). */
export const hadamardShader = (spec: HadamardShader): string => (spec.part === "tile" ? tileShader(spec.levels) : farShader(spec.levels));

export const hadamardShaderName = (spec: HadamardShader): string => `f32_hadamard${2 ** spec.levels}_${spec.part}__wgsl`;
