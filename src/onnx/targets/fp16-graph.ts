// The graphs of a model rewritten for float16: each value has up to two names, one per precision; a Cast makes the
// other where a node asks for it. Graph inputs and outputs may keep their type. Subgraphs give and take float16, unless
// the node that holds them stays in float32.
import { create } from "@bufbuild/protobuf";
import type { AttributeProto, NodeProto, TensorProto } from "../file/gen/onnx_pb.ts";
import {
  AttributeProtoSchema,
  AttributeProto_AttributeType as A,
  TensorProtoSchema,
  TensorProto_DataType as T,
} from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import { makeTensor } from "../file/model.ts";
import { ARRAY_MAX, tensorBytes } from "../file/values.ts";
import type { Scope } from "../graph/graph.ts";
import { attributeOf, constantTensor, definingScope, intAttribute, isDefaultDomain, makeNode, removeUnused } from "../graph/graph.ts";
import type { ElementTypes } from "../graph/infer.ts";
import { tensorElementType } from "../graph/infer.ts";
import { clampOf, toHalf } from "./fp16-constants.ts";

/** The names of a value in each precision; a missing one is made on demand. */
interface Versions {
  half?: string;
  float?: string;
}

/** A constant float tensor: the initializer, or the Constant node that holds it. */
interface FloatConstant {
  readonly tensor: TensorProto;
  readonly node?: NodeProto;
}

export interface Fp16Graph {
  /** Constants to convert, and where their codes go. */
  readonly constants: { tensor: TensorProto; place: (bytes: Uint8Array) => void }[];
}

export interface Fp16Init {
  readonly model: OnnxModel;
  readonly scopes: readonly Scope[];
  readonly types: ElementTypes;
  /** Does a node stay in float32? */
  readonly blocked: (node: NodeProto) => boolean;
  readonly unique: (base: string) => string;
  readonly keepIo: boolean;
}

type Want = keyof Versions;

interface State extends Fp16Init {
  readonly versions: Map<Scope, Map<string, Versions>>;
  readonly constants: Map<Scope, Map<string, FloatConstant>>;
  /** Which forms of a constant are asked for, and their names. */
  readonly wanted: Map<FloatConstant, Versions>;
  readonly after: Map<NodeProto, NodeProto[]>;
  readonly atStart: Map<Scope, NodeProto[]>;
  readonly atEnd: Map<Scope, NodeProto[]>;
  /** Casts of the model to float whose results may not be read any more. */
  readonly idle: Set<string>;
}

const isFloat = ({ types }: State, scope: Scope, name: string): boolean => types.get(scope)!.get(name) === T.FLOAT;

const castNode = ({ unique }: State, from: string, to: string, type: T): NodeProto =>
  makeNode("Cast", [from], [to], { name: unique(`${to}_cast`), attributes: [intAttribute("to", type)] });

/** The precision that a subgraph takes and gives: that of the node which holds it. */
const innerWant = ({ blocked }: State, scope: Scope): Want => (scope.holder !== null && blocked(scope.holder) ? "float" : "half");

/** Rewrites the graphs; constants are converted afterwards by the caller. */
export function fp16Graph(init: Fp16Init): Fp16Graph {
  const { scopes } = init;
  const byScope = <V>(make: () => V): Map<Scope, V> => new Map(scopes.map((scope) => [scope, make()]));
  const state: State = {
    ...init,
    versions: byScope(() => new Map<string, Versions>()),
    constants: byScope(() => new Map<string, FloatConstant>()),
    wanted: new Map(),
    after: new Map(),
    atStart: byScope((): NodeProto[] => []),
    atEnd: byScope((): NodeProto[] => []),
    idle: new Set(),
  };
  for (const scope of scopes) nameValues(state, scope);
  for (const scope of scopes) {
    renameInputs(state, scope);
    renameResults(state, scope);
  }
  const converted = scopes.flatMap((scope) => placeConstants(state, scope));
  for (const scope of scopes) {
    const { graph } = scope;
    const nodes = graph.node.flatMap((node) => [node, ...(state.after.get(node) ?? [])]);
    graph.node = [...state.atStart.get(scope)!, ...nodes, ...state.atEnd.get(scope)!];
    graph.valueInfo = graph.valueInfo.filter((value) => tensorElementType(value.type) !== T.FLOAT);
  }
  if (state.idle.size > 0) removeUnused(scopes, state.idle);
  return { constants: converted };
}

