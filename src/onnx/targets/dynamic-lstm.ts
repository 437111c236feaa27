// LSTM with 8-bit weights as com.microsoft.DynamicQuantizeLSTM: input and state quantized at run time. Its two weights,
// W and R, are two layers that go together. Layout: codes [directions, k, 4 hidden], scales [directions, 4 hidden] or
// [directions], zero points likewise.
// Source: onnxruntime docs/ContribOperators.md.
import { unpack } from "../../../formats/core/packed.ts";
import type { BlockFormat, PackedTensor } from "../../../formats/core/types.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { attributeInt, makeNode } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import { layerType } from "../weights.ts";
import { importMicrosoft, MICROSOFT } from "./domain.ts";
import { levelsOf, oneZeroPoint, transposed } from "./dynamic-codes.ts";
import { layersByNode, madeBytes, perNode, perWeight, type TargetContext, type Written } from "./target.ts";

/** Inputs of LSTM that go over: X, W, R, B, sequence_lens, initial_h, initial_c, P. */
const INPUTS = 8;

/** Why a weight of an LSTM cannot be held; undefined where it can. */
export function lstmReason(layer: Layer): string | undefined {
  if (layerType(layer) !== T.FLOAT) return "DynamicQuantizeLSTM computes in float32";
  if (layer.shape.length !== 3) return `the weight has ${layer.shape.length} dimensions, not 3`;
  return attributeInt(layer.node, "layout", 0) === 0 ? undefined : "DynamicQuantizeLSTM has no layout 1";
}

/** A quantized weight in the file. */
interface Part {
  readonly codes: string;
  readonly scale: string;
  readonly zeroPoint: string;
  readonly bytes: number;
}

const isSigned = (layer: Layer, { formatOf }: TargetContext): boolean => (formatOf(layer) as BlockFormat).element.limits.min < 0;

export interface LstmWriter {
  prepare(layers: readonly Layer[], context: TargetContext): ((layer: Layer) => string | undefined) | undefined;
  write(layer: Layer, packed: PackedTensor, context: TargetContext): Written;
}

export function lstmWriter(): LstmWriter {
  const once = perWeight<Part>();
  const gather = perNode<Part>();

  function store(layer: Layer, packed: PackedTensor, context: TargetContext): Part {
    const levels = levelsOf(packed);
    const { model, names } = context;
    const { name, scope } = layer.weight!;
    const [directions, rows, k] = layer.shape;
    const codes = unpack(packed) as Uint8Array;
    const zero = oneZeroPoint(codes, levels.zeros, codes.length / levels.zeros.length);
    const turned = new Uint8Array(codes.length);
    for (let d = 0; d < directions; d++) turned.set(transposed(codes.subarray(d * rows * k, (d + 1) * rows * k), rows, k), d * rows * k);
    const whole = levels.scales.length === 1;
    const dims = whole ? [directions] : [directions, rows];
    const scales = whole ? new Float32Array(directions).fill(levels.scales[0]) : levels.scales;
    const tensors = [
      makeTensor(model, names.take(`${name}_quantized`), levels.type, [directions, k, rows], turned),
      makeTensor(model, names.take(`${name}_scale`), T.FLOAT, dims, new Uint8Array(scales.buffer, scales.byteOffset, scales.byteLength)),
      makeTensor(model, names.take(`${name}_zero_point`), levels.type, dims, new Uint8Array(scales.length).fill(zero)),
    ];
    scope.graph.initializer.push(...tensors);
    return { codes: tensors[0].name, scale: tensors[1].name, zeroPoint: tensors[2].name, bytes: madeBytes(tensors) };
  }

  return {
    prepare(layers, context) {
      const byNode = layersByNode(layers, "LSTM");
      if (byNode.size === 0) return undefined;
      return ({ node }) => {
        const own = byNode.get(node);
        if (own === undefined) return undefined;
        if (own.length < 2) return "DynamicQuantizeLSTM has both weights in 8 bits, W and R, and the other one stays";
        return own.every((layer) => isSigned(layer, context) === isSigned(own[0], context))
          ? undefined
          : "DynamicQuantizeLSTM has both weights signed, or both unsigned";
      };
    },
    write(layer, packed, context) {
      const { node } = layer;
      const part = once(packed, () => store(layer, packed, context));
      const own = gather(layer, part);
      const written = { codes: part.codes, bytes: part.bytes };
      const [w, r] = [own.get(1), own.get(2)];
      if (w === undefined || r === undefined) return { nodes: null, ...written };
      importMicrosoft(context.model);
      const inputs = Array.from({ length: INPUTS }, (_, i) => (i === 1 ? w.codes : i === 2 ? r.codes : (node.input[i] ?? "")));
      const quantized = makeNode("DynamicQuantizeLSTM", [...inputs, w.scale, w.zeroPoint, r.scale, r.zeroPoint], [...node.output], {
        name: context.names.take(`${node.name || node.output.find((name) => name !== "")!}_quant`),
        domain: MICROSOFT,
        attributes: node.attribute.filter(({ name }) => name !== "layout"),
      });
      return { nodes: [quantized], ...written };
    },
  };
}
