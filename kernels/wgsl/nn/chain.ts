// Chains of element-wise operators as one shader, printed from the expressions that the WebAssembly kernels are printed
// from (kernels/wasm/nn/values.ts). One invocation per element of the result, of at most four dimensions; operands are
// read as they lie: of the result's shape, one number, or anything that broadcasts to it by strides. Functions are
// WGSL's own, kept within their range; erf is Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7).
import { GELU } from "../../wasm/nn/math.ts";
import { linearise, nodeKey, type ChainNode, type Value } from "../../wasm/nn/values.ts";
import { entry } from "../product.ts";
import { eachItem, header, SIZE, type Bound, type Fields } from "./shader.ts";

export type OperandKind = "same" | "one" | "strided";

export interface ChainShader {
  readonly nodes: readonly ChainNode[];
  /** The node that is written. */
  readonly output: number;
  readonly operands: readonly OperandKind[];
}

/** Operands that fit beside the result in the storage buffers of a stage. */
export const MOST_OPERANDS = 7;

export function chainShaderSpec(value: Value, operands: readonly OperandKind[]): ChainShader {
  const { nodes, outputs } = linearise([value]);
  return { nodes, output: outputs[0], operands };
}

/** A spec as text: JSON would lose -0 and infinities. */
export const chainKey = ({ nodes, output, operands }: ChainShader): object => ({
  nodes: nodes.map(nodeKey).join(";"),
  output,
  operands: operands.join(),
});

export const chainFields = (operands: number): string[] => [
  "count",
  "d1",
  "d2",
  "d3",
  ...Array.from({ length: operands }, (_, i) => [0, 1, 2, 3].map((axis) => `s${i}_${axis}`).concat(`o${i}`)).flat(),
];

export interface ChainOperand {
  /** In elements, of the four dimensions. */
  readonly strides: readonly number[];
  readonly offset: number;
}

/** Fields and values of a chain's parameters. `dims`: four sizes of the result. */
export function chainWordsOf(
  dims: readonly number[],
  operands: readonly ChainOperand[],
): { readonly fields: Fields; readonly params: Readonly<Record<string, number>> } {
  const params: Record<string, number> = { count: dims[0] * dims[1] * dims[2] * dims[3], d1: dims[1], d2: dims[2], d3: dims[3] };
  operands.forEach(({ strides, offset }, i) => {
    strides.forEach((step, axis) => (params[`s${i}_${axis}`] = step));
    params[`o${i}`] = offset;
  });
  return { fields: chainFields(operands.length), params };
}

const bits = (value: number): string => `0x${new Uint32Array(Float32Array.of(value).buffer)[0].toString(16)}u`;

const HELPERS: Readonly<Record<string, string>> = {
  // the tail itself on the negative side would need no cancellation: erf near 0 is small beside what it is added to
  erf: `fn chain_erf(x: f32) -> f32 {
  let z = min(abs(x), 9.0);
  let t = 1.0 / (1.0 + 0.3275911 * z);
  let tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * exp(-z * z);
  return select(1.0 - tail, tail - 1.0, x < 0.0);
}
`,
  // max(x, 0) - t Phi(-t) with a polynomial for the tail: kernels/wasm/nn/math.ts
  gelu: `fn chain_gelu(x: f32) -> f32 {
  let t = min(abs(x), 14.0);
  let v = ${GELU.reduceRight((sum, c) => (sum === "" ? String(c) : `(${sum} * t + ${c})`), "")} * t;
  let v2 = v * (v + 2.0);
  let v4 = v2 * (v2 + 2.0);
  return max(x, 0.0) - 0.5 * t / (v4 * (v4 + 2.0) + 1.0);
}
`,
};

