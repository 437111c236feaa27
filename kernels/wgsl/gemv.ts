// Products of a few rows of activations (1, 2 or 4) in WGSL: a workgroup computes `rows` outputs per row of x, its
// lanes take chunks of 32 elements of k in turn and add up at the end, by subgroup operations of any size or a tree in
// workgroup memory. One row of x passes through workgroup memory, read in order.
import { chunkGroups, entry, groupTerms, isInteger, loadTable, productHeader, staticQuad, type ProductSpec } from "./product.ts";

export interface GemvSpec extends ProductSpec {
  /** Rows of x: 1, 2 or 4. */
  readonly m: number;
  /** Rows of w per workgroup: at most 4 for one row of x, else 1 or 2. */
  readonly n: number;
  /** Invocations of a workgroup. */
  readonly size: number;
}

/**
 * Rows of w per workgroup for m rows of x. Look-ups make long code, which software drivers take seconds to compile when
 * it is repeated per row.
 */
export function gemvRows(spec: Pick<ProductSpec, "x" | "bits" | "decode">, m: number): number {
  if (!isInteger(spec) && spec.decode.kind === "table" && (m > 1 || spec.bits > 4)) return 1;
  return m === 1 && spec.bits <= 8 ? 4 : 2;
}

const vector = (words: number): { readonly type: string; readonly wide: number } =>
  words % 4 === 0 ? { type: "vec4u", wide: 4 } : words % 2 === 0 ? { type: "vec2u", wide: 2 } : { type: "u32", wide: 1 };

export function gemvShader(spec: GemvSpec): string {
  const { m, n, size } = spec;
  const { type, wide } = vector(spec.bits);
  // x of one row of floats through workgroup memory: quad q of lane l at [q][l], one lane of padding against bank
  // conflicts
  const staged = !isInteger(spec) && m === 1;
  const load = loadTable(spec, size);
  const lines = [
    ...Array.from({ length: m === 1 ? 1 : n }, (_, c) => `var acc${c} = vec4f();`),
    load,
    load !== "" && !staged ? "workgroupBarrier();" : "",
    `for (var base = 0u; base < params.chunks; base += ${size}u) {`,
    ...(staged
      ? [
          "workgroupBarrier();",
          `for (var i = id; i < ${8 * size}u; i += ${size}u) {`,
          `  if (base * 8u + i < params.chunks * 8u) { stage[(i & 7u) * ${size + 1}u + (i >> 3u)] = ${quadOf(spec, "base * 8u + i")}; }`,
          "}",
          "workgroupBarrier();",
        ]
      : []),
    "let c = base + id;",
    "if (c < params.chunks) {",
    // all rows are asked for before the first is used
    ...Array.from({ length: n }, (_, r) => [
      `let at${r} = (min(first + ${r}u, params.rows - 1u) * params.chunks + c) * ${spec.bits / wide}u;`,
      ...Array.from({ length: spec.bits / wide }, (_, v) => `let v${r}_${v} = w[at${r} + ${v}u];`),
    ]).flat(),
    ...(m === 1 ? oneRow(spec, wide) : manyRows(spec, wide)),
    "}",
    "}",
    ...reduction(spec),
  ];
  const builtins = spec.subgroups ? ", @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) lanes: u32" : "";
  return `${productHeader(spec, type)}
${staged ? `var<workgroup> stage: array<vec4f, ${8 * (size + 1)}>;\n` : ""}var<workgroup> red: array<vec4f, ${(m === 1 ? 1 : n) * size}>;
${entry(size, builtins)} {
  let first = (block.x + block.y * blocks.x) * ${n}u;
  ${lines.filter((line) => line !== "").join("\n  ")}
}
`;
}

const quadOf = (spec: GemvSpec, at: string): string =>
  spec.x === "float16" ? `vec4f(unpack2x16float(x[${at}].x), unpack2x16float(x[${at}].y))` : `x[${at}]`;

