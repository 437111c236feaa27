// Mixtures of experts: `a` tokens, `b` + 1 experts, two of them a token, hidden size 32 c.
import { raw, T, type AttributeValue } from "../onnx/build.ts";
import { f32, numbers, size, type Make } from "./make.ts";

interface Kind {
  readonly activation: string;
  readonly biases?: boolean;
  /** The shares are of the chosen experts. */
  readonly normalizes?: boolean;
  readonly attributes?: Record<string, AttributeValue>;
}

const swiglu = (attributes: Kind["attributes"] = {}): Kind => ({ activation: "swiglu", attributes: { swiglu_fusion: 1n, ...attributes } });

const attributesOf = ({ activation, normalizes = false, attributes = {} }: Kind) => ({
  k: 2n,
  activation_type: activation,
  normalize_routing_weights: normalizes ? 1n : 0n,
  ...attributes,
});

const sizes = ({ activation }: Kind, b: number, c: number) => {
  const [experts, hidden, inner] = [b + 1, 32 * c, 32];
  return { experts, hidden, inner, up: activation === "swiglu" ? 2 * inner : inner };
};

const moe =
  (kind: Kind): Make =>
  (s, a, b, c) => {
    const { experts, hidden, inner, up } = sizes(kind, b, c);
    const floats = (name: string, dims: number[], seed: number) => raw(name, dims, numbers(s + seed, size(dims), -0.5, 0.5));
    return {
      feeds: { x: f32(s, [a, hidden]), router: f32(s + 1, [a, experts], -2, 2) },
      initializer: [
        floats("up", [experts, up, hidden], 2),
        floats("down", [experts, hidden, inner], 3),
        ...(kind.biases === true ? [floats("ub", [experts, up], 4), floats("db", [experts, hidden], 5)] : []),
      ],
      order: kind.biases === true ? ["x", "router", "up", "ub", "down", "db"] : ["x", "router", "up", "", "down"],
      attributes: attributesOf(kind),
    };
  };

interface Codes {
  readonly bits: number;
  /** 0: a scale for each row. */
  readonly block: number;
  readonly zeros?: boolean;
  /** Weights of the experts apart from the router's values. */
  readonly weights?: boolean;
}

const qmoe =
  (kind: Kind, { bits, block, zeros = false, weights = false }: Codes): Make =>
  (s, a, b, c) => {
    const { experts, hidden, inner, up } = sizes(kind, b, c);
    const bytes = (name: string, dims: number[], seed: number) =>
      raw(name, dims, Uint8Array.from(numbers(s + seed, size(dims), 0, 255.9)), T.UINT8);
    const part = (name: string, n: number, k: number, seed: number) => {
      const blocks = block === 0 ? 1 : k / block;
      const dims = block === 0 ? [experts, n] : [experts, n, blocks];
      const packed = block === 0 ? [experts, Math.ceil((n * bits) / 8)] : [experts, n, Math.ceil((blocks * bits) / 8)];
      return [
        bytes(`${name}q`, [experts, n, (k * bits) / 8], seed),
        raw(`${name}s`, dims, numbers(s + seed + 1, size(dims), 0.2 / 2 ** bits, 1 / 2 ** bits)),
        ...(zeros ? [bytes(`${name}z`, packed, seed + 2)] : []),
      ];
    };
    const zero = zeros ? ["uz", "dz"] : ["", ""];
    return {
      feeds: {
        x: f32(s, [a, hidden]),
        router: f32(s + 1, [a, experts], -2, 2),
        ...(weights ? { weights: f32(s + 9, [a, experts], 0.1, 1) } : {}),
      },
      initializer: [...part("u", up, hidden, 10), ...part("d", hidden, inner, 20)],
      order: ["x", "router", "uq", "us", "", "dq", "ds", "", "", "", "", ...zero, "", weights ? "weights" : ""],
      attributes: { ...attributesOf(kind), expert_weight_bits: BigInt(bits), block_size: BigInt(block) },
    };
  };

export const expertCases: Record<string, Make[]> = {
  "com.microsoft.MoE": [
    moe({ activation: "relu" }),
    moe({ activation: "gelu", biases: true, normalizes: true }),
    moe({ activation: "silu", biases: true }),
    moe({ activation: "identity" }),
    moe(swiglu()),
    moe(swiglu({ activation_alpha: 1.702, activation_beta: 1, swiglu_limit: 0.5 })),
  ],
  "com.microsoft.QMoE": [
    qmoe({ activation: "silu" }, { bits: 4, block: 16 }),
    qmoe({ activation: "relu", normalizes: true }, { bits: 4, block: 16, weights: true }),
    qmoe({ activation: "gelu" }, { bits: 4, block: 0, weights: true }),
    qmoe({ activation: "silu" }, { bits: 8, block: 0, zeros: true }),
    qmoe(swiglu({ activation_alpha: 1.702, activation_beta: 1, swiglu_limit: 2 }), { bits: 4, block: 0, zeros: true }),
  ],
};
