// Einsum: any product of tensors named by letters, as sums over every letter. Source: the ONNX operator Einsum-12.
// Loops: exporters of language models write MatMul instead.
import { LowbitError } from "../../../formats/core/errors.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { floatData, floats, sizeOf } from "../value.ts";
import type { Inputs, Operators } from "./operator.ts";
import { fail, need, product, text } from "./operator.ts";

interface Equation {
  readonly inputs: readonly string[];
  readonly output: string;
}

/** The letters of each input and of the output; null for equations with an ellipsis or of another form. */
function parse(equation: string): Equation | null {
  const [left, right, more] = equation.replaceAll(" ", "").split("->");
  if (more !== undefined || !/^[A-Za-z,]*$/.test(left) || !/^[A-Za-z]*$/.test(right ?? "")) return null;
  const inputs = left.split(",");
  const letters = [...left.replaceAll(",", "")];
  // without an output: the letters that appear once, in order
  const once = [...new Set(letters)].filter((c) => letters.indexOf(c) === letters.lastIndexOf(c)).sort();
  const output = right ?? once.join("");
  return [...output].every((c) => letters.includes(c)) && new Set(output).size === output.length ? { inputs, output } : null;
}

/** Steps through a tensor's letters: a letter that appears twice walks the diagonal. */
function stridesOf(letters: string, { dims }: Value, all: readonly string[]): number[] {
  const { strides } = contiguous(dims);
  return all.map((c) => [...letters].reduce((sum, own, i) => (own === c && dims[i] !== 1 ? sum + strides[i] : sum), 0));
}

function einsum(inputs: Inputs, node: NodeProto): Value {
  const equation = parse(text(node, "equation", ""))!;
  const values = equation.inputs.map((_, i) => need(inputs, i, node));
  const sizes = new Map<string, number>();
  values.forEach((value, i) => {
    const letters = equation.inputs[i];
    if (letters.length !== value.dims.length) throw fail(node, `${letters.length} dimensions (${letters})`, `[${value.dims.join(", ")}]`);
    [...letters].forEach((c, axis) => {
      const [d, known] = [value.dims[axis], sizes.get(c)];
      if (known !== undefined && known !== d && known !== 1 && d !== 1) throw fail(node, `${c} = ${known}`, `[${value.dims.join(", ")}]`);
      if (known === undefined || known === 1) sizes.set(c, d);
    });
  });
  const summed = [...sizes.keys()].filter((c) => !equation.output.includes(c));
  const all = [...equation.output, ...summed];
  const counts = all.map((c) => sizes.get(c)!);
  const out = floats([...equation.output].map((c) => sizes.get(c)!));
  sizeOf(out.dims, "Einsum");
  const data = values.map((value) => floatData(value, "Einsum"));
  const strides = values.map((value, i) => stridesOf(equation.inputs[i], value, all));
  const terms = product(counts.slice(out.dims.length));
  const at = values.map(() => 0);
  const position = all.map(() => 0);
  for (let o = 0; o < out.data.length; o++) {
    let sum = 0;
    for (let t = 0; t < terms; t++) {
      let factor = 1;
      for (let i = 0; i < data.length; i++) factor *= data[i][at[i]];
      sum += factor;
      for (let a = all.length - 1; a >= 0; a--) {
        for (let i = 0; i < at.length; i++) at[i] += strides[i][a];
        if (++position[a] < counts[a]) break;
        for (let i = 0; i < at.length; i++) at[i] -= strides[i][a] * counts[a];
        position[a] = 0;
      }
    }
    out.data[o] = sum;
  }
  return out;
}

export const sums: Operators = {
  Einsum: {
    run(inputs, node) {
      if (parse(text(node, "equation", "")) === null)
        throw new LowbitError("E_ONNX", `node ${node.name} (Einsum): expected an equation of letters, got ${text(node, "equation", "")}.`);
      return einsum(inputs, node);
    },
    missing: (node) => (parse(text(node, "equation", "")) === null ? `of ${JSON.stringify(text(node, "equation", ""))}` : undefined),
  },
};
