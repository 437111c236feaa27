// A small decoder as optimum exports it: attention, rotary embedding and RMS norms in single operators, caches joined
// by Concat, a mask made of positions.
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "../onnx/build.ts";

export const SPELLED = { hidden: 64, heads: 4, kvHeads: 2, size: 16, layers: 2, vocabulary: 96 };

export function spelledModel({ hidden, heads, kvHeads, size, layers, vocabulary } = SPELLED): Uint8Array {
  const initializer: ReturnType<typeof raw>[] = [];
  const nodes: ReturnType<typeof node>[] = [];
  let seed = 1;
  const f32 = (name: string, dims: number[], data?: number[]): string => {
    const count = dims.reduce((a, b) => a * b, 1);
    initializer.push(raw(name, dims, data === undefined ? weights(count, seed++) : Float32Array.from(data)));
    return name;
  };
  const i64 = (name: string, values: number[], dims = [values.length]): string => {
    initializer.push(raw(name, dims, BigInt64Array.from(values, BigInt), T.INT64));
    return name;
  };
  const put = (opType: string, input: string[], output: string, attributes: Record<string, AttributeValue> = {}): string => {
    nodes.push(node(opType, input, [output], attributes, output));
    return output;
  };
  const rms = (x: string, p: string): string => {
    const mean = put("ReduceMean", [put("Pow", [x, "two"], `${p}.sq`)], `${p}.mean`, { axes: { ints: [-1] } });
    const root = put("Sqrt", [put("Add", [mean, "eps"], `${p}.e`)], `${p}.root`);
    return put("Mul", [f32(`${p}.w`, [hidden], new Array(hidden).fill(1.1)), put("Div", [x, root], `${p}.n`)], `${p}.y`);
  };
  f32("two", [], [2]);
  f32("eps", [], [1e-6]);
  f32("minus", [], [-3.4028234663852886e38]);
  f32("zero", [], [0]);
  // the mask: key j is seen by token t where j <= position of t
  const total = put("Gather", [put("Shape", ["attention_mask"], "mask.shape"), i64("one", [1], [])], "total", { axis: 0n });
  const keys = put("Range", [i64("start", [0], []), total, "one"], "keys");
  const seen = put("LessOrEqual", [keys, put("Unsqueeze", ["position_ids", i64("axes12", [1, 3])], "rows")], "seen");
  const mask = put("Where", [seen, "zero", "minus"], "mask");
  // cosines and sines of positions
  const rate = f32(
    "rate",
    [1, 1, size / 2],
    Array.from({ length: size / 2 }, (_, i) => 1e4 ** (-(2 * i) / size)),
  );
  const at = put("Unsqueeze", [put("Cast", ["position_ids"], "at.f", { to: 1n }), i64("axis2", [2])], "at");
  const angle = put("Mul", [at, rate], "angle");
  const both = put("Concat", [angle, angle], "angles", { axis: -1n });
  const head1 = i64("axis1", [1]);
  const cos = put("Unsqueeze", [put("Cos", [both], "cos0"), head1], "cos");
  const sin = put("Unsqueeze", [put("Sin", [both], "sin0"), head1], "sin");
  const [from, half, end, last] = [i64("s0", [0]), i64("s1", [size / 2]), i64("s2", [size]), i64("sx", [3])];
  const rotary = (x: string, p: string): string => {
    const back = put("Neg", [put("Slice", [x, half, end, last], `${p}.hi`)], `${p}.neg`);
    const turned = put("Concat", [back, put("Slice", [x, from, half, last], `${p}.lo`)], `${p}.turned`, { axis: -1n });
    return put("Add", [put("Mul", [x, cos], `${p}.c`), put("Mul", [turned, sin], `${p}.s`)], `${p}.rotated`);
  };
  let x = put("Gather", [f32("embed", [vocabulary, hidden]), "input_ids"], "x0");
  for (let l = 0; l < layers; l++) {
    const p = `layers.${l}`;
    const normed = rms(x, `${p}.in`);
    const split = (name: string, count: number): string => {
      const y = put("MatMul", [normed, f32(`${p}.${name}.w`, [hidden, count * size])], `${p}.${name}`);
      const shaped = put("Reshape", [y, i64(`${p}.${name}.shape`, [0, 0, count, size])], `${p}.${name}.r`);
      return put("Transpose", [shaped], `${p}.${name}.t`, { perm: { ints: [0, 2, 1, 3] } });
    };
    const q = rotary(split("q", heads), `${p}.q`);
    const k = put("Concat", [`past_key_values.${l}.key`, rotary(split("k", kvHeads), `${p}.k`)], `present.${l}.key`, { axis: 2n });
    const v = put("Concat", [`past_key_values.${l}.value`, split("v", kvHeads)], `present.${l}.value`, { axis: 2n });
    // kv heads repeated for their group
    const repeat = (from1: string, name: string): string => {
      const wide = put("Unsqueeze", [from1, "axis2"], `${p}.${name}.u`);
      const expanded = put("Expand", [wide, i64(`${p}.${name}.e`, [1, kvHeads, heads / kvHeads, 1, size])], `${p}.${name}.x`);
      return put("Reshape", [expanded, i64(`${p}.${name}.z`, [0, heads, -1, size])], `${p}.${name}.all`);
    };
    const keysT = put("Transpose", [repeat(k, "rk")], `${p}.kt`, { perm: { ints: [0, 1, 3, 2] } });
    const scores = put("Mul", [put("MatMul", [q, keysT], `${p}.qk`), f32(`${p}.scale`, [], [1 / Math.sqrt(size)])], `${p}.scaled`);
    const p1 = put("Softmax", [put("Add", [scores, mask], `${p}.masked`)], `${p}.p`, { axis: -1n });
    const context = put("Transpose", [put("MatMul", [p1, repeat(v, "rv")], `${p}.ctx`)], `${p}.ctxt`, { perm: { ints: [0, 2, 1, 3] } });
    const flat = put("Reshape", [context, i64(`${p}.flat`, [0, 0, hidden])], `${p}.o.in`);
    const mid = put("Add", [x, put("MatMul", [flat, f32(`${p}.o.w`, [hidden, hidden])], `${p}.o`)], `${p}.mid`);
    const n2 = rms(mid, `${p}.post`);
    const gate = put("MatMul", [n2, f32(`${p}.gate.w`, [hidden, 2 * hidden])], `${p}.gate`);
    const act = put("Mul", [gate, put("Sigmoid", [gate], `${p}.sig`)], `${p}.silu`);
    const up = put("Mul", [act, put("MatMul", [n2, f32(`${p}.up.w`, [hidden, 2 * hidden])], `${p}.up`)], `${p}.gu`);
    x = put("Add", [mid, put("MatMul", [up, f32(`${p}.down.w`, [2 * hidden, hidden])], `${p}.down`)], `${p}.out`);
  }
  put("MatMul", [rms(x, "final"), f32("head", [hidden, vocabulary])], "logits");
  const cache = (name: string, length: string) => value(name, T.FLOAT, ["batch", kvHeads, length, size]);
  const each = (prefix: string, length: string) =>
    Array.from({ length: 2 * layers }, (_, i) => cache(`${prefix}.${i >> 1}.${i & 1 ? "value" : "key"}`, length));
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
        initializer,
        node: nodes,
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
