// An expression of formats/core/expr.ts as a WGSL function from u32 to u32. Constants are printed as their bits; tables
// lie in one storage buffer, `tables`, which the shader declares only where there are any. Floats appear between
// `toFloat` and `bits` alone, where values are normal, zero or exact: a device that flushes subnormal numbers or quiets
// NaN on a load or store changes nothing.
import { exprNodes, type Expr } from "../../formats/core/expr.ts";

/** Words that the functions of a shader look up, and where each table begins. */
export interface ShaderTables {
  readonly words: Uint32Array;
  readonly offsets: ReadonlyMap<Uint32Array, number>;
}

/** All tables of some expressions behind one another, each once. */
export function shaderTables(exprs: readonly Expr[]): ShaderTables {
  const offsets = new Map<Uint32Array, number>();
  let length = 0;
  for (const expr of exprs)
    for (const { table } of exprNodes(expr)) {
      if (table === undefined || offsets.has(table)) continue;
      offsets.set(table, length);
      length += table.length;
    }
  const words = new Uint32Array(length);
  for (const [table, at] of offsets) words.set(table, at);
  return { words, offsets };
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

function constant(e: Expr): string {
  if (e.type === "u32") return `0x${e.value!.toString(16)}u`;
  f32[0] = e.value!;
  return `bitcast<f32>(0x${u32[0].toString(16)}u)`;
}

const signed = (a: string): string => `bitcast<i32>(${a})`;

/** One node; `a` are its arguments as text. Shift counts are constants below 32. */
function print(e: Expr, a: readonly string[], tables: ShaderTables): string {
  switch (e.op) {
    case "input":
      return "input";
    case "const":
      return constant(e);
    case "and":
      return `${a[0]} & ${a[1]}`;
    case "or":
      return `${a[0]} | ${a[1]}`;
    case "xor":
      return `${a[0]} ^ ${a[1]}`;
    case "add":
    case "fadd":
      return `${a[0]} + ${a[1]}`;
    case "sub":
      return `${a[0]} - ${a[1]}`;
    case "fmul":
      return `${a[0]} * ${a[1]}`;
    case "shl":
      return `${a[0]} << ${a[1]}`;
    case "shrU":
      return `${a[0]} >> ${a[1]}`;
    case "shrS":
      return `bitcast<u32>(${signed(a[0])} >> ${a[1]})`;
    case "minU":
      return `min(${a[0]}, ${a[1]})`;
    case "roundShift":
      return `round_shift(${a[0]}, ${a[1]})`;
    case "lookup":
      return `tables[${tables.offsets.get(e.table!)!}u + ${a[0]}]`;
    case "rank":
      return `rank(${tables.offsets.get(e.table!)!}u, ${e.table!.length}u, ${signed(a[0])})`;
    case "select":
      return `select(${a[2]}, ${a[1]}, ${a[0]})`;
    case "toFloat":
      return `f32(${signed(a[0])})`;
    case "bits":
      return `bitcast<u32>(${a[0]})`;
    case "eq":
      return `${a[0]} == ${a[1]}`;
    case "ltU":
      return `${a[0]} < ${a[1]}`;
    case "ltS":
      return `${signed(a[0])} < ${signed(a[1])}`;
  }
}

/** `fn NAME(input: u32) -> u32` with its helpers left to `exprHelpers`. */
export function exprFunction(name: string, expr: Expr, tables: ShaderTables): string {
  const nodes = exprNodes(expr);
  const names = new Map<Expr, string>();
  const lines: string[] = [];
  for (const e of nodes) {
    const text = print(
      e,
      e.args.map((arg) => names.get(arg)!),
      tables,
    );
    if (e.op === "input" || e.op === "const") names.set(e, text);
    else {
      const own = `t${lines.length}`;
      names.set(e, own);
      lines.push(`  let ${own} = ${text};`);
    }
  }
  return `fn ${name}(input: u32) -> u32 {\n${lines.join("\n")}\n  return ${names.get(expr)!};\n}\n`;
}

/**
 * What the functions of `exprs` call and read. `tableBinding`: the index in group 0 of `tables`, which is declared only
 * where a function reads it.
 */
export function exprHelpers(exprs: readonly Expr[], tableBinding: number): string {
  const ops = new Set(exprs.flatMap((expr) => exprNodes(expr).map((e) => e.op)));
  const parts: string[] = [];
  if (ops.has("lookup") || ops.has("rank")) parts.push(`@group(0) @binding(${tableBinding}) var<storage, read> tables: array<u32>;`);
  if (ops.has("roundShift"))
    parts.push(`// m / 2^s, ties to even: half a unit less one, and the lowest bit kept, then cut
fn round_shift(m: u32, s: u32) -> u32 {
  let half = (1u << s) >> 1u;
  return (m + max(half, 1u) - 1u + select(0u, (m >> s) & 1u, s != 0u)) >> s;
}`);
  if (ops.has("rank"))
    parts.push(`// how many of the ascending words are <= key
fn rank(at: u32, count: u32, key: i32) -> u32 {
  var low = 0u;
  var high = count;
  while (low < high) {
    let middle = (low + high) >> 1u;
    if (bitcast<i32>(tables[at + middle]) <= key) { low = middle + 1u; } else { high = middle; }
  }
  return low;
}`);
  return parts.join("\n");
}
