// Mixtures of experts: MoE becomes QMoE. The judge is onnxruntime: QMoE gives what MoE gives with the weights that its
// codes stand for, decoded here.
import { create } from "@bufbuild/protobuf";
import * as ort from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { OperatorSetIdProtoSchema, type ModelProto, type NodeProto, type TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { expertsInput, withExperts } from "../../src/onnx/calibrate/experts.ts";
import {
  dequantizeWeights,
  modelLayers,
  modelValues,
  readModelBytes,
  writeModelBytes,
  type Feeds,
  type OnnxModel,
  type ConvertOptions as QuantizeOptions,
} from "../../src/onnx/index.ts";
import { encode, graph, model, node, raw, T, value, weights, type AttributeValue } from "./build.ts";
import { keep, quantizeModelBytes } from "./kept.ts";

const [EXPERTS, HIDDEN, INNER, TOKENS] = [4, 64, 128, 9];

interface Kind {
  readonly activation: string;
  readonly fusion?: number;
  readonly biases?: boolean;
  /** Experts weigh by their shares of all, not of those chosen: the default of the operator. */
  readonly shares?: boolean;
  /** Inputs before outputs, as onnxruntime had them before 1.23. */
  readonly turned?: boolean;
  readonly hidden?: number;
  /** swiglu with alpha, beta and a limit, as gpt-oss has it. */
  readonly limits?: boolean;
}

/** x and router -> MoE -> y, two of four experts a token. */
function mixture({
  activation,
  fusion = 1,
  biases = true,
  turned = false,
  shares = false,
  hidden = HIDDEN,
  limits = false,
}: Kind): ModelProto {
  const dims = (experts: number, rows: number, k: number): number[] => (turned ? [experts, k, rows] : [experts, rows, k]);
  const [up, down] = [fusion * INNER, hidden];
  const tensors = [
    raw("up", dims(EXPERTS, up, hidden), weights(EXPERTS * up * hidden, 1)),
    raw("down", dims(EXPERTS, down, INNER), weights(EXPERTS * down * INNER, 2)),
    ...(biases
      ? [raw("up_bias", [EXPERTS, up], weights(EXPERTS * up, 3)), raw("down_bias", [EXPERTS, down], weights(EXPERTS * down, 4))]
      : []),
  ];
  const attributes: Record<string, AttributeValue> = { k: 2n, activation_type: activation };
  if (!shares) attributes.normalize_routing_weights = 1n;
  if (fusion === 2) attributes.swiglu_fusion = 1n;
  if (limits) Object.assign(attributes, { activation_alpha: 1.702, activation_beta: 1, swiglu_limit: 0.5 });
  const inputs = biases ? ["x", "router", "up", "up_bias", "down", "down_bias"] : ["x", "router", "up", "", "down"];
  const moe = node("MoE", inputs, ["y"], attributes, "experts");
  moe.domain = "com.microsoft";
  const made = model(
    graph({
      input: [value("x", T.FLOAT, ["tokens", hidden]), value("router", T.FLOAT, ["tokens", EXPERTS])],
      output: [value("y", T.FLOAT, ["tokens", hidden])],
      initializer: tensors,
      node: [moe],
    }),
  );
  made.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return made;
}

const x = weights(TOKENS * HIDDEN, 5).map((v) => v * 10);
const router = weights(TOKENS * EXPERTS, 6).map((v) => v * 10);

async function run(bytes: Uint8Array): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(bytes, { intraOpNumThreads: 1 });
  try {
    const feeds = { x: new ort.Tensor("float32", x, [TOKENS, HIDDEN]), router: new ort.Tensor("float32", router, [TOKENS, EXPERTS]) };
    return (await session.run(feeds)).y.data as Float32Array;
  } finally {
    await session.release();
  }
}

const int = ({ attribute }: NodeProto, name: string): number => Number(attribute.find((one) => one.name === name)!.i);

