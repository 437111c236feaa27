// Element-wise expressions over float32: what chains (chain.ts) are printed from. Values are shared by identity; a
// graph of any depth is walked without recursion.

/**
 * `number` turns a condition into 1 or 0. `min max` give NaN where an operand is NaN; `atLeast atMost` are bounds, one
 * instruction each: the first operand, NaN too, unless it is beyond the second. `round` is half to even.
 */
export const UNARY = [
  "neg",
  "abs",
  "sqrt",
  "exp",
  "sigmoid",
  "tanh",
  "erf",
  "gelu",
  "floor",
  "ceil",
  "round",
  "trunc",
  "not",
  "number",
] as const;
export const BINARY = [
  "add",
  "sub",
  "mul",
  "div",
  "min",
  "max",
  "atLeast",
  "atMost",
  "eq",
  "ne",
  "lt",
  "le",
  "gt",
  "ge",
  "and",
  "or",
] as const;
export type UnaryOp = (typeof UNARY)[number];
export type BinaryOp = (typeof BINARY)[number];

export type Value =
  | { readonly op: "operand"; readonly index: number; readonly args: readonly [] }
  | { readonly op: "const"; readonly value: number; readonly args: readonly [] }
  | { readonly op: UnaryOp | BinaryOp | "select"; readonly args: readonly Value[] };

/** Conditions are masks inside a chain; every other value is a float32. */
const CONDITIONS: ReadonlySet<string> = new Set(["eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"]);
const TAKES_CONDITIONS: ReadonlySet<string> = new Set(["and", "or", "not", "number"]);

const isCondition = (value: Value): boolean => CONDITIONS.has(value.op);

/** Element `i` of operand `index` of a chain. */
export const operand = (index: number): Value => ({ op: "operand", index, args: [] });
export const constant = (value: number): Value => ({ op: "const", value: Math.fround(value), args: [] });

/** @throws TypeError where a number stands for a condition or the other way round */
export function unary(op: UnaryOp, a: Value): Value {
  if (isCondition(a) !== TAKES_CONDITIONS.has(op))
    throw new TypeError(`chain ${op}: expected a ${isCondition(a) ? "number" : "condition"}, got ${a.op}.`);
  return { op, args: [a] };
}

/** @throws TypeError where a number stands for a condition or the other way round */
export function binary(op: BinaryOp, a: Value, b: Value): Value {
  for (const value of [a, b])
    if (isCondition(value) !== TAKES_CONDITIONS.has(op))
      throw new TypeError(`chain ${op}: expected a ${isCondition(value) ? "number" : "condition"}, got ${value.op}.`);
  return (op === "mul" ? spelledGelu(a, b) : undefined) ?? { op, args: [a, b] };
}

const isConstant = (value: Value, near: number): boolean => value.op === "const" && Math.abs(value.value / near - 1) < 1e-6;

/** The factors of a product of products. */
const factors = (value: Value): readonly Value[] => (value.op === "mul" ? value.args : [value]);

/** erf(x / sqrt 2): x. */
function overRootTwo(value: Value): Value | undefined {
  if (value.op !== "erf") return undefined;
  const [inner] = value.args;
  if (inner.op === "div") return isConstant(inner.args[1], Math.SQRT2) ? inner.args[0] : undefined;
  if (inner.op !== "mul") return undefined;
  const at = inner.args.findIndex((factor) => isConstant(factor, Math.SQRT1_2));
  return at < 0 ? undefined : inner.args[1 - at];
}

/** GELU as exporters spell it out, in any order of its factors: x, 0.5, 1 + erf(x / sqrt 2). */
function spelledGelu(a: Value, b: Value): Value | undefined {
  const all = [...factors(a), ...factors(b)];
  if (all.length !== 3 || !all.some((factor) => isConstant(factor, 0.5))) return undefined;
  for (const sum of all) {
    if (sum.op !== "add") continue;
    const one = sum.args.findIndex((part) => isConstant(part, 1));
    const x = one < 0 ? undefined : overRootTwo(sum.args[1 - one]);
    if (x !== undefined && all.includes(x)) return unary("gelu", x);
  }
  return undefined;
}

/** @throws TypeError where a number stands for a condition or the other way round */
export function select(condition: Value, yes: Value, no: Value): Value {
  if (!isCondition(condition) || isCondition(yes) || isCondition(no))
    throw new TypeError(`chain select: expected a condition and two numbers, got ${condition.op}, ${yes.op}, ${no.op}.`);
  return { op: "select", args: [condition, yes, no] };
}

const add = (a: Value, b: Value): Value => binary("add", a, b);
const mul = (a: Value, b: Value): Value => binary("mul", a, b);

/** x * sigmoid(alpha x): SiLU; alpha 1.702 is QuickGelu. */
export const silu = (x: Value, alpha = 1): Value => mul(x, unary("sigmoid", alpha === 1 ? x : mul(x, constant(alpha))));
/** x / 2 * (1 + erf(x / sqrt 2)). */
export const gelu = (x: Value): Value => unary("gelu", x);
/** x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) * (x + 0.044715 x^3), which is x * sigmoid(2 u): no cancellation. */
export const geluTanh = (x: Value): Value => {
  const twice = mul(mul(x, constant(2 * Math.sqrt(2 / Math.PI))), add(constant(1), mul(constant(0.044715), mul(x, x))));
  return mul(x, unary("sigmoid", twice));
};
/** cap * tanh(x / cap). */
export const softcap = (x: Value, cap: number): Value => mul(unary("tanh", mul(x, constant(1 / cap))), constant(cap));

/** A node of a linear chain: operands and constants carry a number, other nodes the places of their arguments. */
export type ChainNode = readonly [op: Value["op"], ...numbers: number[]];

/** The nodes of values in an order in which arguments come first; equal nodes are one. */
export function linearise(values: readonly Value[]): { readonly nodes: readonly ChainNode[]; readonly outputs: readonly number[] } {
  const nodes: ChainNode[] = [];
  const places = new Map<Value, number>();
  const known = new Map<string, number>();
  const stack = [...values].reverse();
  while (stack.length > 0) {
    const value = stack[stack.length - 1];
    const missing = value.args.filter((arg) => !places.has(arg));
    if (missing.length > 0) {
      stack.push(...missing.reverse());
      continue;
    }
    stack.pop();
    if (places.has(value)) continue;
    const numbers =
      value.op === "operand"
        ? [(value as { index: number }).index]
        : value.op === "const"
          ? [(value as { value: number }).value]
          : value.args.map((arg) => places.get(arg)!);
    const node: ChainNode = [value.op, ...numbers];
    const key = nodeKey(node);
    let place = known.get(key);
    if (place === undefined) {
      place = nodes.push(node) - 1;
      known.set(key, place);
    }
    places.set(value, place);
  }
  return { nodes, outputs: values.map((value) => places.get(value)!) };
}

/** A node as text; JSON would lose -0 and infinities. */
export const nodeKey = ([op, ...numbers]: ChainNode): string => `${op} ${numbers.map((n) => (Object.is(n, -0) ? "-0" : String(n))).join()}`;