/** What every float value of a graph is called in which precision. */
function nameValues(state: State, scope: Scope): void {
  const { keepIo } = state;
  const main = scope.parent === null;
  const own = state.versions.get(scope)!;
  const constants = state.constants.get(scope)!;
  const { graph } = scope;
  const results = new Set(main ? graph.output.map((value) => value.name) : []);
  for (const tensor of graph.initializer) if (tensor.dataType === T.FLOAT) constants.set(tensor.name, { tensor });
  for (const [name, { values }] of scope.sparse) if (values?.dataType === T.FLOAT) own.set(name, { float: name });
  for (const input of graph.input) {
    if (!isFloat(state, scope, input.name) || scope.initializers.has(input.name)) continue;
    const want: Want = main ? (keepIo ? "float" : "half") : innerWant(state, scope);
    own.set(input.name, { [want]: input.name });
    if (want === "half") setElementType(input.type, T.FLOAT16);
  }
  for (const node of graph.node) {
    const constant = floatConstant(node);
    if (constant !== null && !results.has(node.output[0])) constants.set(node.output[0], { tensor: constant, node });
    else nameOutputs(state, scope, node, results);
  }
}

function nameOutputs(state: State, scope: Scope, node: NodeProto, results: ReadonlySet<string>): void {
  const { blocked, keepIo, unique } = state;
  const own = state.versions.get(scope)!;
  const constant = node.opType === "Constant" && isDefaultDomain(node); // one that is itself a result
  const kept = blocked(node) || constant;
  if (widensHalf(state, scope, node)) {
    // A Cast of float16 to float: who wants float16 reads what it reads.
    own.set(node.output[0], { float: node.output[0], half: node.input[0] });
    if (!results.has(node.output[0])) state.idle.add(node.output[0]);
    return;
  }
  node.output.forEach((name, i) => {
    if (name === "" || !isFloat(state, scope, name)) return;
    const isOutput = (keepIo || constant) && results.has(name);
    if (kept) {
      // The float32 result keeps the name only where the outside reads it.
      const float = isOutput ? name : unique(`${name}_fp32`);
      node.output[i] = float;
      own.set(name, { float });
    } else if (isOutput) {
      const half = unique(`${name}_fp16`);
      node.output[i] = half;
      own.set(name, { half, float: name });
      state.atEnd.get(scope)!.push(castNode(state, half, name, T.FLOAT));
    } else own.set(name, { half: name });
  });
  if (!kept) halveAttributes(node);
}

function widensHalf({ types }: State, scope: Scope, node: NodeProto): boolean {
  if (node.opType !== "Cast" || !isDefaultDomain(node) || types.get(scope)!.get(node.output[0] ?? "") !== T.FLOAT) return false;
  const owner = definingScope(scope, node.input[0] ?? "");
  return owner !== null && types.get(owner)!.get(node.input[0]) === T.FLOAT16;
}

/** The name under which `name` (as seen from `scope`) has the wanted precision. */
function version(state: State, scope: Scope, name: string, want: Want): string {
  const owner = definingScope(scope, name);
  if (owner === null) return name;
  const constant = state.constants.get(owner)!.get(name);
  const known = state.versions.get(owner)!.get(name);
  if (constant !== undefined && known === undefined) return constantVersion(state, owner, name, constant, want);
  if (known === undefined) return name;
  if (known[want] !== undefined) return known[want];
  const from = (want === "half" ? known.float : known.half)!;
  // The half of a float32 result takes the value's old name, where that is free.
  const to = want === "half" && from !== name ? name : state.unique(`${name}_${want === "half" ? "fp16" : "fp32"}`);
  known[want] = to;
  const node = castNode(state, from, to, want === "half" ? T.FLOAT16 : T.FLOAT);
  const producer = owner.producers.get(name);
  if (producer === undefined) state.atStart.get(owner)!.push(node);
  else state.after.set(producer, [...(state.after.get(producer) ?? []), node]);
  return to;
}

function constantVersion(state: State, owner: Scope, name: string, constant: FloatConstant, want: Want): string {
  const made = state.wanted.get(constant) ?? {};
  state.wanted.set(constant, made);
  if (want === "half" && tensorBytes(constant.tensor) / 2 > ARRAY_MAX) {
    made.float = name;
    state.versions.get(owner)!.set(name, { float: name });
    return version(state, owner, name, "half");
  }
  return (made[want] ??= want === "float" ? name : state.unique(`${name}_fp16`));
}

