// Which operators static quantization knows, one row each: where their activations are, and what becomes of their
// output.

export interface StaticOperator {
  /** Inputs that are activations; "all": every one that is computed. */
  readonly inputs: readonly number[] | "all";
  readonly weight?: number;
  readonly bias?: number;
  /**
   * The output: "kernel" is quantized, because an integer kernel needs it; "float" stays, the runtime's integer product
   * gives floats; "input" has the parameters of input 0, whose values it only moves or picks.
   */
  readonly output: "kernel" | "float" | "input";
}

const unary = { inputs: [0], output: "kernel" } as const;
const moves = { inputs: [0], output: "input" } as const;
const all = { inputs: "all", output: "kernel" } as const;

export const STATIC_OPERATORS: ReadonlyMap<string, StaticOperator> = new Map<string, StaticOperator>([
  ["Conv", { inputs: [0], weight: 1, bias: 2, output: "kernel" }],
  ["ConvTranspose", { inputs: [0], weight: 1, bias: 2, output: "kernel" }],
  ["Gemm", { inputs: [0, 1], weight: 1, bias: 2, output: "kernel" }],
  ["MatMul", { inputs: [0, 1], weight: 1, output: "float" }],
  ["Add", all],
  ["Mul", all],
  ["Concat", all],
  ["Relu", unary],
  ["Clip", unary],
  ["Sigmoid", unary],
  ["HardSigmoid", unary],
  ["HardSwish", unary],
  ["AveragePool", unary],
  ["GlobalAveragePool", unary],
  // reads floats: between pairs onnxruntime 1.30 makes QLinearSoftmax of it, whose sums of 32 bits overflow where a
  // probability passes some 148 n codes, n the length of its axis: 0 for every row of one element
  ["Softmax", { inputs: [], output: "kernel" }],
  ["LayerNormalization", unary],
  ["MaxPool", moves],
  ["Resize", moves],
  ["Reshape", moves],
  ["Transpose", moves],
]);

/** Quantized unless options name others. */
export const STATIC_DEFAULT: readonly string[] = ["Conv", "MatMul", "Gemm"];

/**
 * Operators that an output's range is taken behind, where nothing else reads it: the runtime makes them part of the
 * product.
 */
export const FUSED_BEHIND: ReadonlySet<string> = new Set(["Relu", "Clip"]);

/** Operators that read floats even where the value is quantized for others. */
export const reads = (opType: string): "floats" | "codes" => (STATIC_OPERATORS.get(opType)?.inputs.length === 0 ? "floats" : "codes");