function print([op, ...at]: ChainNode, of: (place: number) => string): string {
  const [a, b, c] = op === "operand" || op === "const" ? [] : at.map(of);
  switch (op) {
    case "operand":
      return `x${at[0]}_value`;
    case "const":
      return Number.isFinite(at[0]) ? `bitcast<f32>(${bits(at[0])})` : `bitcast<f32>(c${bits(at[0])})`;
    case "neg":
      return `-${a}`;
    case "number":
      return `select(0.0, 1.0, ${a})`;
    case "not":
      return `!${a}`;
    case "exp":
      return `exp(min(${a}, 88.72))`;
    case "sigmoid":
      return `1.0 / (1.0 + exp(min(-${a}, 88.0)))`;
    case "tanh":
      return `tanh(clamp(${a}, -15.0, 15.0))`;
    case "erf":
    case "gelu":
      return `chain_${op}(${a})`;
    case "abs":
    case "sqrt":
    case "floor":
    case "ceil":
    case "round":
    case "trunc":
      return `${op}(${a})`;
    case "min":
    case "max":
      return `select(${op}(${a}, ${b}), ${a} + ${b}, ${a} != ${a} || ${b} != ${b})`;
    case "atLeast":
      return `select(${a}, ${b}, ${a} < ${b})`;
    case "atMost":
      return `select(${a}, ${b}, ${b} < ${a})`;
    case "select":
      return `select(${c}, ${b}, ${a})`;
    default: {
      const signs = { add: "+", sub: "-", mul: "*", div: "/", eq: "==", ne: "!=", lt: "<", le: "<=", gt: ">", ge: ">=", and: "&&", or: "||" }; // prettier-ignore
      return `${a} ${signs[op]} ${b}`;
    }
  }
}

const index = (kind: OperandKind, i: number): string =>
  kind === "one"
    ? `params.o${i}`
    : kind === "same"
      ? `params.o${i} + number`
      : `params.o${i} + i0 * params.s${i}_0 + i1 * params.s${i}_1 + i2 * params.s${i}_2 + i3 * params.s${i}_3`;

/** What a chain needs before its function, and the lines that load its operands and compute its nodes. */
function chainParts({ nodes, operands }: ChainShader, own?: number): { readonly before: string; readonly lines: readonly string[] } {
  const strange = new Set(nodes.filter(([op, value]) => op === "const" && !Number.isFinite(value)).map(([, value]) => bits(value)));
  const helpers = Object.entries(HELPERS).flatMap(([op, text]) => (nodes.some(([of]) => of === op) ? [text] : []));
  return {
    // infinities and NaN are no constants of WGSL: variables are
    before: `${[...strange].map((word) => `var<private> c${word}: u32 = ${word};\n`).join("")}${helpers.join("")}`,
    lines: [
      ...(operands.includes("strided")
        ? ["let i3 = number % params.d3; let rest = number / params.d3; let i2 = rest % params.d2; let upper = rest / params.d2; let i1 = upper % params.d1; let i0 = upper / params.d1;"] // prettier-ignore
        : []),
      ...operands.flatMap((kind, i) => (i === own ? [] : [`let x${i}_value = x${i}[${index(kind, i)}];`])),
      ...nodes.map((node, i) => `let t${i} = ${print(node, (place) => `t${place}`)};`),
    ],
  };
}

/** A chain behind another kernel's results: operand `own` is one of them. */
export interface ChainAfter {
  readonly spec: ChainShader;
  readonly own: number;
}

/** `after(number, value)`: element `number` of the chain. Its other operands are bindings of the kernel. */
export function chainFunction({ spec, own }: ChainAfter): string {
  const { before, lines } = chainParts(spec, own);
  return `${before}fn after(number: u32, x${own}_value: f32) -> f32 {
  ${lines.join("\n  ")}
  return t${spec.output};
}
`;
}

/** One invocation per element of y. Bindings: params, x0.., y. */
export function chainShader(spec: ChainShader): string {
  const { before, lines } = chainParts(spec);
  const buffers: Bound[] = [...spec.operands.map((_, i): Bound => [`x${i}`, "array<f32>"]), ["y", "array<f32>", "read_write"]];
  return `${header(chainFields(spec.operands.length), buffers)}
${before}
${entry(SIZE)} {
  ${eachItem("params.count")}
  ${[...lines, `y[number] = t${spec.output};`].join("\n  ")}
}
`;
}

export const chainName = ({ nodes, operands }: ChainShader): string => `f32_chain${nodes.length}_${operands.length}__wgsl`;
