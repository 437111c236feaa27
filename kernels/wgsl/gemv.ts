// Products of a few rows of activations (1, 2 or 4) in WGSL: a workgroup computes `rows` outputs per row of x, its lanes take chunks of 32 elements of k in turn and
// add up at the end, by subgroup operations of any size or a tree in workgroup memory. One row of x passes through workgroup memory, read in order.
import { chunkGroups, entry, groupTerms, isInteger, loadTable, productHeader, staticQuad, type ProductSpec } from "./product.ts";

export interface GemvSpec extends ProductSpec {
  /** Rows of x: 1, 2 or 4. */
  readonly m: number;
  /** Rows of w per workgroup. */
  readonly n: number;
  /** Invocations of a workgroup. */
  readonly size: number;
}

const vector = (words: number): { readonly type: string; readonly wide: number } =>
  words % 4 === 0 ? { type: "vec4u", wide: 4 } : words % 2 === 0 ? { type: "vec2u", wide: 2 } : { type: "u32", wide: 1 };

export function gemvShader(spec: GemvSpec): string {
  const { m, n, size } = spec;
  const integer = isInteger(spec);
  const { type, wide } = vector(spec.bits);
  const outputs = m * n;
  const acc = (r: number, c: number): string => `acc${r}_${c}`;
  // x of one row through workgroup memory: quad q of lane l at [q][l], one lane of padding against bank conflicts
  const staged = !integer && m === 1;
  const lines: string[] = [];
  for (let r = 0; r < m; r++) for (let c = 0; c < n; c++) lines.push(`var ${acc(r, c)} = 0.0;`);
  lines.push(loadTable(spec, size));
  if (loadTable(spec, size) !== "" && !staged) lines.push("workgroupBarrier();");
  lines.push(`for (var base = 0u; base < params.chunks; base += ${size}u) {`);
  const quadOf = (at: string): string =>
    spec.x === "float16" ? `vec4f(unpack2x16float(x[${at}].x), unpack2x16float(x[${at}].y))` : `x[${at}]`;
  if (staged)
    lines.push(
      "workgroupBarrier();",
      `for (var i = id; i < ${8 * size}u; i += ${size}u) {`,
      `  if (base * 8u + i < params.chunks * 8u) { stage[(i & 7u) * ${size + 1}u + (i >> 3u)] = ${quadOf("base * 8u + i")}; }`,
      "}",
      "workgroupBarrier();",
    );
  lines.push("let c = base + id;", "if (c < params.chunks) {");
  const { first, units } = chunkGroups(spec);
  const per = 8 / units;
  for (let r = 0; r < m; r++) {
    const row = `min(${r}u, params.m - 1u)`;
    if (integer) {
      const planes = spec.x === "int16" ? 2 : 1;
      for (let p = 0; p < planes; p++)
        for (let h = 0; h < 2; h++) lines.push(`let x${r}_${p}_${h} = x[((${row} * ${planes}u + ${p}u) * params.chunks + c) * 2u + ${h}u];`);
      for (let u = 0; u < units; u++) lines.push(`let f${r}_${u} = facts[(${row} * params.chunks + c) * ${units}u + ${u}u];`);
    } else
      for (let q = 0; q < 8; q++)
        lines.push(`let x${r}_${q} = ${staged ? `stage[${q * (size + 1)}u + id]` : quadOf(`(${row} * params.chunks + c) * 8u + ${q}u`)};`);
    if (!integer && spec.add)
      for (let u = 0; u < units; u++) {
        const quads = Array.from({ length: per }, (_, i) => `x${r}_${u * per + i}`);
        lines.push(`let sum${r}_${u} = dot(${quads.join(" + ")}, vec4f(1.0));`);
      }
  }
  for (let c = 0; c < n; c++) {
    lines.push("{", `let row = min(first + ${c}u, params.rows - 1u);`, `let at = (row * params.chunks + c) * ${spec.bits / wide}u;`);
    for (let v = 0; v < spec.bits / wide; v++) lines.push(`let v${v} = w[at + ${v}u];`);
    const word = (i: number): string => (wide === 1 ? `v${i}` : `v${Math.floor(i / wide)}.${"xyzw"[i % wide]}`);
    for (let u = 0; u < units; u++) {
      const g = units === 1 ? first : `${first} + ${u}u`;
      lines.push("{", `let g = ${g};`);
      const { scale, zero, add } = groupTerms(spec, "g");
      lines.push(`let s = ${scale};`);
      if (zero !== null) lines.push(`let z = ${zero};`);
      if (add !== null) lines.push(`let d = ${add};`);
      for (let i = 0; i < per; i++) {
        const quad = staticQuad(spec, u * per + i, word);
        lines.push(`let q${i} = ${quad}${!integer && zero !== null ? " - z" : ""};`);
      }
      for (let r = 0; r < m; r++) {
        if (integer) {
          const plane = (p: number): string =>
            Array.from({ length: per }, (_, i) => u * per + i)
              .map((q, i) => `dot4I8Packed(x${r}_${p}_${q >> 2}.${"xyzw"[q & 3]}, q${i})`)
              .join(" + ");
          const product = spec.x === "int16" ? `((${plane(0)}) << 8u) + ${plane(1)}` : plane(0);
          const twice = spec.doubled ? `2 * (${product})` : product;
          const f = `f${r}_${u}`;
          const sum = `bitcast<i32>(${f}.y)`;
          lines.push(`${acc(r, c)} += f32(${twice}${zero === null ? "" : ` - z * ${sum}`}) * (s * bitcast<f32>(${f}.x));`);
          if (add !== null) lines.push(`${acc(r, c)} += d * (f32(${sum}) * bitcast<f32>(${f}.x));`);
        } else {
          const dots = Array.from({ length: per }, (_, i) => `dot(x${r}_${u * per + i}, q${i})`).join(" + ");
          lines.push(spec.scale ? `${acc(r, c)} += s * (${dots});` : `${acc(r, c)} += ${dots};`);
          if (add !== null) lines.push(`${acc(r, c)} += d * sum${r}_${u};`);
        }
      }
      lines.push("}");
    }
    lines.push("}");
  }
  lines.push("}", "}");
  // sums over lanes
  for (let r = 0; r < m; r++) for (let c = 0; c < n; c++) lines.push(reduceStart(spec, r * n + c, acc(r, c)));
  lines.push("workgroupBarrier();");
  if (spec.subgroups) {
    // every subgroup adds the sums of all subgroups: each lies at the lowest lane of its own, the others are zero
    for (let o = 0; o < outputs; o++)
      lines.push(`var t${o} = 0.0; for (var i = lane; i < ${size}u; i += lanes) { t${o} += red[${o * size}u + i]; } t${o} = subgroupAdd(t${o});`);
    lines.push("var total = 0.0;");
    for (let o = 0; o < outputs; o++) lines.push(`if (id == ${o}u) { total = t${o}; }`);
  } else {
    lines.push(
      `for (var stride = ${size / 2}u; stride > 0u; stride >>= 1u) {`,
      `  if (id < stride) { ${Array.from({ length: outputs }, (_, o) => `red[${o * size}u + id] += red[${o * size}u + id + stride];`).join(" ")} }`,
      "  workgroupBarrier();",
      "}",
      `var total = 0.0; if (id < ${outputs}u) { total = red[id * ${size}u]; }`,
    );
  }
  lines.push(
    `let r = id / ${n}u; let column = first + id % ${n}u;`,
    `if (id < ${outputs}u && r < params.m && column < params.rows) { y[r * params.columns + params.column + column] = finish(total, params.column + column); }`,
  );
  const builtins = spec.subgroups ? ", @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32" : "";
  return `${productHeader(spec, type)}
${staged ? `var<workgroup> stage: array<vec4f, ${8 * (size + 1)}>;\n` : ""}var<workgroup> red: array<f32, ${outputs * size}>;
${entry(size, builtins)} {
  let first = (block.x + block.y * blocks.x) * ${n}u;
  ${lines.filter((line) => line !== "").join("\n  ")}
}
`;
}

function reduceStart(spec: GemvSpec, o: number, acc: string): string {
  const at = `red[${o * spec.size}u + id]`;
  if (!spec.subgroups) return `${at} = ${acc};`;
  return `{ let sum = subgroupAdd(${acc}); ${at} = select(0.0, sum, id == subgroupMin(id)); }`;
}

/** Workgroups for a part of `rows` rows. */
export const gemvGroups = (spec: GemvSpec, rows: number): number => Math.ceil(rows / spec.n);
