// A model as a plan: the nodes that outputs need, in order, constants folded, weights prepared, and after which step
// each value is let go.
import type { Backend, SyncLayer } from "../../backends/types.ts";
import { engineMemory, hasEngineMemory } from "../../backends/wasm/memory.ts";
import type { NodeProto, TensorProto } from "../../onnx/file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../../onnx/file/gen/onnx_pb.ts";
import { tensorDims, type OnnxModel } from "../../onnx/file/model.ts";
import { constantTensor, opsetVersion } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import { INTEGER_DOMAIN } from "../../onnx/integer/functions.ts";
import { readOutliers } from "../../onnx/outliers.ts";
import { readStored } from "../../onnx/targets/record.ts";
import { constantSlot } from "../machine/machine.ts";
import { operators } from "../ops/index.ts";
import { isOwnFunction } from "../ops/integer-only.ts";
import { joinNBits } from "../ops/codes.ts";
import type { ActivationChoice, Operator, PrepareContext, Weight } from "../ops/operator.ts";
import type { ElementType, Scratch, TensorParts, Value } from "../value.ts";
import { borrowBytes, boundaryType, elementType, readValue, scratchBytes, sizeOf, tensorParts } from "../value.ts";
import type { FlatGraph } from "./flat.ts";
import { flatten } from "./flat.ts";
import { fuseBiases, fuseChains, joinable, joinedNode } from "./fuse.ts";
import { dropCasts, lower } from "./lower.ts";
import { fusePatterns } from "./patterns/index.ts";
import { fuseQdq } from "./qdq.ts";
import { unfolded } from "./qoperator.ts";
import { fuseSums } from "./sums.ts";
import type { Step, Unfreed } from "./step.ts";
import { runNode } from "./step.ts";
import { decodeWeight, dequantizedWeight } from "./weights.ts";

export interface Plan {
  readonly steps: readonly Step[];
  readonly constants: ReadonlyMap<string, Value>;
  readonly layers: readonly { dispose(): void }[];
  /** Nodes computed while loading, and nodes that no output needs. */
  readonly folded: number;
  readonly dead: number;
}

/** Folded constants are kept only up to this many elements: a huge Expand of constants is computed at run. */
const FOLD_MAX = 1 << 20;

const operatorOf = (node: NodeProto): Operator | undefined =>
  operators.get(operatorName(node)) ?? (node.opType === "SimplifiedLayerNormalization" ? operators.get(node.opType) : undefined);

interface ReadGraph {
  readonly flat: FlatGraph;
  readonly stored: ReturnType<typeof readStored>;
}

/** Types of inputs, initializers and stored weights. */
function typesOf(model: OnnxModel, flat: FlatGraph, stored: ReadGraph["stored"]): Map<string, ElementType> {
  const types = new Map<string, ElementType>();
  const add = (name: string, type: number): void => {
    const known = elementType(type);
    if (known !== undefined) types.set(name, known);
  };
  for (const [name, { dataType }] of flat.tensors) add(name, dataType);
  for (const { name, type } of model.proto.graph!.input) if (type?.value.case === "tensorType") add(name, type.value.value.elemType);
  for (const name of stored.keys()) types.set(name, "float32");
  return types;
}

/** The graph as the runtime reads it. */
export const readGraph = (model: OnnxModel): ReadGraph => {
  const stored = readStored(model);
  const flat = flatten(model, stored);
  const { input, output } = model.proto.graph!;
  const feeds = new Set(input.map(({ name }) => name));
  const tensor = (name: string): TensorProto | undefined => (feeds.has(name) ? undefined : flat.tensors.get(name));
  const read = new Map<string, Value>();
  const constant = (name: string): Value | undefined => {
    const found = tensor(name);
    if (found !== undefined && !read.has(name)) read.set(name, readValue(model, found));
    return read.get(name);
  };
  const outputs = output.map(({ name }) => name);
  const lowered = dropCasts(lower(flat.nodes, opsetVersion(model)), typesOf(model, flat, stored), outputs);
  const nodes = fuseQdq(lowered, outputs, { constant, tensor });
  return { flat: { ...flat, nodes }, stored };
};

