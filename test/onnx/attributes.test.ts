// Attributes of the operators whose weights are quantized: left out, written out with the default, and with other
// values, in every mode. onnxruntime computes before and after: the outputs stay, as far as the bits allow, and a
// default that is written out changes nothing at all.
import { create } from "@bufbuild/protobuf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { ValueInfoProtoSchema, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { T, encode, graph, model, node, raw, value, weights, type AttributeValue } from "./build.ts";
import { quantizeModelBytes } from "./kept.ts";

const count = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);
const w = (name: string, dims: number[], seed = 2): TensorProto => raw(name, dims, weights(count(dims), seed).map((v) => 2 * v)); // prettier-ignore
const ints = (...list: number[]): AttributeValue => ({ ints: list });

interface Case {
  readonly op: string;
  readonly x: number[];
  readonly weights: readonly TensorProto[];
  /** Attributes that the case needs in any form. */
  readonly needs?: Record<string, AttributeValue>;
  /** The default of the attribute, written out; undefined: it has none. */
  readonly plain?: Record<string, AttributeValue>;
  readonly others?: readonly Record<string, AttributeValue>[];
  readonly inputs?: readonly string[];
}
const gemm = (x: number[], b: number[], more: Partial<Case>): Case => ({ op: "Gemm", x, weights: [w("w", b), w("c", [16])], ...more });
const conv = (more: Partial<Case>, weight = [8, 4, 3, 3]): Case => ({ op: "Conv", x: [1, 4, 9, 9], weights: [w("w", weight)], ...more });
const turned = (more: Partial<Case>, weight = [4, 8, 3, 3]): Case => ({ op: "ConvTranspose", x: [1, 4, 7, 7], weights: [w("w", weight)], ...more }); // prettier-ignore
const recurrent = (op: string, gates: number, more: Partial<Case>, directions = 1): Case => ({
  ...{ op, x: [5, 2, 32], needs: { hidden_size: 16n } },
  weights: [w("w", [directions, gates * 16, 32]), w("r", [directions, gates * 16, 16], 3), w("b", [directions, 2 * gates * 16], 4)],
  ...more,
});
const hidden = (more: Record<string, AttributeValue>) => ({ hidden_size: 16n, ...more });

const CASES: Record<string, Case> = {
  "Gemm alpha": gemm([3, 32], [32, 16], { plain: { alpha: 1 }, others: [{ alpha: 0.5 }, { alpha: -2 }, { alpha: 0 }] }),
  "Gemm beta": gemm([3, 32], [32, 16], { plain: { beta: 1 }, others: [{ beta: 0 }, { beta: -3 }] }),
  "Gemm transB": gemm([3, 32], [16, 32], { others: [{ transB: 1n }, { transB: 1n, alpha: 3 }] }),
  "Gemm transA": gemm([32, 3], [32, 16], { others: [{ transA: 1n }, { transA: 1n, beta: 2 }] }),
  "Gemm trans": gemm([3, 32], [32, 16], { plain: { transA: 0n, transB: 0n } }),
  "Conv group": conv({ plain: { group: 1n } }),
  "Conv of groups": conv({ others: [{ group: 2n }] }, [8, 2, 3, 3]),
  "Conv depthwise": conv({ others: [{ group: 4n }] }, [8, 1, 3, 3]),
  "Conv window": conv({ plain: { strides: ints(1, 1), dilations: ints(1, 1), pads: ints(0, 0, 0, 0) }, others: [{ strides: ints(2, 1) }, { dilations: ints(2, 2) }, { pads: ints(1, 0, 2, 1) }, { auto_pad: "SAME_UPPER" }, { auto_pad: "SAME_LOWER" }] }), // prettier-ignore
  "ConvTranspose group": turned({ plain: { group: 1n } }),
  "ConvTranspose of groups": turned({ others: [{ group: 2n }] }, [4, 4, 3, 3]),
  "ConvTranspose window": turned({ plain: { strides: ints(1, 1), pads: ints(0, 0, 0, 0) }, others: [{ strides: ints(2, 2) }, { strides: ints(2, 2), output_padding: ints(1, 1) }, { pads: ints(1, 1, 0, 0) }, { dilations: ints(2, 1) }] }), // prettier-ignore
  "Gather axis": { op: "Gather", x: [3], weights: [w("w", [16, 32])], inputs: ["w", "x"], plain: { axis: 0n }, others: [{ axis: 1n }, { axis: -1n }, { axis: -2n }] }, // prettier-ignore
  "LSTM form": recurrent("LSTM", 4, { plain: hidden({ layout: 0n, direction: "forward", input_forget: 0n }), others: [hidden({ direction: "reverse" }), hidden({ clip: 0.3 }), hidden({ activations: { strings: ["Sigmoid", "Relu", "Tanh"] } })] }), // prettier-ignore
  "LSTM both ways": recurrent("LSTM", 4, { needs: hidden({ direction: "bidirectional" }), others: [hidden({ direction: "bidirectional" })] }, 2), // prettier-ignore
  "GRU form": recurrent("GRU", 3, { plain: hidden({ linear_before_reset: 0n }), others: [hidden({ linear_before_reset: 1n }), hidden({ direction: "reverse" })] }), // prettier-ignore
  "RNN form": recurrent("RNN", 1, { plain: hidden({ direction: "forward" }), others: [hidden({ activations: { strings: ["Relu"] } })] }),
};