/** Loads of the chunk of row `row` of x: quads x0..x7, or planes of codes and facts, and the sums that addends need. */
function loadX(spec: GemvSpec, row: string, staged: boolean): string[] {
  const { units } = chunkGroups(spec);
  const per = 8 / units;
  const lines: string[] = [];
  if (isInteger(spec)) {
    const planes = spec.x === "int16" ? 2 : 1;
    for (let p = 0; p < planes; p++)
      for (let h = 0; h < 2; h++) lines.push(`let x${p}_${h} = x[((${row} * ${planes}u + ${p}u) * params.chunks + c) * 2u + ${h}u];`);
    for (let u = 0; u < units; u++) lines.push(`let f${u} = facts[(${row} * params.chunks + c) * ${units}u + ${u}u];`);
    return lines;
  }
  for (let q = 0; q < 8; q++)
    lines.push(
      `let x${q} = ${staged ? `stage[${q * (spec.size + 1)}u + id]` : quadOf(spec, `(${row} * params.chunks + c) * 8u + ${q}u`)};`,
    );
  if (spec.add)
    for (let u = 0; u < units; u++)
      lines.push(`let sum${u} = dot(${Array.from({ length: per }, (_, i) => `x${u * per + i}`).join(" + ")}, vec4f(1.0));`);
  return lines;
}

/**
 * The quads of one chunk of w, zeros subtracted, and the terms of its groups; `word` gives the words, `tag` ends the
 * names.
 */
function loadW(spec: GemvSpec, word: (i: number) => string, tag: string): string[] {
  const { first, units } = chunkGroups(spec);
  const per = 8 / units;
  const lines: string[] = [];
  for (let u = 0; u < units; u++) {
    lines.push(`let g${tag}_${u} = ${first}${units === 1 ? "" : ` + ${u}u`};`);
    const { scale, zero, add } = groupTerms(spec, `g${tag}_${u}`);
    lines.push(`let s${tag}_${u} = ${scale};`);
    if (zero !== null) lines.push(`let z${tag}_${u} = ${zero};`);
    if (add !== null) lines.push(`let d${tag}_${u} = ${add};`);
    for (let i = u * per; i < (u + 1) * per; i++)
      lines.push(`let q${tag}_${i} = ${staticQuad(spec, i, word)}${!isInteger(spec) && zero !== null ? ` - z${tag}_${u}` : ""};`);
  }
  return lines;
}

/** The sum of a chunk: scaled, addends included. */
function chunkSum(spec: GemvSpec, tag: string): string {
  const { units } = chunkGroups(spec);
  const per = 8 / units;
  const terms: string[] = [];
  for (let u = 0; u < units; u++) {
    const quads = Array.from({ length: per }, (_, i) => u * per + i);
    if (isInteger(spec)) {
      const plane = (p: number): string => quads.map((q) => `dot4I8Packed(x${p}_${q >> 2}.${"xyzw"[q & 3]}, q${tag}_${q})`).join(" + ");
      const product = spec.x === "int16" ? `((${plane(0)}) << 8u) + ${plane(1)}` : plane(0);
      const sum = `bitcast<i32>(f${u}.y)`;
      const zero = spec.zero === "none" ? "" : ` - z${tag}_${u} * ${sum}`;
      terms.push(`f32(${spec.doubled ? `2 * (${product})` : product}${zero}) * (s${tag}_${u} * bitcast<f32>(f${u}.x))`);
      if (spec.add) terms.push(`d${tag}_${u} * (f32(${sum}) * bitcast<f32>(f${u}.x))`);
    } else {
      const dots = quads.map((q) => `dot(x${q}, q${tag}_${q})`).join(" + ");
      terms.push(spec.scale ? `s${tag}_${u} * (${dots})` : dots);
      if (spec.add) terms.push(`d${tag}_${u} * sum${u}`);
    }
  }
  return terms.join(" + ");
}

/** Component `index` of a vector of accumulators, without indexing at run time. */
const only = (value: string, index: string): string => `select(vec4f(), vec4f(${value}), vec4u(0u, 1u, 2u, 3u) == vec4u(${index}))`;

/**
 * One row of x in registers, a loop over the rows of w, of a length that compilers do not know: short code compiles in
 * a fraction of the time.
 */
