// Shaders of operators: the variants of each spec that the registry (kernels/registry.ts) lists.
import type { ShaderVariant } from "../../variants.ts";
import { binary, constant, gelu, operand, select, silu, unary, UNARY, type Value } from "../../wasm/nn/values.ts";
import { attentionName, attentionShader } from "./attention.ts";
import { appendName, appendShader } from "./cache.ts";
import { chainName, chainShader, chainShaderSpec, type OperandKind } from "./chain.ts";
import { matmulShader } from "./matmul.ts";
import { copyShader, reduceShader, rotaryName, rotaryShader } from "./moves.ts";
import { convName, convShader, poolShader, resampleShader } from "./window.ts";
import { normName, normShader, softmaxShader } from "./rows.ts";

const plain = (name: string, build: () => string): ShaderVariant => ({ name, features: [], build });

const [x, y, z] = [0, 1, 2].map(operand);
/** Every operation once. */
const everything = UNARY.filter((op) => op !== "not" && op !== "number").reduce((sum, op) => binary("add", sum, unary(op, x)), y);
const compared = binary("and", binary("lt", x, y), unary("not", binary("eq", x, constant(Infinity))));

const CHAINS: readonly (readonly [Value, readonly OperandKind[]])[] = [
  [binary("add", x, y), ["same", "strided"]],
  [binary("mul", silu(x), y), ["same", "same"]],
  [gelu(binary("add", x, y)), ["strided", "one"]],
  [everything, ["same", "same"]],
  [select(compared, binary("min", x, y), binary("atLeast", z, constant(NaN))), ["same", "one", "same"]],
];

export function* operatorShaders(): Iterable<ShaderVariant> {
  for (const [value, operands] of CHAINS) {
    const spec = chainShaderSpec(value, operands);
    yield plain(chainName(spec), () => chainShader(spec));
  }
  for (const kind of ["rms", "layer"] as const)
    for (const skip of [false, true]) {
      const spec = { kind, skip, addend: skip && kind === "layer", shift: kind === "layer", sum: skip };
      yield plain(normName(spec), () => normShader(spec));
    }
  yield plain("f32_softmax__wgsl", softmaxShader);
  yield plain("f32_copy__wgsl", copyShader);
  for (const op of ["mean", "max"] as const) yield plain(`f32_reduce_${op}__wgsl`, () => reduceShader(op));
  for (const positions of [false, true]) {
    const spec = { interleaved: positions, positions };
    yield plain(rotaryName(spec), () => rotaryShader(spec));
  }
  for (const [head, more] of [
    [32, false],
    [128, true],
    [80, true],
  ] as const) {
    const spec = { head, mask: more, sink: head === 128, softcap: head === 80 };
    yield plain(attentionName(spec), () => attentionShader(spec));
  }
  for (const kinds of [
    ["float16", "int8"],
    ["int8", "int4"],
    ["int4_halves", "int4"],
  ] as const) {
    const spec = { head: 64, mask: false, sink: false, softcap: false, kinds };
    yield plain(attentionName(spec), () => attentionShader(spec));
  }
  for (const kind of ["float16", "int8", "int4", "int4_halves"] as const) yield plain(appendName(kind), () => appendShader(kind));
  yield plain("f32_matmul__wgsl", matmulShader);
  yield plain("f32_resample__wgsl", resampleShader);
  const after = { spec: chainShaderSpec(select(compared, x, z), ["strided", "same", "one"]), own: 1 };
  for (const spec of [
    { filters: 1, bias: false, transposed: true },
    { filters: 4, bias: true, transposed: false },
    { filters: 4, bias: true, transposed: false, after },
    { filters: 4, bias: true, transposed: false, codes: true },
    { filters: 4, bias: true, transposed: false, codes: true, integers: true, after },
  ] as const)
    yield plain(convName(spec), () => convShader(spec));
  for (const op of ["max", "average"] as const) yield plain(`f32_pool_${op}__wgsl`, () => poolShader(op));
}
