// What patterns look at: who makes a value, who reads it, and which values are numbers that the model holds. A match
// takes steps out of the list and puts one in the place of the last of them; it keeps them, for shapes that its kernel
// does not take.
import { create } from "@bufbuild/protobuf";
import { NodeProtoSchema, type AttributeProto } from "../../../onnx/file/gen/onnx_pb.ts";
import type { Emit } from "../../machine/machine.ts";
import { integers, type Value } from "../../value.ts";
import { linksOf, tied } from "../flat.ts";
import { runNode, type Form, type Unfreed } from "../step.ts";

export interface View {
  readonly steps: readonly Unfreed[];
  /** The step that makes a value; undefined for inputs, constants, and products with a constant weight of `matmul`. */
  maker(name: string | undefined): Unfreed | undefined;
  /** The one step that reads a value; undefined where there are more, or the model gives it. */
  reader(name: string): Unfreed | undefined;
  readers(name: string): readonly Unfreed[];
  /** The model gives it. */
  isOutput(name: string): boolean;
  constant(name: string | undefined): Value | undefined;
  /** The only element of a constant, as a number. */
  number(name: string | undefined): number | undefined;
  /** Small integers that are constants: axes, shapes. */
  list(name: string | undefined): readonly number[] | undefined;
}

/** Steps to become one. */
export interface Match {
  readonly parts: readonly Unfreed[];
  readonly name: string;
  readonly input: readonly string[];
  /** What others may read: the result of the last part first; "" for outputs that it does not have. */
  readonly output: readonly string[];
  readonly attribute?: readonly AttributeProto[];
  readonly emit: Emit;
  readonly form: Form;
}

export function viewOf(steps: readonly Unfreed[], outputs: readonly string[], constant: (name: string) => Value | undefined): View {
  const { makers, readers, outputs: kept } = linksOf(steps, outputs);
  const readersOf = (name: string): Unfreed[] => [...new Set(readers.get(name))];
  const known = (name: string | undefined): Value | undefined => (name === undefined || name === "" ? undefined : constant(name));
  return {
    steps,
    maker: (name) => (name === undefined ? undefined : makers.get(name)),
    reader(name) {
      const all = readersOf(name);
      return all.length === 1 && !kept.has(name) ? all[0] : undefined;
    },
    readers: readersOf,
    isOutput: (name) => kept.has(name),
    constant: known,
    number(name) {
      const value = known(name);
      return value?.data.length === 1 ? Number(value.data[0]) : undefined;
    },
    list(name) {
      const value = known(name);
      return value === undefined || value.data.length > 16 ? undefined : integers(value);
    },
  };
}

/** Whether the parts can leave: nothing else reads what is made between them, nor a second result before the last. */
export function canLeave(
  view: View,
  { parts, output }: Match,
  outputs: ReadonlySet<string>,
  places: ReadonlyMap<Unfreed, number>,
): boolean {
  const inside = new Set(parts);
  const end = Math.max(...parts.map((part) => places.get(part)!));
  if (parts.some((part) => !tied(part, parts[0]) || part.layer !== undefined)) return false;
  return parts.every(({ node }) =>
    node.output.every((name) => {
      if (name === "") return true;
      const outer = view.readers(name).filter((reader) => !inside.has(reader));
      if (!output.includes(name)) return outer.length === 0 && !outputs.has(name);
      return outer.every((reader) => places.get(reader)! > end);
    }),
  );
}

/** One step for several. `inner`: the parts as they run where the kernel does not take their values. */
export function fusedStep({ name, input, output, attribute = [], emit, form }: Match, inner: readonly Unfreed[]): Unfreed {
  const last = inner.at(-1)!;
  // what only the parts read lives as long as they may
  const made = new Set(inner.flatMap(({ node }) => node.output));
  const rest = new Set(inner.flatMap(({ node }) => node.input).filter((of) => of !== "" && !made.has(of) && !input.includes(of)));
  const all = [...input, ...rest];
  return {
    node: create(NodeProtoSchema, {
      opType: name,
      domain: "lowbit",
      name: last.node.name,
      input: all,
      output: [...output],
      attribute: [...attribute],
    }),
    operator: `lowbit.${name}`,
    guards: last.guards,
    kernel: "loops",
    fused: { parts: inner, emit, form },
    run(inputs) {
      const values = new Map<string, Value | undefined>(all.map((of, i) => [of, inputs[i]]));
      for (const part of inner)
        runNode(part.run, part.node, (of) => values.get(of)).forEach((value, i) => values.set(part.node.output[i], value));
      return output.map((of) => values.get(of));
    },
  };
}
