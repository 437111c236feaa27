// A small decoder as optimum exports it: attention, rotary embedding and RMS norms in single operators, caches joined
// by Concat, a mask made of positions.
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { encode, graph, model, T, value } from "../onnx/build.ts";
import { Written } from "../onnx/written.ts";

export const SPELLED = { hidden: 64, heads: 4, kvHeads: 2, size: 16, layers: 2, vocabulary: 96 };

/** Caches as inputs or outputs of a model, two for each layer. */
export const cacheValues = (
  prefix: string,
  tokens: string,
  { layers, kvHeads, size }: Pick<typeof SPELLED, "layers" | "kvHeads" | "size">,
) =>
  Array.from({ length: 2 * layers }, (_, i) =>
    value(`${prefix}.${i >> 1}.${i & 1 ? "value" : "key"}`, T.FLOAT, ["batch", kvHeads, tokens, size]),
  );

export function spelledModel(): Uint8Array {
  const { hidden, heads, kvHeads, size, layers, vocabulary } = SPELLED;
  const b = new Written();
  const rms = (x: string, p: string): string => {
    const mean = b.put("ReduceMean", [b.put("Pow", [x, "two"], `${p}.sq`)], `${p}.mean`, { axes: { ints: [-1] } });
    const root = b.put("Sqrt", [b.put("Add", [mean, "eps"], `${p}.e`)], `${p}.root`);
    return b.put("Mul", [b.floats(`${p}.w`, new Array<number>(hidden).fill(1.1)), b.put("Div", [x, root], `${p}.n`)], `${p}.y`);
  };
  b.number("two", 2);
  b.number("eps", 1e-6);
  b.number("minus", -3.4028234663852886e38);
  b.number("zero", 0);
  // the mask: key j is seen by token t where j <= position of t
  const total = b.put("Gather", [b.put("Shape", ["attention_mask"], "mask.shape"), b.ints("one", [1], [])], "total", { axis: 0n });
  const keys = b.put("Range", [b.ints("start", [0], []), total, "one"], "keys");
  const seen = b.put("LessOrEqual", [keys, b.put("Unsqueeze", ["position_ids", b.ints("axes12", [1, 3])], "rows")], "seen");
  const mask = b.put("Where", [seen, "zero", "minus"], "mask");
  // cosines and sines of positions
  const rates = Array.from({ length: size / 2 }, (_, i) => 1e4 ** (-(2 * i) / size));
  const rate = b.floats("rate", rates, [1, 1, size / 2]);
  const at = b.put("Unsqueeze", [b.put("Cast", ["position_ids"], "at.f", { to: 1n }), b.ints("axis2", [2])], "at");
  const angle = b.put("Mul", [at, rate], "angle");
  const both = b.put("Concat", [angle, angle], "angles", { axis: -1n });
  const head1 = b.ints("axis1", [1]);
  const cos = b.put("Unsqueeze", [b.put("Cos", [both], "cos0"), head1], "cos");
  const sin = b.put("Unsqueeze", [b.put("Sin", [both], "sin0"), head1], "sin");
  const [from, half, end, last] = [b.ints("s0", [0]), b.ints("s1", [size / 2]), b.ints("s2", [size]), b.ints("sx", [3])];
  const rotary = (x: string, p: string): string => {
    const back = b.put("Neg", [b.put("Slice", [x, half, end, last], `${p}.hi`)], `${p}.neg`);
    const turned = b.put("Concat", [back, b.put("Slice", [x, from, half, last], `${p}.lo`)], `${p}.turned`, { axis: -1n });
    return b.put("Add", [b.put("Mul", [x, cos], `${p}.c`), b.put("Mul", [turned, sin], `${p}.s`)], `${p}.rotated`);
  };
  let x = b.put("Gather", [b.weight("embed", [vocabulary, hidden]), "input_ids"], "x0");
  for (let l = 0; l < layers; l++) {
    const p = `layers.${l}`;
    const normed = rms(x, `${p}.in`);
    const split = (name: string, count: number): string => {
      const y = b.put("MatMul", [normed, b.weight(`${p}.${name}.w`, [hidden, count * size])], `${p}.${name}`);
      const shaped = b.put("Reshape", [y, b.ints(`${p}.${name}.shape`, [0, 0, count, size])], `${p}.${name}.r`);
      return b.put("Transpose", [shaped], `${p}.${name}.t`, { perm: { ints: [0, 2, 1, 3] } });
    };
    const q = rotary(split("q", heads), `${p}.q`);
    const k = b.put("Concat", [`past_key_values.${l}.key`, rotary(split("k", kvHeads), `${p}.k`)], `present.${l}.key`, { axis: 2n });
    const v = b.put("Concat", [`past_key_values.${l}.value`, split("v", kvHeads)], `present.${l}.value`, { axis: 2n });
    // kv heads repeated for their group
    const repeat = (from1: string, name: string): string => {
      const wide = b.put("Unsqueeze", [from1, "axis2"], `${p}.${name}.u`);
      const expanded = b.put("Expand", [wide, b.ints(`${p}.${name}.e`, [1, kvHeads, heads / kvHeads, 1, size])], `${p}.${name}.x`);
      return b.put("Reshape", [expanded, b.ints(`${p}.${name}.z`, [0, heads, -1, size])], `${p}.${name}.all`);
    };
    const keysT = b.put("Transpose", [repeat(k, "rk")], `${p}.kt`, { perm: { ints: [0, 1, 3, 2] } });
    const scores = b.put("Mul", [b.put("MatMul", [q, keysT], `${p}.qk`), b.number(`${p}.scale`, 1 / Math.sqrt(size))], `${p}.scaled`);
    const p1 = b.put("Softmax", [b.put("Add", [scores, mask], `${p}.masked`)], `${p}.p`, { axis: -1n });
    const context = b.put("Transpose", [b.put("MatMul", [p1, repeat(v, "rv")], `${p}.ctx`)], `${p}.ctxt`, { perm: { ints: [0, 2, 1, 3] } });
    const flat = b.put("Reshape", [context, b.ints(`${p}.flat`, [0, 0, hidden])], `${p}.o.in`);
    const mid = b.put("Add", [x, b.put("MatMul", [flat, b.weight(`${p}.o.w`, [hidden, hidden])], `${p}.o`)], `${p}.mid`);
    const n2 = rms(mid, `${p}.post`);
    const gate = b.put("MatMul", [n2, b.weight(`${p}.gate.w`, [hidden, 2 * hidden])], `${p}.gate`);
    const act = b.put("Mul", [gate, b.put("Sigmoid", [gate], `${p}.sig`)], `${p}.silu`);
    const up = b.put("Mul", [act, b.put("MatMul", [n2, b.weight(`${p}.up.w`, [hidden, 2 * hidden])], `${p}.up`)], `${p}.gu`);
    x = b.put("Add", [mid, b.put("MatMul", [up, b.weight(`${p}.down.w`, [2 * hidden, hidden])], `${p}.down`)], `${p}.out`);
  }
  b.put("MatMul", [rms(x, "final"), b.weight("head", [hidden, vocabulary])], "logits");
  const each = (prefix: string, tokens: string) => cacheValues(prefix, tokens, SPELLED);
  return encode(
    model(
      graph({
        input: [
          value("input_ids", T.INT64, ["batch", "tokens"]),
          value("attention_mask", T.INT64, ["batch", "total"]),
          value("position_ids", T.INT64, ["batch", "tokens"]),
          ...each("past_key_values", "past"),
        ],
        output: [value("logits", T.FLOAT, ["batch", "tokens", vocabulary]), ...each("present", "total")],
        initializer: b.tensors,
        node: b.nodes,
      }),
      { opset: 17 },
    ),
  );
}

