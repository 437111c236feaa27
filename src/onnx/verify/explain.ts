// How far two runtimes may part on one file before its arithmetic does not explain it. The three kinds have different
// reasons: float32 sums in another order; float16 in one and float32 in the other; activations that are rounded to 8
// bits, where a value that lies between two codes falls to either side (or one runtime does not round at all), so that
// two runtimes may differ by as much as each differs from the float model.
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { allTensors } from "../file/model.ts";
import { attributeInt, buildScopes, operatorName } from "../graph/graph.ts";

export interface Explained {
  readonly arithmetic: "float32" | "float16" | "8-bit activations";
  /** The least SQNR between two runtimes that the arithmetic explains. */
  readonly db: number;
}

const FLOAT32_DB = 50;
const FLOAT16_DB = 30;
const EIGHT_BIT_DB = 30;
/** Two errors of equal size add up to twice the power. */
const TWICE_DB = 3.01;

/** Operators that round activations, or that a runtime replaces by one that does. */
const ROUNDS = new Set([
  "DynamicQuantizeLinear",
  "QuantizeLinear",
  "MatMulInteger",
  "ConvInteger",
  "QLinearMatMul",
  "QLinearConv",
  "com.microsoft.DynamicQuantizeMatMul",
  "com.microsoft.MatMulIntegerToFloat",
  "com.microsoft.DynamicQuantizeLSTM",
  "com.microsoft.QGemm",
]);

/** What kind of arithmetic a model has. Reads the graph only. */
export function arithmeticOf(model: OnnxModel): Explained["arithmetic"] {
  let half = false;
  let blocks = false;
  for (const { graph } of buildScopes(model))
    for (const node of graph.node) {
      const operator = operatorName(node);
      if (ROUNDS.has(operator)) return "8-bit activations";
      // Native CPUs compute these with int8 activations at level 4, which onnxruntime also chooses for blocks of
      // DequantizeLinear.
      if (operator === "com.microsoft.MatMulNBits" && attributeInt(node, "accuracy_level", 0) === 4) blocks = true;
      if (operator === "DequantizeLinear") blocks = true;
      if (operator === "Cast" && attributeInt(node, "to", 0) === T.FLOAT16) half = true;
    }
  if (blocks) return "8-bit activations";
  if (!half) for (const tensor of allTensors(model.proto)) if (tensor.dataType === T.FLOAT16) half = true;
  return half ? "float16" : "float32";
}

/**
 * @param sqnrDb SQNR of the model against the float model, in one runtime
 */
export function explained(arithmetic: Explained["arithmetic"], sqnrDb: number): Explained {
  if (arithmetic === "float32") return { arithmetic, db: FLOAT32_DB };
  if (arithmetic === "float16") return { arithmetic, db: FLOAT16_DB };
  // Where the file itself is far from the float model there is no more to ask for than that.
  return { arithmetic, db: Number.isNaN(sqnrDb) ? EIGHT_BIT_DB : Math.max(0, Math.min(EIGHT_BIT_DB, sqnrDb - TWICE_DB)) };
}