/** The weights that codes of a QMoE stand for: [experts, rows, k]. */
function decoded(opened: OnnxModel, qmoe: NodeProto, which: number): TensorProto {
  const [bits, block] = [int(qmoe, "expert_weight_bits"), int(qmoe, "block_size")];
  const of = (at: number) => {
    const tensor = opened.proto.graph!.initializer.find(({ name }) => name === qmoe.input[at]);
    const payload = opened.payloads.get(tensor?.rawData);
    const data = payload === undefined ? tensor?.rawData : payload.source.read(payload.offset, payload.length);
    return tensor === undefined ? undefined : { dims: tensor.dims.map(Number), data: data! };
  };
  const [codes, scales, zeros] = [of(2 + 3 * which)!, of(3 + 3 * which)!, of(11 + which)];
  const [experts, rows, bytes] = codes.dims;
  const k = (bytes * 8) / bits;
  expect(scales.dims).toEqual([experts, rows, k / block]);
  const scale = new Float32Array(scales.data.slice().buffer);
  const bitsAt = (data: Uint8Array, i: number): number => (data[Math.floor((i * bits) / 8)] >> ((i * bits) % 8)) & (2 ** bits - 1);
  const out = Float32Array.from({ length: experts * rows * k }, (_, i) => {
    const zero = zeros === undefined ? 2 ** (bits - 1) : bitsAt(zeros.data, Math.floor(i / block));
    return (bitsAt(codes.data, i) - zero) * scale[Math.floor(i / block)];
  });
  return raw(["up", "down"][which], [experts, rows, k], out);
}

const nearness = (a: Float32Array, b: Float32Array): number => {
  const range = Math.max(...a) - Math.min(...a);
  return Math.max(...a.map((v, i) => Math.abs(v - b[i]))) / range;
};

/** Tokens of a mixture, more than it has inputs. */
const MANY = 400;
/** Inputs that hang together, so that GPTQ has something to make up for, and a router that prefers some experts. */
function tokens(seed: number, count = MANY, bias: readonly number[] = [0, 0, 0, 0]): Feeds {
  const [noise, common] = [weights(count * HIDDEN, seed), weights(count, seed + 1)];
  const data = noise.map((v, i) => 3 * v + 20 * common[Math.floor(i / HIDDEN)] * Math.cos(i % HIDDEN));
  const logits = weights(count * EXPERTS, seed + 2).map((v, i) => 20 * v + bias[i % EXPERTS]);
  return {
    x: { type: "float32", data, dims: [count, HIDDEN] },
    router: { type: "float32", data: logits, dims: [count, EXPERTS] },
  };
}

async function runOn(bytes: Uint8Array, feeds: Feeds): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(bytes, { intraOpNumThreads: 1 });
  try {
    const tensors = Object.entries(feeds).map(([name, { data, dims }]) => [name, new ort.Tensor("float32", data as Float32Array, dims)]);
    return (await session.run(Object.fromEntries(tensors))).y.data as Float32Array;
  } finally {
    await session.release();
  }
}

/** Noise over signal of a quantized mixture on tokens of its own. */
async function loss(kind: Kind, bytes: Uint8Array): Promise<number> {
  const feeds = tokens(91);
  const [float, got] = [await runOn(encode(mixture(kind)), feeds), await runOn(bytes, feeds)];
  return float.reduce((a, v, i) => a + (v - got[i]) ** 2, 0) / float.reduce((a, v) => a + v * v, 0);
}

async function quantized(kind: Kind, options: QuantizeOptions) {
  const { bytes, report } = await quantizeModelBytes(encode(mixture(kind)), options);
  return { bytes, report, opened: readModelBytes(bytes) };
}

