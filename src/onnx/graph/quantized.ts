// Is a model quantized already, and how?
import type { Scope } from "./scopes.ts";
import { operatorName } from "./scopes.ts";

/** How a model is quantized, by the operators that only quantized models have. */
const KINDS: readonly (readonly [kind: string, operators: readonly string[]])[] = [
  ["weights in blocks", ["MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE"].map((name) => `com.microsoft.${name}`)],
  [
    "dynamic 8 bit",
    [
      "MatMulInteger",
      "ConvInteger",
      ...["DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"].map((name) => `com.microsoft.${name}`),
    ],
  ],
  ["static, quantized operators", ["QLinearMatMul", "QLinearConv", "com.microsoft.QGemm"]],
  ["QDQ", ["DequantizeLinear", "com.microsoft.DequantizeLinear"]],
];

export interface QuantizedKind {
  /** "dynamic 8 bit", "weights in blocks", "QDQ", ...: the first that applies. */
  readonly kind: string;
  /** Such nodes, by operator. */
  readonly operators: ReadonlyMap<string, number>;
}

/** How a model is quantized already; null where it is not. */
export function quantizedKind(scopes: readonly Scope[]): QuantizedKind | null {
  const counts = new Map<string, number>();
  for (const { graph } of scopes) {
    for (const node of graph.node) counts.set(operatorName(node), (counts.get(operatorName(node)) ?? 0) + 1);
  }
  for (const [kind, names] of KINDS) {
    const operators = new Map(names.filter((name) => counts.has(name)).map((name) => [name, counts.get(name)!]));
    if (operators.size > 0) return { kind, operators };
  }
  return null;
}

/** The kind in words, for notes: "dynamic 8 bit: 119 ConvInteger". */
export const describeQuantized = ({ kind, operators }: QuantizedKind): string =>
  `${kind}: ${[...operators].map(([name, count]) => `${count} ${name}`).join(", ")}`;