/** A model whose logits have a second product beside theirs, of the same values: `values`. */
export function withValues(bytes: Uint8Array): Uint8Array {
  const proto = fromBinary(ModelProtoSchema, bytes);
  const { node: nodes, output } = proto.graph!;
  const head = nodes.find((one) => one.output[0] === "logits")!;
  nodes.push({ ...head, name: "values", output: ["values"] });
  output.push({ ...output.find(({ name }) => name === "logits")!, name: "values" });
  return encode(proto);
}

/** The same with float16 in place of float32, throughout. */
export function halfSpelledModel(): Uint8Array {
  const proto = fromBinary(ModelProtoSchema, spelledModel());
  const own = proto.graph!;
  for (const tensor of own.initializer)
    if (tensor.dataType === T.FLOAT) {
      const values = new Float32Array(tensor.rawData.slice().buffer);
      tensor.rawData = new Uint8Array(Uint16Array.from(values, (v) => encodeHalf(Math.max(-65504, v))).buffer);
      tensor.dataType = T.FLOAT16;
    }
  for (const { type } of [...own.input, ...own.output])
    if (type?.value.case === "tensorType" && type.value.value.elemType === T.FLOAT) type.value.value.elemType = T.FLOAT16;
  for (const { opType, attribute } of own.node) if (opType === "Cast") for (const to of attribute) if (to.i === 1n) to.i = 10n;
  return encode(proto);
}
