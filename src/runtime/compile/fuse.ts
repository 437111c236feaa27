// Fusions. Element-wise operators whose results only the next one reads become one chain, a single kernel whatever its
// length; products of one input with MatMulNBits weights of one form (queries, keys and values; gate and up) become one
// product of their rows joined, which takes their biases along.
import { create } from "@bufbuild/protobuf";
import { constant as constantOf, type Value as Expression } from "../../../kernels/wasm/nn/values.ts";
import { MOST_OPERANDS } from "../../../kernels/wasm/nn/chain.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import { NodeProtoSchema } from "../../onnx/file/gen/onnx_pb.ts";
import { attributeInt } from "../../onnx/graph/nodes.ts";
import { operatorName } from "../../onnx/graph/scopes.ts";
import { chainOperands, EXPRESSIONS, runChain } from "../machine/chains.ts";
import type { Value } from "../value.ts";
import { linksOf, tied, type FlatNode } from "./flat.ts";
import type { Unfreed } from "./step.ts";
import { runNode } from "./step.ts";

/** The value of a constant; undefined for others. */
type Constants = (name: string) => Value | undefined;

/** Numbers of more dimensions may give the result theirs: they stay operands. */
const numberOf = (value: Value | undefined): number | undefined =>
  value?.type === "float32" && value.data.length === 1 && value.dims.length <= 1 ? Number(value.data[0]) : undefined;

/** A tree of element-wise steps that ends in the last of them. Numbers that the model holds are its own. */
function chainOf(parts: readonly Unfreed[], constant: Constants): Unfreed {
  const last = parts.at(-1)!;
  const made = new Set(parts.map(({ node }) => node.output[0]));
  const all = [...new Set(parts.flatMap(({ node }) => node.input))].filter((name) => name !== "" && !made.has(name));
  const numbers = new Map(all.flatMap((name): [string, number][] => {
    const number = numberOf(constant(name));
    return number === undefined ? [] : [[name, number]];
  })); // prettier-ignore
  const operands = all.filter((name) => !numbers.has(name));
  const input = [...operands, ...numbers.keys()];
  const node = create(NodeProtoSchema, { opType: "Chain", domain: "lowbit", name: last.node.name, input, output: [last.node.output[0]] });
  const build = (args: readonly Expression[]): Expression => {
    const values = new Map(operands.map((name, i) => [name, args[i]]));
    for (const [name, number] of numbers) values.set(name, constantOf(number));
    for (const { node: part, operator } of parts)
      values.set(
        part.output[0],
        EXPRESSIONS.get(operator)!(
          part.input.filter((name) => name !== "").map((name) => values.get(name)!),
          part,
        ),
      );
    return values.get(last.node.output[0])!;
  };
  return {
    node,
    operator: `lowbit.Chain(${parts.map(({ node: part }) => part.opType).join(" ")})`,
    guards: last.guards,
    kernel: "loops",
    fused: {
      parts,
      form: { kind: "chain", build, operands: operands.length },
      emit: (m, inputs) => {
        const values = chainOperands(inputs, operands.length);
        const slot = values === undefined ? null : runChain(m, build, values as readonly Value[]);
        return slot === null ? undefined : [slot];
      },
    },
    run(inputs) {
      const values = new Map<string, Value | undefined>(input.map((name, i) => [name, inputs[i]]));
      for (const part of parts) values.set(part.node.output[0], runNode(part.run, part.node, (name) => values.get(name))[0]);
      return values.get(last.node.output[0])!;
    },
  };
}

