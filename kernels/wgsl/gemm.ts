// Products of many rows of activations in WGSL: tiles of 16 or 64 rows x 64 columns, 256 invocations, 1 or 4 rows x 4
// columns each. Float activations: 16 of k at a time, weights decoded and scaled into workgroup memory. Integer
// activations: 32 of k at a time, exact int32 sums per chunk or scale, then scaled and added as float32.
import { CHUNK } from "./weight.ts";
import { dynamicQuad, entry, groupTerms, isInteger, parts, productHeader, tableBarrier, type ProductSpec } from "./product.ts";

export interface GemmSpec extends ProductSpec {
  /** Rows of a tile: 16 or 64. */
  readonly m: number;
}

const SIZE = 256;
/** Columns of a tile. */
export const GEMM_COLUMNS = 64;

export const gemmShader = (spec: GemmSpec): string => (isInteger(spec) ? integerShader(spec) : floatShader(spec));

/** Workgroups for m rows and a part of `rows` rows of w. */
export const gemmGroups = (spec: GemmSpec, m: number, rows: number): number => Math.ceil(m / spec.m) * Math.ceil(rows / GEMM_COLUMNS);

const start = `let across = (params.rows + ${GEMM_COLUMNS - 1}u) / ${GEMM_COLUMNS}u;
  let number = block.x + block.y * blocks.x;
  let top = (number / across) * TILE; let left = (number % across) * ${GEMM_COLUMNS}u;
  let tx = id & 15u; let ty = id >> 4u;`;

function each(spec: GemmSpec, body: (r: number, c: number) => string): string[] {
  const lines: string[] = [];
  for (let r = 0; r < spec.m / 16; r++) for (let c = 0; c < 4; c++) lines.push(body(r, c));
  return lines;
}

/** Results by two loops over what lies inside the matrix: one copy of the epilogue, not sixteen. */
function store(spec: GemmSpec): string[] {
  const rows = spec.m / 16;
  let row = "sum0";
  for (let r = 1; r < rows; r++) row = `select(${row}, sum${r}, r == ${r}u)`;
  return [
    ...Array.from({ length: rows }, (_, r) => `let sum${r} = vec4f(${[0, 1, 2, 3].map((c) => `acc${r}_${c}`).join(", ")});`),
    `for (var r = 0u; r < ${rows}u && top + ty + 16u * r < params.m; r++) {`,
    `  let sum = ${row};`,
    "  for (var c = 0u; c < 4u && left + tx + 16u * c < params.rows; c++) {",
    "    let column = params.column + left + tx + 16u * c;",
    "    y[(top + ty + 16u * r) * params.columns + column] = finish(sum[c], column);",
    "  }",
    "}",
  ];
}

