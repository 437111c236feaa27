// What a float graph computes, in the terms that have an integer form: products, sums, normalisations, softmax, moves,
// and functions of one value. Nothing is changed here.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { Reader } from "../edit.ts";
import { findReaders } from "../edit.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";
import type { ConstantView, Scope } from "../graph/graph.ts";
import {
  attributeFloat,
  attributeInt,
  buildScopes,
  constantResolver,
  inferTypes,
  isDefaultDomain,
  nodeName,
  operatorName,
  opsetVersion,
  readConstant,
} from "../graph/graph.ts";
import { isLastAxis, findNorms, vectorSize, type Norm } from "../passes/norms.ts";
import type { PassContext } from "../passes/types.ts";
import { elementwise, slopeOf, type Unary } from "./expressions.ts";

/** How a float value comes about; names are those of the float graph. */
export type Made =
  | {
      readonly kind: "linear";
      readonly x: string;
      readonly weight: ConstantView;
      readonly byRows: boolean;
      readonly bias: ConstantView | null;
    }
  | {
      readonly kind: "conv";
      readonly x: string;
      readonly weight: ConstantView;
      readonly bias: ConstantView | null;
      readonly node: NodeProto;
    }
  | { readonly kind: "product"; readonly a: string; readonly b: string }
  | { readonly kind: "softmax"; readonly x: string }
  | { readonly kind: "attend"; readonly x: string; readonly b: string }
  | { readonly kind: "norm"; readonly x: string; readonly norm: Norm }
  | { readonly kind: "add"; readonly a: string; readonly b: string; readonly sign: 1 | -1 }
  | { readonly kind: "multiply"; readonly a: string; readonly b: string }
  | { readonly kind: "where"; readonly node: NodeProto; readonly a: string; readonly b: string }
  | { readonly kind: "derived"; readonly root: string; readonly f: Unary; readonly depth: number }
  | { readonly kind: "move"; readonly node: NodeProto; readonly from: readonly string[] }
  | { readonly kind: "integers"; readonly from: string }
  | { readonly kind: "constant"; readonly values: Float32Array; readonly dims: readonly number[] }
  | { readonly kind: "input" };

export interface Step {
  /** The value that is made; "" for nodes on integers, which stay. */
  readonly out: string;
  readonly made: Made | null;
  readonly node: NodeProto;
}

export interface Analysis {
  readonly scope: Scope;
  readonly steps: readonly Step[];
  readonly made: ReadonlyMap<string, Made>;
  /** Values that only ever forbid (0, or a very negative number): attention masks. */
  readonly masks: ReadonlySet<string>;
  /** Whether a value holds floats. */
  isFloat(name: string): boolean;
}

/** Operators that hand numbers on as they are: those of their first input, Concat those of all. */
const MOVES: ReadonlySet<string> = new Set([
  "Reshape",
  "Transpose",
  "Slice",
  "Gather",
  "GatherElements",
  "GatherND",
  "Squeeze",
  "Unsqueeze",
  "Flatten",
  "Expand",
  "Tile",
  "Split",
  "Concat",
]);

/** Nested functions deeper than this start anew from a table. */
const DEPTH_MAX = 24;
/** From here on a negative number is a mask's. */
const FORBIDDEN = -1000;

const unsupported = (reasons: readonly string[]): LowbitError =>
  new LowbitError(
    "E_UNSUPPORTED",
    `integerOnly: expected a transformer encoder of operators that have an integer form, got ${reasons.slice(0, 5).join("; ")}${reasons.length > 5 ? ` and ${reasons.length - 5} more` : ""}. Export the model unfused, in float32 and without If and Loop, or cut it with cutModel.`,
  );

class Analyzer {
  readonly scope: Scope;
  readonly steps: Step[] = [];
  readonly made = new Map<string, Made>();
  readonly masks = new Set<string>();
  readonly reasons: string[] = [];
  readonly #model: OnnxModel;
  readonly #types: ReadonlyMap<string, number>;
  readonly #readers: ReadonlyMap<string, readonly Reader[]>;
  readonly #constant: (name: string) => ConstantView | null;
  readonly #norms = new Map<NodeProto, Norm>();
  readonly #skipped = new Set<NodeProto>();
  readonly #biased = new Map<NodeProto, ConstantView>();