/** Steps with element-wise trees as one step each, where the last of them stood. */
export function fuseChains(steps: readonly Unfreed[], outputs: readonly string[], constant: Constants): Unfreed[] {
  const { makers, readers, outputs: kept } = linksOf(steps, outputs);
  const canFuse = ({ operator, layer }: Unfreed): boolean => EXPRESSIONS.has(operator) && layer === undefined;
  const taken = new Set<Unfreed>();
  const fused = new Map<Unfreed, Unfreed>();
  for (const end of [...steps].reverse()) {
    if (taken.has(end) || !canFuse(end)) continue;
    const tree = new Set([end]);
    const operands = new Set(end.node.input.filter((name) => name !== ""));
    // from the end on: a step joins once all its readers are in
    for (let grown = true; grown;) {
      grown = false;
      for (const name of operands) {
        const maker = makers.get(name);
        if (maker === undefined || tree.has(maker) || taken.has(maker) || !canFuse(maker) || kept.has(name)) continue;
        if (!tied(maker, end) || !readers.get(name)!.every((reader) => tree.has(reader))) continue;
        const next = new Set([...operands, ...maker.node.input].filter((operand) => operand !== "" && operand !== name));
        if (next.size >= MOST_OPERANDS) continue;
        tree.add(maker);
        operands.clear();
        for (const operand of next) operands.add(operand);
        grown = true;
        break;
      }
    }
    if (tree.size === 1) continue;
    for (const part of tree) taken.add(part);
    const parts = steps.filter((step) => tree.has(step));
    fused.set(end, chainOf(parts, constant));
  }
  return steps.flatMap((step) => fused.get(step) ?? (taken.has(step) ? [] : [step]));
}

/** MatMulNBits nodes that read one input and can be one product: by the first of them, in order. */
export function joinable(nodes: readonly FlatNode[], isConstant: (name: string) => boolean): Map<NodeProto, readonly NodeProto[]> {
  const groups = new Map<string, NodeProto[]>();
  for (const { node, guards } of nodes) {
    if (operatorName(node) !== "com.microsoft.MatMulNBits" || isConstant(node.input[0])) continue;
    // weights given by more than codes and scales, and biases, stay on their own
    if (node.input.slice(3).some((name) => name !== "") || !node.input.slice(1, 3).every(isConstant)) continue;
    const form = ["K", "bits", "block_size", "accuracy_level"].map((name) => attributeInt(node, name, 0));
    const key = JSON.stringify([node.input[0], form, guards]);
    groups.set(key, [...(groups.get(key) ?? []), node]);
  }
  return new Map([...groups.values()].filter((group) => group.length > 1).map((group) => [group[0], group]));
}

/** The node of a joined product. */
export const joinedNode = (group: readonly NodeProto[]): NodeProto =>
  create(NodeProtoSchema, {
    opType: "Joined",
    domain: "lowbit",
    name: group.map(({ name }) => name).join(" + "),
    input: [group[0].input[0]],
    output: group.map(({ output }) => output[0]),
  });

/**
 * Joined products with the biases of all their parts, where nothing else reads these: the columns are taken apart
 * anyway.
 */
export function fuseBiases(steps: readonly Unfreed[], outputs: readonly string[], constant: Constants): Unfreed[] {
  const { only } = linksOf(steps, outputs);
  const taken = new Set<Unfreed>();
  const withBiases = steps.map((step): Unfreed => {
    const { widths, node, run } = step;
    if (widths === undefined) return step;
    const adds: Unfreed[] = [];
    const biases: string[] = [];
    for (const [i, name] of node.output.entries()) {
      const add = only(name);
      if (add?.operator !== "Add" || !tied(add, step)) return step;
      const bias = add.node.input[add.node.input[0] === name ? 1 : 0];
      const value = constant(bias);
      if (value?.type !== "float32" || value.dims.length !== 1 || value.dims[0] !== widths[i]) return step;
      adds.push(add);
      biases.push(bias);
    }
    for (const add of adds) taken.add(add);
    return {
      ...step,
      node: create(NodeProtoSchema, { ...node, input: [...node.input, ...biases], output: adds.map((add) => add.node.output[0]) }),
      run: (inputs) => (run(inputs, node) as readonly Value[]).map((part, i) => adds[i].run([part, inputs[1 + i]], adds[i].node) as Value),
    };
  });
  return withBiases.filter((step) => !taken.has(step));
}