function built({ op, x, weights: init, inputs }: Case, attributes: Record<string, AttributeValue>): Uint8Array {
  const names = inputs ?? ["x", ...init.map(({ name }) => name)];
  const input = op === "Gather" ? value("x", T.INT64, x) : value("x", T.FLOAT, x);
  const output = create(ValueInfoProtoSchema, { name: "y" });
  return encode(model(graph({ input: [input], output: [output], initializer: [...init], node: [node(op, [...names], ["y"], attributes, "n")] }), { ir: 10, opset: 21 })); // prettier-ignore
}
const feedOf = ({ op, x }: Case) =>
  op === "Gather" ? new Tensor("int64", BigInt64Array.from({ length: count(x) }, (_, i) => BigInt(i * 5)), x) : new Tensor("float32", weights(count(x), 7).map((v) => 3 * v), x); // prettier-ignore
async function run(one: Case, bytes: Uint8Array): Promise<Float32Array> {
  const session = await InferenceSession.create(bytes, { logSeverityLevel: 4, intraOpNumThreads: 1 });
  const { y } = await session.run({ x: feedOf(one) });
  await session.release();
  return Float32Array.from(y.data as Float32Array);
}
function decibels(want: Float32Array, got: Float32Array): number {
  expect(got.length).toBe(want.length);
  let [signal, noise] = [0, 0];
  want.forEach((v, i) => ([signal, noise] = [signal + v * v, noise + (v - got[i]) ** 2]));
  return noise === 0 ? Infinity : 10 * Math.log10(signal / noise);
}

const STATIC = /^(Gemm|Conv|ConvTranspose)$/;
/** By mode: the operators that it has a form for, and the decibels that are left at least. */
const MODES: Record<string, { options: QuantizeBytesOptions; forms: RegExp; least: number }> = {
  stored: { options: { format: "int8_b16", target: "stored" }, forms: /./, least: 35 },
  "q8-block": { options: { dtype: "q8-block", accuracyLevel: 0 }, forms: /^(Gemm|Gather)$/, least: 35 },
  int8: { options: { dtype: "int8" }, forms: /^(Gemm|Conv|Gather|LSTM)$/, least: 20 },
  "uint8 by channel": { options: { dtype: "uint8", perChannel: true }, forms: /^(Gemm|Conv|Gather|LSTM)$/, least: 20 },
  fp16: { options: { dtype: "fp16" }, forms: /./, least: 45 },
  static: { options: { activations: "uint8" }, forms: STATIC, least: 20 },
  "static, signed": { options: { activations: "int8" }, forms: STATIC, least: 20 },
  "static in 16 bits": { options: { activations: "uint16" }, forms: STATIC, least: 30 },
  "static as operators": { options: { activations: "uint8", outputs: "qoperator" }, forms: STATIC, least: 20 },
};

describe.each(Object.entries(MODES))("%s", (mode, { options, forms, least }) => {
  const taken = Object.entries(CASES).filter(([, { op }]) => forms !== STATIC || forms.test(op));
  test.each(taken)("%s", async (_, one) => {
    const data = feedOf(one);
    const calibration = forms === STATIC ? { calibration: [{ x: { type: data.type, data: data.data as Float32Array, dims: data.dims } }] } : {}; // prettier-ignore
    const of = async (attributes: Record<string, AttributeValue>) => {
      const bytes = built(one, attributes);
      const { bytes: after, report } = await quantizeModelBytes(bytes, {
        ...options,
        ...calibration,
        opTypes: [one.op],
        allowUnchanged: true,
      });
      const [want, got] = [await run(one, bytes), await run(one, after)];
      expect([attributes, Math.min(decibels(want, got), least)]).toEqual([attributes, least]);
      const reasons = report.layers.map(({ reason }) => reason);
      const rows = mode !== "q8-block" || one.op !== "Gather" || [undefined, 0n, -2n].includes(attributes.axis as bigint | undefined);
      const reason = !forms.test(one.op) ? /has no form of/ : rows ? /^taken$/ : /gathers rows \(axis 0\) only/;
      for (const given of reasons) expect(given ?? "taken").toMatch(reason);
      return { got, reasons };
    };
    if (one.plain !== undefined) expect(await of(one.plain)).toEqual(await of(one.needs ?? {}));
    for (const other of one.others ?? []) await of(other);
  });
});