/** What of one node the runtime does not have. */
export function missingOf(model: OnnxModel, node: NodeProto, tensors: FlatGraph["tensors"]): string[] {
  const name = operatorName(node);
  const found = node.input.flatMap((input) => missingTensor(tensors, input));
  if (name === "Constant") {
    const tensor = constantTensor(node);
    if (tensor === undefined || elementType(tensor.dataType) === undefined) found.push("Constant of another element type");
    return found;
  }
  const parts = unfolded(node);
  if (parts !== null) return [...found, ...parts.flatMap((part) => missingOf(model, part, tensors))];
  const operator = operatorOf(node);
  if (node.domain === INTEGER_DOMAIN && !isOwnFunction(model, node.opType)) found.push(`${name} of another body`);
  if (operator === undefined) found.push(name);
  const why = operator?.missing?.(node, opsetVersion(model));
  if (why !== undefined) found.push(`${name} ${why}`);
  return found;
}

function missingTensor(tensors: FlatGraph["tensors"], name: string): string[] {
  const tensor = tensors.get(name);
  const isKnown = tensor === undefined || elementType(tensor.dataType) !== undefined;
  return isKnown ? [] : [`element type of initializer ${JSON.stringify(name)}`];
}

/** Operators, and forms of them, that the runtime does not have: sorted, each once. */
export function missingOperators(model: OnnxModel, { nodes, tensors }: FlatGraph): string[] {
  const graph = model.proto.graph!;
  const found = nodes.flatMap(({ node }) => missingOf(model, node, tensors));
  found.push(...graph.output.flatMap(({ name }) => missingTensor(tensors, name)));
  if (graph.sparseInitializer.length > 0) found.push("sparse initializers");
  for (const { name, type } of graph.input) {
    const kind = type?.value;
    if (kind?.case !== "tensorType" || boundaryType(kind.value.elemType) === undefined)
      found.push(`element type of input ${JSON.stringify(name)}`);
  }
  return [...new Set(found)].sort();
}

/** Operators that read tables of angles where kernels have them. */
const TURNING: ReadonlySet<string> = new Set(["com.microsoft.GroupQueryAttention", "com.microsoft.RotaryEmbedding"]);

/** What only they read: for 40,000 positions of heads of 128 it is 20 MB, which decoders would have twice. */
function angleTables({ nodes, tensors }: FlatGraph, outputs: readonly string[]): Set<string> {
  const [found, others] = [new Set<string>(), new Set(outputs)];
  for (const { node, guards } of nodes) {
    for (const name of node.input) (TURNING.has(operatorName(node)) && tensors.has(name) ? found : others).add(name);
    for (const { name } of guards) others.add(name);
  }
  for (const name of others) found.delete(name);
  return found;
}

/** Makes the value of a tensor of float32, if it is to lie elsewhere. */
type Placing = (name: string, parts: TensorParts, dims: readonly number[]) => Value | undefined;

/**
 * Constants of a model as they are read: initializers, folded nodes, weights that stay codes until an operator needs
 * their values.
 */
class Constants {
  readonly values = new Map<string, Value>();
  readonly weights = new Map<string, Weight>();
  readonly #model: OnnxModel;
  readonly #flat: FlatGraph;
  readonly #feeds: ReadonlySet<string>;
  readonly #place: Placing;
  readonly #reading: Scratch = { bytes: new Uint8Array(0) };

  constructor(model: OnnxModel, flat: FlatGraph, feeds: ReadonlySet<string>, place: Placing) {
    this.#model = model;
    this.#flat = flat;
    this.#feeds = feeds;
    this.#place = place;
  }