  constructor(model: OnnxModel) {
    const scopes = buildScopes(model);
    this.#model = model;
    [this.scope] = scopes;
    if (scopes.length > 1) this.reasons.push(`subgraphs (${scopes[1].path})`);
    this.#types = inferTypes(scopes, opsetVersion(model)).get(this.scope)!;
    const all = findReaders(scopes);
    this.#readers = all.get(this.scope)!;
    const resolve = constantResolver(model);
    this.#constant = (name) => resolve(this.scope, name);
    const context = { model, scopes, readers: (scope: Scope, name: string) => all.get(scope)?.get(name) ?? [] };
    for (const norm of findNorms(context as unknown as PassContext)) this.#addNorm(norm);
  }

  #addNorm(norm: Norm): void {
    const order = new Map(this.scope.graph.node.map((node, i) => [node, i]));
    const nodes = [...new Set([...norm.core, ...[norm.gain, norm.bias].flatMap((v) => (v === null ? [] : [v.node]))])];
    const last = nodes.find((node) => node.output.includes(norm.output));
    if (last === undefined || nodes.some((node) => order.get(node)! > order.get(last)!)) return;
    for (const node of nodes) this.#skipped.add(node);
    this.#norms.set(last, norm);
  }

  isFloat = (name: string): boolean => this.#types.get(name) === Number(T.FLOAT);

  /** The one node that reads a value. */
  #only(name: string): NodeProto | null {
    const readers = this.#readers.get(name) ?? [];
    return readers.length === 1 ? readers[0].node : null;
  }

  #scalar(name: string): number | undefined {
    const constant = this.#constant(name);
    if (constant === null || constant.shape.some((d) => d !== 1)) return undefined;
    return readConstant(this.#model, constant)[0];
  }

  /** A float operand: constants become values of their own. */
  #operand(name: string): string {
    if (!this.made.has(name)) {
      const constant = this.#constant(name);
      if (constant !== null)
        this.#define(name, { kind: "constant", values: readConstant(this.#model, constant).slice(), dims: constant.shape });
    }
    return name;
  }

  #define(out: string, made: Made): void {
    this.made.set(out, made);
    if (this.#isMask(made)) this.masks.add(out);
  }

  #isMask(made: Made): boolean {
    if (made.kind === "constant") return isForbidding(made.values);
    if (made.kind === "move") return made.from.every((name) => this.masks.has(name));
    if (made.kind !== "derived" || this.made.get(made.root)?.kind !== "integers") return false;
    return isForbidding([made.f(0), made.f(1)]);
  }

  #push(node: NodeProto, out: string, made: Made): void {
    this.#define(out, made);
    this.steps.push({ node, out, made });
  }

  run(): Analysis {
    const { graph } = this.scope;
    for (const input of graph.input)
      if (this.isFloat(input.name) && !this.scope.initializers.has(input.name)) this.#define(input.name, { kind: "input" });
    for (const node of graph.node) this.#visit(node);
    if (this.reasons.length > 0) throw unsupported(this.reasons);
    // all nodes have a form: what is left is an output of none
    const left = graph.output.filter(({ name }) => this.isFloat(name) && !this.made.has(name));
    if (left.length > 0) throw unsupported(left.map(({ name }) => `output ${name}, which is constant`));
    return { scope: this.scope, steps: this.steps, made: this.made, masks: this.masks, isFloat: this.isFloat };
  }

  #visit(node: NodeProto): void {
    const norm = this.#norms.get(node);
    if (norm !== undefined) return this.#norm(node, norm);
    if (this.#skipped.has(node) || node.output.every((name) => this.#constant(name) !== null)) return;
    const unknown = node.output.find((name) => name !== "" && (this.#types.get(name) ?? 0) === 0);
    if (unknown !== undefined) return void this.reasons.push(`${operatorName(node)} (${nodeName(node)}), whose type is not known`);
    if (!node.output.some((name) => this.isFloat(name))) {
      const reads = node.input.filter((name) => this.isFloat(name));
      if (reads.length > 0 && node.opType !== "Shape" && node.opType !== "Size")
        return void this.reasons.push(`${operatorName(node)} (${nodeName(node)}), which makes integers of floats`);
      return void this.steps.push({ node, out: "", made: null });
    }
    const made = isDefaultDomain(node) ? (this.#structure(node) ?? this.#function(node)) : this.#function(node);
    if (made === "later") return;
    if (made === undefined) return void this.reasons.push(`${operatorName(node)} (${nodeName(node)})`);
    for (const out of node.output) if (this.isFloat(out)) this.#push(node, out, made);
  }

  #norm(node: NodeProto, norm: Norm): void {
    let [x] = norm.inputs;
    if (norm.inputs.length === 2) {
      x = norm.sum === "" ? `${norm.output}/sum` : norm.sum;
      const [a, b] = norm.inputs.map((name) => this.#operand(name));
      this.#push(node, x, { kind: "add", a, b, sign: 1 });
    }
    if (!this.made.has(x)) return void this.reasons.push(`the normalisation of ${x}, which is not made of integers`);
    this.#push(node, norm.output, { kind: "norm", x, norm });
  }

  /** Operators with a form of their own; "later" where a later node takes this one in. */
  #structure(node: NodeProto): Made | "later" | undefined {
    const biased = this.#biased.get(node);
    if (biased !== undefined) return this.#withBias(node, biased);
    switch (node.opType) {
      case "MatMul":
        return this.#matMul(node);
      case "Gemm":
        return this.#gemm(node);
      case "Conv":
        return this.#conv(node);
      case "Softmax": {
        if (!isLastAxis(this.scope, node.input[0], attributeInt(node, "axis", -1))) return undefined;
        const reader = this.#only(node.output[0]);
        if (reader?.opType === "MatMul" && reader.input[0] === node.output[0] && this.#constant(reader.input[1]) === null) return "later";
        return { kind: "softmax", x: node.input[0] };
      }
      case "Where": {
        const [a, b] = node.input.slice(1).map((name) => this.#operand(name));
        return this.made.has(a) && this.made.has(b) ? { kind: "where", node, a, b } : undefined;
      }
      case "Cast":
        return this.isFloat(node.input[0]) ? undefined : { kind: "integers", from: node.input[0] };
      default: {
        if (!MOVES.has(node.opType)) return undefined;
        const from = (node.opType === "Concat" ? node.input : node.input.slice(0, 1)).map((name) => this.#operand(name));
        return from.every((name) => this.made.has(name)) ? { kind: "move", node, from } : undefined;
      }
    }
  }

  #matMul(node: NodeProto): Made | "later" | undefined {
    const [a, b] = node.input;
    const softmax = this.scope.producers.get(a);
    const weight = this.#constant(b);
    if (softmax?.opType === "Softmax" && !this.made.has(a))
      return this.made.has(softmax.input[0]) && this.made.has(b) ? { kind: "attend", x: softmax.input[0], b } : undefined;
    if (weight === null) return this.made.has(a) && this.made.has(b) ? { kind: "product", a, b } : undefined;
    if (weight.shape.length !== 2 || !this.made.has(a)) return undefined;
    const reader = this.#only(node.output[0]);
    const other = reader?.opType === "Add" && isDefaultDomain(reader) ? reader.input.find((name) => name !== node.output[0]) : undefined;
    if (other !== undefined && vectorSize(this.scope, other) === weight.shape[1] && !this.#skipped.has(reader!)) {
      this.#biased.set(reader!, this.#constant(other)!);
      return "later";
    }
    return { kind: "linear", x: a, weight, byRows: false, bias: null };
  }

  #withBias(node: NodeProto, bias: ConstantView): Made | undefined {
    const product = node.input.map((name) => this.scope.producers.get(name)).find((maker) => maker?.opType === "MatMul")!;
    return { kind: "linear", x: product.input[0], weight: this.#constant(product.input[1])!, byRows: false, bias };
  }

  #gemm(node: NodeProto): Made | undefined {
    const [x, w, c] = node.input;
    const [weight, bias] = [this.#constant(w), this.#constant(c ?? "")];
    const plain = attributeFloat(node, "alpha", 1) === 1 && attributeFloat(node, "beta", 1) === 1 && attributeInt(node, "transA", 0) === 0;
    if (!plain || weight === null || !this.made.has(x) || ((c ?? "") !== "" && bias === null)) return undefined;
    const byRows = attributeInt(node, "transB", 0) !== 0;
    const columns = weight.shape[byRows ? 0 : 1];
    if (bias !== null && bias.shape.reduce((p, q) => p * q, 1) !== columns) return undefined;
    return { kind: "linear", x, weight, byRows, bias };
  }

  #conv(node: NodeProto): Made | undefined {
    const [x, w, b] = node.input;
    const [weight, bias] = [this.#constant(w), this.#constant(b ?? "")];
    if (weight === null || !this.made.has(x) || ((b ?? "") !== "" && bias === null)) return undefined;
    return { kind: "conv", x, weight, bias, node };
  }

  /** Element-wise operators: of one value a function of it, of two their sum or product. */
  #function(node: NodeProto): Made | undefined {
    const apply = elementwise(node);
    if (apply === undefined) return undefined;
    const inputs = node.input.filter((name) => name !== "");
    const scalars = inputs.map((name) =>
      this.made.has(name) && this.made.get(name)!.kind !== "constant" ? undefined : this.#scalar(name),
    );
    const values = inputs.filter((_, i) => scalars[i] === undefined);
    const sources = values.map((name) => this.#source(name));
    const [first] = sources;
    if (first !== undefined && sources.every((source) => source !== undefined && source.root === first.root)) {
      const fs = scalars.map((scalar) => (scalar === undefined ? null : scalar));
      const parts = sources.map((source) => source!.f);
      const f: Unary = (v) => {
        let i = 0;
        return apply(fs.map((scalar) => scalar ?? parts[i++](v)));
      };
      return { kind: "derived", root: first.root, f, depth: Math.max(...sources.map((source) => source!.depth)) + 1 };
    }
    if (values.length !== 2 || inputs.length !== 2) return undefined;
    const [a, b] = inputs.map((name) => this.#operand(name));
    if (!this.made.has(a) || !this.made.has(b)) return undefined;
    if (node.opType === "Add" || node.opType === "Sub") return { kind: "add", a, b, sign: node.opType === "Add" ? 1 : -1 };
    return node.opType === "Mul" ? { kind: "multiply", a, b } : undefined;
  }

  /** The value that a value is a function of: itself, where it is not element-wise. */
  #source(name: string): { root: string; f: Unary; depth: number } | undefined {
    const made = this.made.get(name);
    if (made === undefined || made.kind === "constant") return undefined;
    if (made.kind === "derived" && made.depth < DEPTH_MAX) return made;
    return { root: name, f: (v) => v, depth: 0 };
  }
}

function isForbidding(values: ArrayLike<number>): boolean {
  let least = 0;
  for (let i = 0; i < values.length; i++) {
    if (!(values[i] <= 0)) return false;
    least = Math.min(least, values[i]);
  }
  return least < FORBIDDEN;
}

/** @throws LowbitError E_UNSUPPORTED, which names operators without an integer form */
export const analyze = (model: OnnxModel): Analysis => new Analyzer(model).run();

/** What readers want of a value: 8-bit codes, wide ones, or either (a shape). */
export type Need = "narrow" | "wide";

/** The needs of every value, from the outputs backward. */
export function needsOf({ scope, steps, made }: Analysis): ReadonlyMap<string, ReadonlySet<Need>> {
  const needs = new Map<string, Set<Need>>();
  const want = (name: string, need: Need): void => void needs.set(name, (needs.get(name) ?? new Set<Need>()).add(need));
  for (const { name } of scope.graph.output) if (made.has(name)) want(name, "wide");
  for (const { out, made: how, node } of [...steps].reverse()) {
    const own = needs.get(out) ?? new Set<Need>();
    if (how === null) {
      // a shape is that of any of its forms
      for (const name of node.input) if (made.has(name) && !needs.has(name)) want(name, "wide");
      continue;
    }
    if (own.size === 0) continue;
    switch (how.kind) {
      case "linear":
      case "conv":
        want(how.x, "narrow");
        break;
      case "product":
        want(how.a, "narrow");
        want(how.b, "narrow");
        break;
      case "attend":
        want(how.x, "wide");
        want(how.b, "narrow");
        break;
      case "softmax":
      case "norm":
        want(how.x, "wide");
        break;
      case "add":
      case "multiply":
      case "where":
        want(how.a, "wide");
        want(how.b, "wide");
        break;
      case "derived":
        for (const need of slopeOf(how.f) === undefined ? (["wide"] as const) : own) want(how.root, need);
        break;
      case "move":
        for (const name of how.from) for (const need of how.from.length > 1 ? (["wide"] as const) : own) want(name, need);
        break;
      default:
        break;
    }
  }
  return needs;
}