function floatShader(spec: GemmSpec): string {
  const { m, group } = spec;
  const rows = m / 16;
  const scaleAt = `row * params.groups + ${group === CHUNK ? "(q >> 3u) / params.per" : `q / ${group / 4}u`}`;
  const { scale, zero, add } = groupTerms(spec, "g");
  const weight = [
    `fn weight(row: u32, q: u32) -> vec4f {`,
    `  let d = quad((row * params.chunks + (q >> 3u)) * ${spec.bits}u, q & 7u);`,
    ...(spec.scale || parts(spec) > 0 ? [`  let g = ${scaleAt};`] : []),
    `  return ${spec.scale ? `${scale} * ` : ""}(d${zero === null ? "" : ` - ${zero}`})${add === null ? "" : ` + ${add}`};`,
    "}",
  ].join("\n");
  const lines: string[] = [
    ...each(spec, (r, c) => `var acc${r}_${c} = 0.0;`),
    tableBarrier(spec, SIZE),
    // a lane loads quad `step` of one row of w and, where the tile has as many, of x
    `let step = id & 3u; let line = id >> 2u;`,
    `let wrow = min(left + line, params.rows - 1u); let xrow = min(top + line, params.m - 1u);`,
    "for (var q0 = 0u; q0 < params.chunks * 8u; q0 += 4u) {",
    `  ws[step * ${GEMM_COLUMNS + 1}u + line] = weight(wrow, q0 + step);`,
    `  ${m < GEMM_COLUMNS ? `if (line < ${m}u) ` : ""}{ let at = xrow * params.chunks * 8u + q0 + step; xs[step * ${m + 1}u + line] = ${
      spec.x === "float16" ? "vec4f(unpack2x16float(x[at].x), unpack2x16float(x[at].y))" : "x[at]"
    }; }`,
    "  workgroupBarrier();",
    // four of them; a length that compilers do not know keeps them from repeating the code
    "  for (var j = 0u; j < min(4u, params.chunks * 8u - q0); j++) {",
    ...Array.from({ length: rows }, (_, r) => `    let a${r} = xs[j * ${m + 1}u + ty + ${16 * r}u];`),
    ...Array.from({ length: 4 }, (_, c) => `    let b${c} = ws[j * ${GEMM_COLUMNS + 1}u + tx + ${16 * c}u];`),
    ...each(spec, (r, c) => `    acc${r}_${c} += dot(a${r}, b${c});`),
    "  }",
    "  workgroupBarrier();",
    "}",
    ...store(spec),
  ];
  return `${productHeader(spec, "u32")}${dynamicQuad(spec)}${weight}
var<workgroup> xs: array<vec4f, ${4 * (m + 1)}>;
var<workgroup> ws: array<vec4f, ${4 * (GEMM_COLUMNS + 1)}>;
${entry(SIZE)} {
  ${start.replace("TILE", `${m}u`)}
  ${lines.filter((line) => line !== "").join("\n  ")}
}
`;
}