function oneRow(spec: GemvSpec, wide: number): string[] {
  const { n, bits } = spec;
  const lines = loadX(spec, "0u", !isInteger(spec));
  lines.push(`for (var r = 0u; r < min(${n}u, params.rows - first); r++) {`, "let row = first + r;");
  for (let v = 0; v < bits / wide; v++) {
    let text = `v0_${v}`;
    for (let r = 1; r < n; r++) text = `select(${text}, v${r}_${v}, r == ${r}u)`;
    lines.push(`let v${v} = ${text};`);
  }
  lines.push(
    ...loadW(spec, (i) => component(`v${Math.floor(i / wide)}`, i, wide), ""),
    `let t = ${chunkSum(spec, "")};`,
    `acc0 += ${only("t", "r")};`,
    "}",
  );
  return lines;
}

/** The rows of w in registers, a loop over the rows of x. */
function manyRows(spec: GemvSpec, wide: number): string[] {
  const { n } = spec;
  const lines: string[] = [];
  for (let c = 0; c < n; c++)
    lines.push(
      ...loadW(spec, (i) => component(`v${c}_${Math.floor(i / wide)}`, i, wide), `${c}`).map((line) =>
        line.replace("row * params.groups", `min(first + ${c}u, params.rows - 1u) * params.groups`),
      ),
    );
  lines.push("for (var r = 0u; r < params.m; r++) {", ...loadX(spec, "r", false));
  for (let c = 0; c < n; c++) lines.push(`acc${c} += ${only(chunkSum(spec, `${c}`), "r")};`);
  lines.push("}");
  return lines;
}

const component = (v: string, i: number, wide: number): string => (wide === 1 ? v : `${v}.${"xyzw"[i % wide]}`);

/** Sums over lanes: of accumulators whose components are rows of w (one row of x) or of x. */
function reduction(spec: GemvSpec): string[] {
  const { m, n, size } = spec;
  const vectors = m === 1 ? 1 : n;
  const vectorsText = (text: (v: number) => string): string => Array.from({ length: vectors }, (_, v) => text(v)).join(" ");
  const lines: string[] = [];
  for (let v = 0; v < vectors; v++)
    lines.push(
      spec.subgroups
        ? // the sum of a subgroup lies at its lowest lane, the others hold zero: sizes and numbering do not matter
          `{ let sum = subgroupAdd(acc${v}); red[${v * size}u + id] = select(vec4f(), sum, id == subgroupMin(id)); }`
        : `red[${v * size}u + id] = acc${v};`,
    );
  lines.push("workgroupBarrier();");
  if (spec.subgroups)
    for (let v = 0; v < vectors; v++)
      lines.push(
        `var t${v} = vec4f(); for (var i = lane; i < ${size}u; i += lanes) { t${v} += red[${v * size}u + i]; }`,
        `let total${v} = subgroupAdd(t${v});`,
      );
  else
    lines.push(
      // two levels of eight: few barriers, which cost more than additions
      `if (id < 8u) { for (var i = id + 8u; i < ${size}u; i += 8u) { ${vectorsText((v) => `red[${v * size}u + id] += red[${v * size}u + i];`)} } }`,
      "workgroupBarrier();",
      ...Array.from({ length: vectors }, (_, v) => `var total${v} = red[${v * size}u];`),
      `for (var i = 1u; i < 8u; i++) { ${vectorsText((v) => `total${v} += red[${v * size}u + i];`)} }`,
    );
  // lane i finishes output i: component i of the only vector, or of x row i / n in vector i % n
  const total = m === 1 ? "total0[id & 3u]" : n === 1 ? "total0[id & 3u]" : `select(total0, total1, id % 2u == 1u)[(id / 2u) & 3u]`;
  const [r, column] = m === 1 ? ["0u", "id"] : [`id / ${n}u`, `id % ${n}u`];
  lines.push(
    `let line = ${r}; let column = first + ${column};`,
    `if (id < ${m * n}u && line < params.m && column < params.rows) { let total = ${total}; y[line * params.columns + params.column + column] = finish(total, params.column + column); }`,
  );
  return lines;
}

/** Workgroups for a part of `rows` rows. */
export const gemvGroups = (spec: GemvSpec, rows: number): number => Math.ceil(rows / spec.n);
