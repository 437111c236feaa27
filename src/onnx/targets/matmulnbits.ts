// MatMul and Gemm with constant weights as com.microsoft.MatMulNBits (2, 4 or 8 bits in blocks along K), embeddings as
// GatherBlockQuantized (4 or 8 bits), mixtures of experts as QMoE (experts.ts). Layout: B uint8 [N, blocks, block *
// bits / 8]; scales [N * blocks]; zero points uint8, rows padded to a byte. Names and flat shapes are those of
// onnxruntime's own tool (MatMulNBitsQuantizer). Convolutions stay: no operator here is one.
// Source: onnxruntime docs/ContribOperators.md. g_idx is never written: runtimes ignore zero points beside it.
import type { BlockFormat, Format, PackedTensor } from "../../../formats/core/types.ts";
import { float16 } from "../../../formats/float16.ts";
import { float32 } from "../../../formats/float32.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { makeTensor } from "../file/model.ts";
import { dataTypeName } from "../file/types.ts";
import { intAttribute, makeNode } from "../graph/graph.ts";
import { gathersRows, type Layer } from "../layers.ts";
import type { LayerMatrix } from "../matrix.ts";
import { layerMatrix, layerType } from "../weights.ts";
import { importMicrosoft, MICROSOFT } from "./domain.ts";
import { castNode, productNodes, productReason } from "./product.ts";
import { expertsReason, expertsWriter } from "./experts.ts";
import { nbitsOperands, nbitsPlan, withScaleFormat } from "./nbits.ts";
import type { Target, TargetContext, Written } from "./target.ts";
import { madeBytes, perWeight } from "./target.ts";

interface Made {
  readonly inputs: readonly string[];
  readonly bits: number;
  readonly blockSize: number;
  readonly blocks: number;
  readonly bytes: number;
}

/** Float types in which the operators compute; others are cast to float32 around them. */
const COMPUTED: ReadonlySet<number> = new Set([T.FLOAT, T.FLOAT16]);
const isHalf = (layer: Layer): boolean => layerType(layer) === T.FLOAT16;

