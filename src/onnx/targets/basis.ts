// Packed weights in another basis than the model's: rotated inputs (mrgptq: x Q) and scaled ones (awq: x / s), as their
// recipe says. Either the inputs of the product are brought there by nodes, or the decoded weight is brought back,
// which a runtime folds when it loads the model.
import type { PackedTensor } from "../../../formats/core/types.ts";
import { rotationOf, type RotationConfig } from "../../quantize/rotation.ts";
import { TensorProto_DataType as T, type NodeProto } from "../file/gen/onnx_pb.ts";
import { encodeHalf } from "../file/half.ts";
import { makeTensor } from "../file/model.ts";
import { makeNode } from "../graph/graph.ts";
import { ROTATION_NAME, type Layer } from "../layers.ts";
import { int64Tensor, type constantNodes } from "./planes.ts";
import type { TargetContext } from "./target.ts";

/** x' = (x * scale) in blocks times `matrix`; null where a part is not there. */
interface Basis {
  /** [k]. */
  readonly scale: Float32Array | null;
  /** [block, block], the same for every block along k. */
  readonly matrix: Float32Array | null;
  readonly block: number;
  /** Which matrix it is: those of one key are equal. */
  readonly key: string;
}

/** The basis of a packed weight; null where it is the model's. */
export function basisOf({ recipe, k }: PackedTensor): Basis | null {
  const config = recipe.rotation as RotationConfig | undefined;
  const channels = recipe.channelScales as readonly number[] | undefined;
  if (config === undefined && channels === undefined) return null;
  let scale = channels === undefined ? null : Float32Array.from(channels, (s) => 1 / s);
  if (config === undefined) return { scale, matrix: null, block: k, key: "" };
  // Q = diag(signs) (I x H) for Hadamard rotations: the signs go to the scale, what is left repeats from block to
  // block.
  const rotation = rotationOf(config);
  const block = config.kind === "hadamard" ? config.block : config.n;
  const plain = rotationOf({ ...config, ...(config.kind === "hadamard" ? { seed: null } : {}) });
  if (config.kind === "hadamard" && config.seed !== null) {
    const signs = new Float64Array(k);
    for (let from = 0; from < k; from += config.n) {
      const row = new Float64Array(config.n).fill(1);
      // x Q of unit vectors differ from those without signs by the sign alone
      const [a, b] = [Float64Array.from(row), Float64Array.from(row)];
      for (let i = 0; i < config.n; i++) {
        a.fill(0);
        b.fill(0);
        a[i] = b[i] = 1;
        rotation.apply(a);
        plain.apply(b);
        const at = b.findIndex((v) => v !== 0);
        signs[from + i] = Math.sign(a[at]) * Math.sign(b[at]);
      }
    }
    scale = Float32Array.from(signs, (s, i) => s * (scale === null ? 1 : scale[i]));
  }
  const matrix = new Float32Array(block * block);
  const unit = new Float64Array(config.n);
  for (let i = 0; i < block; i++) {
    unit.fill(0);
    unit[i] = 1;
    plain.apply(unit);
    matrix.set(unit.subarray(0, block), i * block);
  }
  const key = config.kind === "hadamard" ? `hadamard${block}` : `${config.kind}${config.n}_${String(config.seed)}`;
  return { scale, matrix, block, key };
}

const floats = (values: Float32Array, type: number): Uint8Array => {
  const data = type === T.FLOAT16 ? Uint16Array.from(values, encodeHalf) : type === T.DOUBLE ? Float64Array.from(values) : values;
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
};

/** Rotations that were written into a model, by what they are. */
const written = new WeakMap<TargetContext, Map<string, string>>();

/**
 * The matrix of a basis, or its transpose, as a constant of the main graph, which all graphs see: one for all layers.
 */
function rotationConstant(context: TargetContext, { key, matrix, block }: Basis, type: number, inverse: boolean): string {
  const known = written.get(context) ?? new Map<string, string>();
  written.set(context, known);
  const id = `${key}${inverse ? "_inverse" : ""}${type === T.FLOAT ? "" : `_${type}`}`;
  let name = known.get(id);
  if (name === undefined) {
    const values = inverse ? matrix!.map((_, i) => matrix![(i % block) * block + Math.floor(i / block)]) : matrix!;
    const tensor = makeTensor(context.model, context.names.take(`${ROTATION_NAME}${id}`), type, [block, block], floats(values, type));
    context.scopes[0].graph.initializer.push(tensor);
    known.set(id, (name = tensor.name));
  }
  return name;
}

/** Brings an input [.., k] of type `type` into the basis of the weight: the nodes, and the value after them. */
export function inputInBasis(
  layer: Layer,
  context: TargetContext,
  packed: PackedTensor,
  x: string,
  type: number,
): { readonly nodes: NodeProto[]; readonly x: string } {
  const basis = basisOf(packed);
  const nodes: NodeProto[] = [];
  if (basis === null) return { nodes, x };
  const { model, names } = context;
  const { initializer } = layer.scope.graph;
  const add = (opType: string, inputs: string[], what: string): string => {
    const output = names.take(`${layer.name}_${what}`);
    nodes.push(makeNode(opType, inputs, [output], { name: names.take(`${layer.name}_${what}_node`) }));
    return output;
  };
  const constant = (what: string, dims: number[], values: Float32Array): string => {
    const tensor = makeTensor(model, names.take(`${layer.name}_${what}`), type, dims, floats(values, type));
    initializer.push(tensor);
    return tensor.name;
  };
  let value = x;
  if (basis.scale !== null) value = add("Mul", [value, constant("channel_scale", [packed.k], basis.scale)], "scaled");
  if (basis.matrix !== null) {
    const { block } = basis;
    const rotation = rotationConstant(context, basis, type, false);
    if (block === packed.k) value = add("MatMul", [value, rotation], "rotated");
    else {
      const shape = add("Shape", [value], "shape");
      const rows = int64Tensor(context, `${layer.name}_blocks`, [-1, block]);
      initializer.push(rows);
      value = add("Reshape", [add("MatMul", [add("Reshape", [value, rows.name], "in_blocks"), rotation], "rotated"), shape], "in_basis");
    }
  }
  return { nodes, x: value };
}

/** Brings a decoded weight, float32 [rows, k], back into the model's basis: W Q^T diag(scale). */
export function weightFromBasis(
  build: ReturnType<typeof constantNodes>,
  context: TargetContext,
  packed: PackedTensor,
  base: string,
  value: string,
): string {
  const basis = basisOf(packed);
  if (basis === null) return value;
  const { rows, k } = packed;
  const constant = (what: string, dims: number[], values: Float32Array): string =>
    build.constant(makeTensor(context.model, context.names.take(`${base}_${what}`), T.FLOAT, dims, floats(values, T.FLOAT)));
  let out = value;
  if (basis.matrix !== null) {
    const { block } = basis;
    const inBlocks = block === k ? out : build.reshape(out, [-1, block], "in_blocks");
    const product = build.add("MatMul", [inBlocks, rotationConstant(context, basis, T.FLOAT, true)], "unrotated");
    out = block === k ? product : build.reshape(product, [rows, k], "in_rows");
  }
  return basis.scale === null ? out : build.add("Mul", [out, constant("channel_scale", [k], basis.scale)], "unscaled");
}