  /** The value of a constant; undefined where it is none. */
  get(name: string): Value | undefined {
    const known = this.values.get(name);
    if (known !== undefined) return known;
    const weight = this.weights.get(name);
    const tensor = this.#flat.tensors.get(name);
    // an initializer that is an input too may be fed another value
    if (weight === undefined && (tensor === undefined || this.#feeds.has(name))) return undefined;
    const parts = weight === undefined ? this.parts(name, T.FLOAT) : undefined;
    const value =
      weight !== undefined
        ? decodeWeight(weight)
        : ((parts && this.#place(name, parts, tensorDims(tensor!))) ?? readValue(this.#model, tensor!));
    this.values.set(name, value);
    return value;
  }

  /** Bytes of a uint8 tensor, without keeping them. */
  bytes(name: string): Uint8Array | undefined {
    const tensor = this.#flat.tensors.get(name);
    if (tensor?.dataType !== T.UINT8 || this.#feeds.has(name)) return undefined;
    return borrowBytes(this.#model, tensor, this.#reading);
  }

  /** The bytes of a tensor, to be read in parts; undefined where it is none of this type, or may be fed. */
  parts(name: string, type: T): TensorParts | undefined {
    const tensor = this.#flat.tensors.get(name);
    if (tensor?.dataType !== type || this.#feeds.has(name)) return undefined;
    return tensorParts(this.#model, tensor);
  }

  has(name: string): boolean {
    return this.values.has(name) || this.weights.has(name) || (this.#flat.tensors.has(name) && !this.#feeds.has(name));
  }

  drop(name: string): void {
    this.values.delete(name);
    this.weights.delete(name);
  }

  /** Keeps a node's result as a weight, if it is one. */
  keepWeight(node: NodeProto): boolean {
    const [first] = node.input;
    if (node.opType === "Transpose" && this.weights.has(first)) {
      const weight = this.weights.get(first)!;
      this.weights.set(node.output[0], { ...weight, isRows: !weight.isRows });
      return true;
    }
    if (node.opType !== "DequantizeLinear" || !node.input.every((name) => name === "" || this.has(name))) return false;
    const [codes, scales, zeros] = [0, 1, 2].map((i) => this.get(node.input[i] ?? ""));
    const weight = dequantizedWeight(node, codes!.bits ?? 8, codes!, scales!, zeros);
    if (weight === undefined) return false;
    this.weights.set(node.output[0], weight);
    return true;
  }
}

export interface PlanOptions {
  readonly backend: Backend<SyncLayer>;
  /** Where products with constant weights run, if it is not the backend. */
  readonly products?: Pick<Backend<SyncLayer>, "prepare"> | undefined;
  readonly activations: ActivationChoice;
  /** Weights that the caller has: by the value that they are. */
  readonly held?: ReadonlyMap<string, Weight>;
  /** Called between nodes with how many are done, and in all; what it throws ends the work, and frees what was made. */
  readonly pace?: (done: number, total: number) => void | Promise<void>;
}

/** @throws LowbitError E_ONNX, E_SHAPE, E_UNSUPPORTED */
export async function makePlan(model: OnnxModel, { flat, stored }: ReadGraph, options: PlanOptions): Promise<Plan> {
  const { backend, activations, held = new Map<string, Weight>(), pace } = options;
  const graph = model.proto.graph!;
  const opset = opsetVersion(model);
  const feeds = new Set(graph.input.map(({ name }) => name));
  const outputs = graph.output.map(({ name }) => name);
  /** Whether weights and kernels share a memory. */
  const isTogether = hasEngineMemory(backend) && (options.products ?? backend) === backend;
  const owned: { dispose(): void }[] = [];
  const tables = isTogether ? angleTables(flat, outputs) : new Set<string>();
  const constants = new Constants(model, flat, feeds, (name, { size, read }, dims) => {
    if (!tables.has(name) || size !== 4 * sizeOf(dims)) return undefined;
    const memory = engineMemory(backend);
    const region = memory.allocate(size);
    owned.push({ dispose: region.free });
    read(0, new Uint8Array(memory.buffer, region.address, size));
    return constantSlot(memory, region, dims);
  });
  for (const [name, packed] of stored) constants.weights.set(name, { isRows: true, packed });
  for (const [name, weight] of held) constants.weights.set(name, weight);
  const outliers = readOutliers(model);
  const layers = new Map<string, SyncLayer>();
  const steps: Unfreed[] = [];
  const dropped = new Map<NodeProto, ReadonlySet<number>>();
  const uses = new Map<string, number>();
  for (const { node } of flat.nodes) for (const name of node.input) uses.set(name, (uses.get(name) ?? 0) + 1);
  for (const name of outputs) uses.set(name, Infinity);
  /** The bytes of a weight go as soon as its last reader has packed them. */
  const release = (node: NodeProto, drops: readonly number[]): void => {
    for (const name of drops.map((i) => node.input[i] ?? "")) {
      uses.set(name, (uses.get(name) ?? 0) - 1);
      if (uses.get(name) === 0) constants.drop(name);
    }
  };
  const contextOf = (node: NodeProto): PrepareContext => ({
    backend,
    products: options.products ?? backend,
    opset,
    activations,
    productOptions(auto) {
      const chosen = activations === "auto" ? auto : activations;
      const wide = chosen === "int4" || chosen === "int6" ? outliers.get(node.input[0]) : undefined;
      return { activations: chosen, ...(wide !== undefined && { mixed: { wide } }) };
    },
    bytes: (name) => constants.bytes(name),
    // others keep what they prepare
    parts: (name, type) => (isTogether ? constants.parts(name, type === "uint8" ? T.UINT8 : T.FLOAT) : undefined),
    // a backend with a memory of its own copies the weight; others keep it
    scratch: (bytes) => (hasEngineMemory(backend) ? scratchBytes(packing, bytes) : new Uint8Array(bytes)),
    constant: (i) => constants.get(node.input[i] ?? ""),
    weight: (i) => constants.weights.get(node.input[i] ?? ""),
    layer(key, make) {
      const made = layers.get(key) ?? make();
      layers.set(key, made);
      return made;
    },
    own(made) {
      owned.push(made);
      return made;
    },
  });
  const packing: Scratch = { bytes: new Uint8Array(0) };
  const groups = joinable(flat.nodes, (name) => flat.tensors.has(name) && !feeds.has(name));
  const joinedAway = new Set<NodeProto>();
  let folded = 0;
  /** Constants that patterns look at: weights stay codes. */
  const small = (name: string): Value | undefined => (constants.weights.has(name) ? undefined : constants.get(name));
  try {
    for (const [done, { node, guards }] of flat.nodes.entries()) {
      await pace?.(done, flat.nodes.length);
      const operator = operatorName(node);
      if (operator === "Constant") {
        constants.values.set(node.output[0], readValue(model, constantTensor(node)!));
        folded++;
        continue;
      }
      if (constants.keepWeight(node)) {
        folded++;
        continue;
      }
      const row = operatorOf(node)!;
      if (joinedAway.has(node)) continue;
      const group = groups.get(node);
      if (group !== undefined) {
        const joined = joinNBits(group, contextOf(node), (name) => constants.get(name));
        for (const other of group) {
          joinedAway.add(other);
          release(other, [1, 2]);
        }
        steps.push({ node: joinedNode(group), operator: "lowbit.Joined", guards, ...joined });
        continue;
      }
      const prepared = row.prepare?.(node, contextOf(node));
      if (prepared === undefined && node.input.every((name) => name === "" || constants.has(name))) {
        const results = runNode(row.run, node, (name) => constants.get(name));
        if (results.every((v) => v === undefined || v.data.length <= FOLD_MAX)) {
          node.output.forEach((name, i) => results[i] !== undefined && constants.values.set(name, results[i]));
          folded++;
          continue;
        }
      }
      if (prepared !== undefined) {
        dropped.set(node, new Set(prepared.drops));
        release(node, prepared.drops);
      }
      const { run = row.run, kernel = "loops", layer, rows, codes } = prepared ?? {};
      steps.push({ node, operator, guards, run, kernel, ...(layer && { layer }), ...(rows && { rows }), ...(codes && { codes }) });
    }
    const fused = fusePatterns(fuseSums(steps, outputs, small), outputs, small);
    // Weights that only prepared layers read are let go: their bytes are in the layers.
    const read = new Set(graph.output.map(({ name }) => name));
    for (const { node, guards } of fused.flatMap((step) => (step.fused === undefined ? [step] : [step, ...step.fused.parts]))) {
      node.input.forEach((name, i) => dropped.get(node)?.has(i) || read.add(name));
      for (const { name } of guards) read.add(name);
    }
    for (const name of read) constants.get(name);
    const kept = new Map([...constants.values].filter(([name]) => read.has(name)));
    for (const name of feeds) if (flat.tensors.has(name)) kept.set(name, readValue(model, flat.tensors.get(name)!));
    return {
      steps: withLifetimes(fuseBiases(fuseChains(fused, outputs, small), outputs, small), outputs),
      constants: kept,
      layers: [...layers.values(), ...owned],
      folded,
      dead: flat.dead,
    };
  } catch (error) {
    for (const layer of [...layers.values(), ...owned]) layer.dispose();
    throw error;
  }
}

function withLifetimes(steps: readonly Unfreed[], outputs: readonly string[]): Step[] {
  const kept = new Set(outputs);
  const seen = new Set<string>();
  const made = new Set(steps.flatMap(({ node }) => node.output));
  const out: Step[] = [];
  for (const step of [...steps].reverse()) {
    const frees: string[] = [];
    for (const name of [...step.node.input, ...step.node.output, ...step.guards.map((guard) => guard.name)]) {
      if (name === "" || seen.has(name) || kept.has(name) || !made.has(name)) continue;
      seen.add(name);
      frees.push(name);
    }
    out.push({ ...step, frees });
  }
  return out.reverse();
}