export function matMulNBits(): Target {
  const once = perWeight<Made>();
  const experts = expertsWriter();

  function make(layer: Layer, packed: PackedTensor, context: TargetContext): Made {
    return once(packed, () => {
      const { model, names } = context;
      const { name, scope } = layer.weight!;
      const operands = nbitsOperands(packed, isHalf(layer), context.owns?.(packed));
      const { bits, blockSize, blocks } = operands;
      const tensors = [
        makeTensor(model, names.take(`${name}_Q${bits}`), T.UINT8, [packed.rows, blocks, (blockSize * bits) / 8], operands.codes),
        makeTensor(model, names.take(`${name}_scales`), operands.half ? T.FLOAT16 : T.FLOAT, [packed.rows * blocks], operands.scales),
      ];
      const zero = operands.zeroPoints;
      if (zero !== null) tensors.push(makeTensor(model, names.take(`${name}_zero_points`), T.UINT8, [zero.length], zero));
      scope.graph.initializer.push(...tensors);
      return { inputs: tensors.map((tensor) => tensor.name), bits, blockSize, blocks, bytes: madeBytes(tensors) };
    });
  }

  function writeProduct(layer: Layer, packed: PackedTensor, context: TargetContext): Written {
    const made = make(layer, packed, context);
    const { options, names } = context;
    importMicrosoft(context.model);
    const attributes = [
      intAttribute("K", packed.k),
      intAttribute("N", packed.rows),
      intAttribute("bits", made.bits),
      intAttribute("block_size", made.blockSize),
    ];
    // Without level 4 the processor's kernels of 2 and 8 bits are far slower than float32.
    const level = options.accuracyLevel ?? (made.bits === 4 ? undefined : 4);
    if (level !== undefined) attributes.push(intAttribute("accuracy_level", level));
    const core = (x: string, output: string): NodeProto[] => [
      makeNode("MatMulNBits", [x, ...made.inputs], [output], {
        name: names.take(`${layer.name}_Q${made.bits}`),
        domain: MICROSOFT,
        attributes,
      }),
    ];
    const nodes = productNodes(layer, context, packed, core, COMPUTED.has(layerType(layer)) ? undefined : T.FLOAT);
    return { nodes, codes: made.inputs[0], bytes: made.bytes };
  }

  /**
   * GatherBlockQuantized wants its table in two dimensions: a view of the product's, so that a tied head and embedding
   * share one.
   */
  function writeGather(layer: Layer, packed: PackedTensor, context: TargetContext): Written {
    const made = make(layer, packed, context);
    const { names, model } = context;
    importMicrosoft(context.model);
    const { rows, k } = packed;
    const scope = layer.weight!.scope;
    const nodes: NodeProto[] = [];
    const inputs = made.inputs.map((name, i) => {
      const perRow = i === 0 ? (k * made.bits) / 8 : i === 1 ? made.blocks : Math.ceil((made.blocks * made.bits) / 8);
      const shape = makeTensor(
        model,
        names.take(`${name}_rows_shape`),
        T.INT64,
        [2],
        new Uint8Array(BigInt64Array.of(BigInt(rows), BigInt(perRow)).buffer),
      );
      scope.graph.initializer.push(shape);
      const view = names.take(`${name}_rows`);
      nodes.push(makeNode("Reshape", [name, shape.name], [view], { name: names.take(`${layer.name}_reshape`) }));
      return view;
    });
    const half = COMPUTED.has(layerType(layer));
    const output = half ? layer.node.output[0] : names.take(`${layer.node.output[0]}_float`);
    nodes.push(
      makeNode("GatherBlockQuantized", [inputs[0], layer.node.input[1], ...inputs.slice(1)], [output], {
        name: names.take(`${layer.name}_Q${made.bits}`),
        domain: MICROSOFT,
        attributes: [
          intAttribute("gather_axis", 0),
          intAttribute("quantize_axis", 1),
          intAttribute("block_size", made.blockSize),
          intAttribute("bits", made.bits),
        ],
      }),
    );
    if (!half) nodes.push(castNode(context, output, layer.node.output[0], layerType(layer), `${layer.name}_cast_back`));
    return { nodes, codes: made.inputs[0], bytes: made.bytes };
  }

  return {
    name: "matmulnbits",
    opTypes: ["MatMul", "Gemm", "Gather", "MoE"],
    defaultOpTypes: ["MatMul", "Gemm", "MoE"],
    adapt(layer, format): Format {
      const matrix = layerMatrix(layer);
      if (format.kind !== "block" || typeof matrix === "string") return format;
      const plan = nbitsPlan(format, matrix.k);
      // Scales have the type of the activations.
      const wanted = isHalf(layer) ? float16 : float32;
      return typeof plan !== "string" && plan.asIs && format.scales[0].format !== wanted
        ? withScaleFormat(format as BlockFormat, wanted)
        : format;
    },
    isNative(layer, format) {
      // it has been found to be a matrix: `reason`
      const plan = nbitsPlan(format, (layerMatrix(layer) as LayerMatrix).k);
      return typeof plan !== "string" && plan.asIs;
    },
    reason(layer, format, context) {
      const { node } = layer;
      const matrix = layerMatrix(layer);
      if (typeof matrix === "string") return matrix;
      const plan = nbitsPlan(format, matrix.k);
      if (typeof plan === "string") return `MatMulNBits cannot hold ${format.name}: ${plan} (target stored can)`;
      if (node.opType === "MoE") return expertsReason(layer, plan, format.kind === "block" && format.offset !== undefined && plan.asIs);
      if (node.opType === "Gather") {
        if (!gathersRows(layer)) return "GatherBlockQuantized gathers rows (axis 0) only";
        if (layer.shape.length !== 2) return `the table has ${layer.shape.length} dimensions, not 2`;
        if (plan.bits === 2) return "GatherBlockQuantized has 4 and 8 bits, not 2";
        if (matrix.k % plan.blockSize !== 0) return `the width ${matrix.k} is no multiple of the block size ${plan.blockSize}`;
        if (!COMPUTED.has(layerType(layer)) && layerType(layer) !== T.BFLOAT16) return `a table of ${dataTypeName(layerType(layer))}`;
        return undefined;
      }
      return productReason(layer, context);
    },
    prepare: (layers, context) => experts.prepare(layers, context),
    write(layer, weight, context) {
      if (layer.node.opType === "MoE") return experts.write(layer, weight, context);
      return layer.node.opType === "Gather" ? writeGather(layer, weight, context) : writeProduct(layer, weight, context);
    },
  };
}