function renameInputs(state: State, scope: Scope): void {
  for (const node of scope.graph.node) {
    const want: Want = state.blocked(node) ? "float" : "half";
    // A Cast takes either precision: it reads the one that is there.
    const either = node.opType === "Cast" && isDefaultDomain(node);
    node.input.forEach((name, i) => {
      const owner = definingScope(scope, name);
      if (owner === null || !isFloat(state, owner, name)) return;
      const known = state.versions.get(owner)!.get(name);
      node.input[i] = either && known !== undefined ? (known.float ?? known.half)! : version(state, scope, name, want);
    });
  }
}

function renameResults(state: State, scope: Scope): void {
  const { keepIo, unique } = state;
  const inner = scope.parent !== null;
  if (!inner && keepIo) return;
  const want = inner ? innerWant(state, scope) : "half";
  for (const output of scope.graph.output) {
    const owner = definingScope(scope, output.name);
    if (owner === null || !isFloat(state, owner, output.name)) continue;
    // An input or constant that is a result of the model keeps its type.
    if (!inner && (scope.producers.get(output.name)?.opType ?? "Constant") === "Constant") continue;
    let name = version(state, scope, output.name, want);
    if (!inner && name !== output.name) name = output.name;
    else if (owner !== scope) {
      // A result that is a value of an outer graph: made a value of this one.
      const identity = makeNode("Identity", [name], [unique(`${name}_result`)], { name: unique(`${name}_identity`) });
      state.atEnd.get(scope)!.push(identity);
      name = identity.output[0];
    }
    output.name = name;
    if (want === "half") setElementType(output.type, T.FLOAT16);
  }
}

/** Constants: converted in place where only float16 is asked for, beside the original where both are. */
function placeConstants(state: State, scope: Scope): Fp16Graph["constants"] {
  const { model } = state;
  const { graph } = scope;
  const converted: Fp16Graph["constants"] = [];
  const results = new Set(scope.parent === null ? graph.output.map((value) => value.name) : []);
  const places = new Map(graph.initializer.map((tensor, index) => [tensor, index]));
  const moved = new Set<string>();
  for (const [name, constant] of state.constants.get(scope)!) {
    const made = state.wanted.get(constant);
    if (made?.half === undefined) continue;
    const { tensor, node } = constant;
    const half = made.half;
    const bothNeeded = made.float !== undefined || results.has(name);
    const dims = tensor.dims.map(Number);
    const index = bothNeeded ? undefined : places.get(tensor);
    if (node !== undefined && !bothNeeded) node.output[0] = half;
    else if (!bothNeeded) moved.add(name);
    converted.push({
      tensor,
      place: (bytes) => {
        if (node !== undefined && !bothNeeded) {
          const value = makeTensor(model, tensor.name, T.FLOAT16, dims, bytes);
          node.attribute = [create(AttributeProtoSchema, { name: "value", t: value, type: A.TENSOR })];
          return;
        }
        const value = makeTensor(model, half, T.FLOAT16, dims, bytes);
        if (index !== undefined) graph.initializer[index] = value;
        else graph.initializer.push(value);
      },
    });
  }
  graph.input = graph.input.filter((input) => !moved.has(input.name));
  return converted;
}

function setElementType(type: { value: { case?: string; value?: unknown } } | undefined, dataType: T): void {
  if (type?.value.case === "tensorType") (type.value.value as { elemType: number }).elemType = dataType;
}

/** The float tensor of a Constant node (value, value_float, value_floats), or null. */
function floatConstant(node: NodeProto): TensorProto | null {
  if (node.opType !== "Constant" || !isDefaultDomain(node)) return null;
  const tensor = constantTensor(node);
  return tensor?.dataType === T.FLOAT ? tensor : null;
}

/** Attributes that choose or hold float32: ConstantOfShape's value. */
function halveAttributes(node: NodeProto): void {
  if (node.opType !== "ConstantOfShape") return;
  const value = attributeOf(node, "value")?.t;
  if (value !== undefined && value.dataType !== T.FLOAT) return;
  const raw =
    value?.rawData !== undefined && value.rawData.length === 4
      ? new DataView(value.rawData.slice().buffer).getFloat32(0, true)
      : value?.floatData[0];
  // A fill beyond float16 is that of a mask.
  const { codes } = toHalf(Float32Array.of(raw ?? 0), clampOf(1, true, undefined));
  const tensor = create(TensorProtoSchema, { dataType: T.FLOAT16, dims: [1n], rawData: new Uint8Array(codes.buffer) });
  const attribute: AttributeProto = create(AttributeProtoSchema, { name: "value", t: tensor, type: A.TENSOR });
  node.attribute = [...node.attribute.filter((other) => other.name !== "value"), attribute];
}