describe("mixtures of experts as QMoE", () => {
  const kinds: Kind[] = [
    { activation: "relu" },
    { activation: "silu", biases: false },
    { activation: "swiglu", fusion: 2 },
    { activation: "gelu", shares: true },
  ];
  const options: [string, QuantizeOptions, number][] = [
    ["q4", { dtype: "q4" }, 15],
    ["q4 with zero points", { dtype: "q4", symmetric: false }, 15],
    ["q4 in blocks of 16", { dtype: "q4", blockSize: 16 }, 15],
    ["q8-block", { dtype: "q8-block" }, 35],
    ["q8-block with zero points", { dtype: "q8-block", symmetric: false }, 35],
    ["FP4 in the lattice of 8 bits", { format: "mxfp4", target: "matmulnbits" }, 12],
  ];
  for (const kind of kinds)
    for (const [name, asked, least] of options)
      it(`${kind.activation}${kind.shares === true ? ", shares of all" : ""}, ${name}: onnxruntime's QMoE is MoE of the decoded weights`, async () => {
        const { bytes, report, opened } = await quantized(kind, asked);
        const { node: nodes } = opened.proto.graph!;
        expect(report.layers.map((layer) => [layer.name, layer.format !== null])).toEqual([
          ["experts.fc1", true],
          ["experts.fc2", true],
        ]);
        expect(nodes.map(({ opType }) => opType)).toEqual(kind.shares === true ? ["Softmax", "QMoE"] : ["QMoE"]);
        const plain = mixture(kind);
        const decodes = new Map([0, 1].map((which) => decoded(opened, nodes.at(-1)!, which)).map((tensor) => [tensor.name, tensor]));
        plain.graph!.initializer = plain.graph!.initializer.map((tensor) => decodes.get(tensor.name) ?? tensor);
        const got = await run(bytes);
        expect(nearness(await run(encode(plain)), got)).toBeLessThan(1e-5);
        const float = await run(encode(mixture(kind)));
        const [signal, noise] = [float.reduce((a, v) => a + v * v, 0), float.reduce((a, v, i) => a + (v - got[i]) ** 2, 0)];
        expect(10 * Math.log10(signal / noise)).toBeGreaterThan(least);
      });

  it.each([false, true])("requantize gives MoE the weights of its codes again; shares of all experts: %s", async (shares) => {
    const { bytes } = await quantized({ activation: "silu", shares }, { dtype: "q4", symmetric: false });
    const back = readModelBytes(bytes);
    expect(dequantizeWeights(back)).toEqual(["weights dequantized: 1 com.microsoft.QMoE"]);
    expect(back.proto.graph!.node.map(({ opType }) => opType)).toEqual(["MoE"]);
    keep(back);
    expect(nearness(await run(bytes), await run(writeModelBytes(back)))).toBeLessThan(1e-5);
  });

  it("q4f16 has QMoE too", async () => {
    const { bytes, opened } = await quantized({ activation: "silu" }, { dtype: "q4f16" });
    expect(opened.proto.graph!.node.map(({ opType }) => opType)).toContain("QMoE");
    const { bytes: q4 } = await quantized({ activation: "silu" }, { dtype: "q4" });
    expect(nearness(await run(q4), await run(bytes))).toBeLessThan(0.01);
  });

  it("stored codes keep the operator, in any format", async () => {
    const { bytes, report } = await quantized({ activation: "silu" }, { format: "uint3_b32_zp", target: "stored" });
    expect(report.quantized).toBe(2);
    expect((await run(bytes)).every(Number.isFinite)).toBe(true);
    const { bytes: fine } = await quantized({ activation: "silu" }, { format: "int8_b32", target: "stored" });
    expect(nearness(await run(encode(mixture({ activation: "silu" }))), await run(fine))).toBeLessThan(0.02);
  });

  it("layers that cannot be QMoE say why", async () => {
    const reasons = async (kind: Kind, asked: QuantizeOptions): Promise<(string | undefined)[]> =>
      (await quantized(kind, { allowUnchanged: true, ...asked })).report.layers.map(({ reason }) => reason);
    expect(await reasons({ activation: "relu", turned: true }, { dtype: "q4" })).toEqual(
      Array(2).fill(expect.stringContaining("before 1.23")),
    );
    expect(await reasons({ activation: "relu" }, { dtype: "q4", blockSize: 128 })).toEqual([
      expect.stringContaining("64 is no multiple of 128"),
      expect.stringContaining("another one stays"),
    ]);
    expect(await reasons({ activation: "relu" }, { dtype: "q8" })).toEqual(
      Array(2).fill(expect.stringContaining("q4 and q8-block make QMoE")),
    );
    // a scale a row: rows of two lengths are blocks of two sizes
    expect(await reasons({ activation: "relu" }, { format: "int8_row", target: "matmulnbits", opTypes: ["MoE"] })).toEqual(
      Array(2).fill(expect.stringContaining("one number of bits")),
    );
    const rules = [{ match: "experts.fc1", format: "int8_b32" }];
    expect(await reasons({ activation: "relu" }, { dtype: "q4", rules })).toEqual(
      Array(2).fill(expect.stringContaining("one number of bits")),
    );
  });
});

