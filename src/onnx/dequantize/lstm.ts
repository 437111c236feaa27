// com.microsoft.DynamicQuantizeLSTM as LSTM: codes [directions, k, 4 hidden] with scales and zero points per direction,
// or per direction and output, become float weights [directions, 4 hidden, k].
// Source: onnxruntime docs/ContribOperators.md.
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { nodeName } from "../graph/graph.ts";
import type { Numbers } from "./codes.ts";
import { addFloats, newNode, plainName, type FloatForm, type Rewriting } from "./rewriting.ts";

/** Inputs that LSTM has too: X, W, R, B, sequence_lens, initial_h, initial_c, P; then scales and zero points. */
const INPUTS = 8;

function floatGates(work: Rewriting, name: string, scales: Numbers | null, zeros: Numbers | null, given: boolean): string | null {
  const codes = work.numbers(name);
  if (codes === null || scales === null || codes.shape.length !== 3 || (given && zeros === null)) return null;
  const [directions, k, rows] = codes.shape;
  const fits = ({ data }: Numbers): boolean => data.length === directions || data.length === directions * rows;
  if (!fits(scales) || (zeros !== null && !fits(zeros))) return null;
  const at = ({ data }: Numbers, d: number, j: number): number => data[data.length === directions ? d : d * rows + j];
  const values = new Float32Array(codes.data.length);
  for (let d = 0; d < directions; d++)
    for (let j = 0; j < rows; j++) {
      const scale = at(scales, d, j);
      const zero = zeros === null ? 0 : at(zeros, d, j);
      for (let i = 0; i < k; i++) values[(d * rows + j) * k + i] = (codes.data[(d * k + i) * rows + j] - zero) * scale;
    }
  return addFloats(work, name, [directions, rows, k], values, scales.dataType);
}

/** The float form of a DynamicQuantizeLSTM; null where its weights are no constants. */
export function dynamicLstm(node: NodeProto, work: Rewriting): FloatForm | null {
  const input = (i: number): string => node.input[i] ?? "";
  const gates = (i: number, from: number): string | null =>
    floatGates(work, input(i), work.numbers(input(from)), work.numbers(input(from + 1)), input(from + 1) !== "");
  const [w, r] = [gates(1, INPUTS), gates(2, INPUTS + 2)];
  if (w === null || r === null) return null;
  const inputs = Array.from({ length: INPUTS }, (_, i) => (i === 1 ? w : i === 2 ? r : input(i)));
  while (inputs.at(-1) === "") inputs.pop();
  const made = newNode(work, "LSTM", inputs, node.output[0], plainName(nodeName(node)), node.attribute);
  made.output = [...node.output];
  return { at: node, nodes: [made], instead: [node] };
}