function integerShader(spec: GemmSpec): string {
  const { m, group } = spec;
  const rows = m / 16;
  const planes = spec.x === "int16" ? 2 : 1;
  const units = CHUNK / group;
  const stride = GEMM_COLUMNS + 1;
  const scaleAt = `row * params.groups + ${group === CHUNK ? "c / params.per" : `c * ${units}u + u`}`;
  const { scale, zero, add } = groupTerms(spec, "g");
  const lines: string[] = [
    ...each(spec, (r, c) => `var acc${r}_${c} = 0.0;`),
    tableBarrier(spec, SIZE),
    "for (var c = 0u; c < params.chunks; c++) {",
    // half of the lanes load 16 elements of w each, the others x; all share the scales
    `  if (id < ${2 * GEMM_COLUMNS}u) {`,
    `    let line = id >> 1u; let h = id & 1u; let row = min(left + line, params.rows - 1u);`,
    `    let base = (row * params.chunks + c) * ${spec.bits}u; let q = 4u * h;`,
    `    ws[h * ${stride}u + line] = vec4u(quad(base, q), quad(base, q + 1u), quad(base, q + 2u), quad(base, q + 3u));`,
    "  } else {",
    `    let line = (id >> 1u) - ${GEMM_COLUMNS}u; let h = id & 1u;`,
    `    if (line < ${m}u) {`,
    `      let row = min(top + line, params.m - 1u);`,
    ...Array.from(
      { length: planes },
      (_, p) => `      xs[(${2 * p}u + h) * ${m + 1}u + line] = x[((row * ${planes}u + ${p}u) * params.chunks + c) * 2u + h];`,
    ),
    "    }",
    "  }",
    `  for (var i = id; i < ${GEMM_COLUMNS * units}u; i += ${SIZE}u) {`,
    `    let u = i / ${GEMM_COLUMNS}u; let row = min(left + i % ${GEMM_COLUMNS}u, params.rows - 1u); let g = ${scaleAt};`,
    `    sw[i] = ${scale};${spec.zero === "group" ? ` zw[i] = ${zero};` : ""}${add === null ? "" : ` dw[i] = ${add};`}`,
    "  }",
    `  for (var i = id; i < ${m * units}u; i += ${SIZE}u) {`,
    `    fx[i] = facts[(min(top + i % ${m}u, params.m - 1u) * params.chunks + c) * ${units}u + i / ${m}u];`,
    "  }",
    "  workgroupBarrier();",
  ];
  // a unit of k shares scales; half a chunk holds `within` units, or half of one
  const within = Math.max(1, units / 2);
  const clear = each(spec, (r, c) => `var d${r}_${c} = 0;`);
  const half: string[] = [];
  for (let c = 0; c < 4; c++) half.push(`let b${c} = ws[h * ${stride}u + tx + ${16 * c}u];`);
  for (let r = 0; r < rows; r++)
    for (let p = 0; p < planes; p++) half.push(`let a${r}_${p} = xs[(${2 * p}u + h) * ${m + 1}u + ty + ${16 * r}u];`);
  const apply = (u: string): string[] => {
    const out: string[] = ["{"];
    for (let c = 0; c < 4; c++) {
      const at = `(${u}) * ${GEMM_COLUMNS}u + ${16 * c}u + tx`;
      out.push(`let s${c} = sw[${at}];`);
      if (spec.zero === "group") out.push(`let z${c} = zw[${at}];`);
      if (add !== null) out.push(`let t${c} = dw[${at}];`);
    }
    if (spec.zero === "constant") out.push(`let z = ${zero};`);
    for (let r = 0; r < rows; r++)
      out.push(`let f${r} = fx[(${u}) * ${m}u + ${16 * r}u + ty]; let fs${r} = bitcast<f32>(f${r}.x); let fn${r} = bitcast<i32>(f${r}.y);`);
    out.push(
      ...each(spec, (r, c) => {
        const z = spec.zero === "none" ? "" : ` - ${spec.zero === "group" ? `z${c}` : "z"} * fn${r}`;
        const added = add === null ? "" : ` acc${r}_${c} += t${c} * (f32(fn${r}) * fs${r});`;
        return `acc${r}_${c} += f32(${spec.doubled ? "2 * " : ""}d${r}_${c}${z}) * (s${c} * fs${r});${added}`;
      }),
      "}",
    );
    return out;
  };
  const dots = (first: number, count: number): string[] =>
    each(spec, (r, c) => {
      const components = Array.from({ length: count }, (_, i) => "xyzw"[first + i]);
      const plane = (p: number): string => components.map((i) => `dot4I8Packed(a${r}_${p}.${i}, b${c}.${i})`).join(" + ");
      return `d${r}_${c} += ${planes === 2 ? `((${plane(0)}) << 8u) + ${plane(1)}` : plane(0)};`;
    });
  // both halves; a length that compilers do not know keeps them from repeating the code
  const halves = "for (var h = 0u; h < min(2u, (params.chunks - c) * 2u); h++) {";
  if (units === 1) lines.push(...clear, halves, ...half, ...dots(0, 4), "}", ...apply("0u"));
  else {
    lines.push(halves, ...half);
    for (let i = 0; i < within; i++)
      lines.push("{", ...clear, ...dots((4 / within) * i, 4 / within), ...apply(`h * ${within}u + ${i}u`), "}");
    lines.push("}");
  }
  lines.push("  workgroupBarrier();", "}", ...store(spec));
  return `${productHeader(spec, "u32")}${dynamicQuad(spec)}
var<workgroup> xs: array<vec4u, ${2 * planes * (m + 1)}>;
var<workgroup> ws: array<vec4u, ${2 * stride}>;
var<workgroup> sw: array<f32, ${GEMM_COLUMNS * units}>;
${spec.zero === "group" ? `var<workgroup> zw: array<i32, ${GEMM_COLUMNS * units}>;\n` : ""}${add === null ? "" : `var<workgroup> dw: array<f32, ${GEMM_COLUMNS * units}>;\n`}var<workgroup> fx: array<vec2u, ${m * units}>;
${entry(SIZE)} {
  ${start.replace("TILE", `${m}u`)}
  ${lines.filter((line) => line !== "").join("\n  ")}
}
`;
}