describe("experts are calibrated on the tokens that the router sends them", () => {
  const kinds: Kind[] = [
    { activation: "relu" },
    { activation: "silu", biases: false },
    { activation: "gelu" },
    { activation: "identity" },
    { activation: "swiglu", fusion: 2 },
    { activation: "swiglu", fusion: 2, limits: true },
  ];
  for (const kind of kinds)
    it(`${JSON.stringify(kind)}: the vectors that fc2 sees times its weights are what the mixture gives`, async () => {
      const proto = mixture(kind);
      const opened = readModelBytes(encode(proto));
      const layers = modelLayers(opened);
      const [up, down] = layers;
      const [seen, inner] = [up, down].map(expertsInput);
      const feeds = tokens(31, TOKENS);
      for await (const values of modelValues(withExperts(opened, layers), [feeds], [seen, inner])) {
        const [x, h] = [values.get(seen)!, values.get(inner)!];
        expect(x.dims).toEqual([EXPERTS, TOKENS, HIDDEN]);
        expect(h.dims).toEqual([EXPERTS, TOKENS, INNER]);
        const [inputs, data] = [feeds.x.data as Float32Array, h.data as Float32Array];
        const weight = weights(EXPERTS * HIDDEN * INNER, 2);
        const bias = kind.biases === false ? null : weights(EXPERTS * HIDDEN, 4);
        const y = new Float32Array(TOKENS * HIDDEN);
        for (let t = 0; t < TOKENS; t++) {
          const shares = Array.from({ length: EXPERTS }, (_, e) => {
            const at = (e * TOKENS + t) * HIDDEN;
            const own = (x.data as Float32Array).subarray(at, at + HIDDEN);
            return own[1] / inputs[t * HIDDEN + 1];
          });
          expect(shares.filter((share) => share > 0)).toHaveLength(2);
          expect(shares.reduce((a, b) => a + b)).toBeCloseTo(1, 4);
          for (let e = 0; e < EXPERTS; e++)
            for (let r = 0; r < HIDDEN; r++) {
              let sum = shares[e] * (bias?.[e * HIDDEN + r] ?? 0);
              for (let j = 0; j < INNER; j++) sum += weight[(e * HIDDEN + r) * INNER + j] * data[(e * TOKENS + t) * INNER + j];
              y[t * HIDDEN + r] += sum;
            }
        }
        expect(nearness(await runOn(encode(proto), feeds), y)).toBeLessThan(1e-4);
      }
    });

  it("GPTQ loses less than rounding to nearest, and its figures are of outputs", async () => {
    const kind: Kind = { activation: "silu" };
    const algorithm = { name: "gptq", damp: 0.05, actOrder: false, polish: false } as const;
    const { bytes, report } = await quantized(kind, { dtype: "q4", algorithm, calibration: [tokens(11), tokens(14)] });
    const nearest = await quantized(kind, { dtype: "q4" });
    expect(await loss(kind, bytes)).toBeLessThan(0.6 * (await loss(kind, nearest.bytes)));
    for (const layer of report.layers) {
      expect(layer.algorithm).toBe("gptq");
      expect(layer.outputSqnrDb).toBeGreaterThan(15);
    }
  });

  it("an expert that no token is sent to is searched without data, and so are all in sequence", async () => {
    const kind: Kind = { activation: "relu" };
    const calibration = [tokens(11, 200, [0, 0, -99, 0])];
    const { report } = await quantized(kind, { dtype: "q4", algorithm: { name: "gptq", minRows: 1 }, calibration });
    expect(report.notes).toEqual(
      ["fc1", "fc2"].map(
        (part) => `experts.${part}: scales of 1 of 4 groups searched without data: the router sends hardly any token there`,
      ),
    );
    const sequence = await quantized(kind, { dtype: "q4", algorithm: "refit", calibration: [tokens(11), tokens(14)] });
    expect(sequence.report.layers.map(({ algorithm }) => algorithm)).toEqual(["rtn", "rtn"]);
    expect(sequence.report.notes[0]).toContain("searched without data: experts are calibrated on the float model only");
  });

  it("a basis of its own has no place in QMoE", async () => {
    const calibration = [tokens(11, 150)];
    const { report } = await quantized({ activation: "relu" }, { dtype: "q4", algorithm: "mrgptq", calibration });
    expect(report.notes).toEqual(
      ["fc1", "fc2"].map((part) => `experts.${part}: scales searched without data: mrgptq would give every expert a basis of its own`),
    );
    const rules = [{ match: "experts.*", algorithm: { name: "mrgptq", block: 32, damp: 0.1, actOrder: true, polish: false } as const }];
    await expect(quantized({ activation: "relu" }, { dtype: "q4", rules, calibration })).rejects.toThrow(
      /keeps the basis of the experts' inputs, got mrgptq. Take gptq/,
    );
  });
});
