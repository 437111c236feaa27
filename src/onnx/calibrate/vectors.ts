// Which vectors a layer multiplies: the value that it reads, cut into the rows that its weight matrix [rows, k] sees. A
// convolution sees patches (im2col, one set for each group), a left-hand weight sees columns.
import { LowbitError } from "../../../formats/core/errors.ts";
import { im2col, type ConvGeometry } from "../../quantize/im2col.ts";
import type { NodeProto } from "../file/gen/onnx_pb.ts";
import { attributeInt, attributeOf, isDefaultDomain } from "../graph/graph.ts";
import type { Layer } from "../layers.ts";
import { weightLayout } from "../matrix.ts";
import { expertsInput, expertsObstacle, isExperts } from "./experts.ts";

/** How a layer reads vectors out of a value. Layers with the same input and key see the same vectors. */
export interface VectorView {
  readonly key: string;
  readonly k: number;
  /** Parts of the weight's rows that see vectors of their own. */
  readonly groups: number;
  /** A part may see no vector at all: an expert that no token is sent to. */
  readonly sparse?: boolean;
  /** Vectors in a value of these dims. */
  tokens(dims: readonly number[]): number;
  /** Vectors of one group, row-major, every n-th of them. */
  read(data: Float32Array, dims: readonly number[], group: number, every: number): Float32Array;
}

const product = (dims: readonly number[]): number => dims.reduce((a, b) => a * b, 1);

const wrong = (layer: Layer, expected: string, dims: readonly number[]): LowbitError =>
  new LowbitError(
    "E_SHAPE",
    `layer ${layer.name}: expected an input ${expected}, got [${dims.join(", ")}]. Does the model run on this data?`,
  );

/** Rows along the last axis. */
function rowView(layer: Layer, k: number): VectorView {
  const check = (dims: readonly number[]): number => {
    if ((dims.at(-1) ?? 1) !== k) throw wrong(layer, `[.., ${k}]`, dims);
    return product(dims) / k;
  };
  return {
    key: "rows",
    k,
    groups: 1,
    tokens: check,
    read(data, dims, _, every) {
      const tokens = check(dims);
      if (every === 1) return data;
      const out = new Float32Array(Math.ceil(tokens / every) * k);
      for (let t = 0, at = 0; t < tokens; t += every, at += k) out.set(data.subarray(t * k, (t + 1) * k), at);
      return out;
    },
  };
}

/** Vectors along axis `axis` (counted from the left, after a batch), `groups` parts of it. */
function axisView(layer: Layer, k: number, groups: number, axisOf: (rank: number) => number, key: string): VectorView {
  const split = (dims: readonly number[]): [outer: number, inner: number] => {
    const axis = axisOf(dims.length);
    if (dims[axis] !== k * groups) throw wrong(layer, `with ${k * groups} on axis ${axis}`, dims);
    return [product(dims.slice(0, axis)), product(dims.slice(axis + 1))];
  };
  return {
    key,
    k,
    groups,
    tokens: (dims) => product(split(dims)),
    read(data, dims, group, every) {
      const [outer, inner] = split(dims);
      const tokens = outer * inner;
      const out = new Float32Array(Math.ceil(tokens / every) * k);
      for (let t = 0, at = 0; t < tokens; t += every) {
        const base = (Math.floor(t / inner) * groups + group) * k * inner + (t % inner);
        for (let j = 0; j < k; j++) out[at++] = data[base + j * inner];
      }
      return out;
    },
  };
}

function convView(layer: Layer): VectorView | string {
  const { node, shape } = layer;
  const spatial = shape.length - 2;
  if (spatial > 2) return `calibration has no patches of a convolution in ${spatial} dimensions`;
  const groups = attributeInt(node, "group", 1);
  const two = (list: readonly number[], fill: number): [number, number] =>
    spatial === 1 ? [fill, list[0] ?? fill] : [list[0] ?? fill, list[1] ?? fill];
  const ints = (name: string): number[] => (attributeOf(node, name)?.ints ?? []).map(Number);
  const kernel = two(shape.slice(2), 1);
  const strides = two(ints("strides"), 1);
  const dilations = two(ints("dilations"), 1);
  const autoPad = new TextDecoder().decode(attributeOf(node, "auto_pad")?.s ?? new Uint8Array());
  const given = ints("pads");
  const k = (shape[1] ?? 1) * kernel[0] * kernel[1];
  const sized = (dims: readonly number[]): [number, number, number, number] => {
    if (dims.length !== spatial + 2 || dims[1] !== shape[1] * groups)
      throw wrong(layer, `[n, ${shape[1] * groups}, ..] of ${spatial + 2} dimensions`, dims);
    return spatial === 1 ? [dims[0], dims[1], 1, dims[2]] : [dims[0], dims[1], dims[2], dims[3]];
  };
  const padsOf = (dims: readonly number[]): [number, number, number, number] => {
    if (autoPad !== "SAME_UPPER" && autoPad !== "SAME_LOWER")
      return autoPad === "VALID" || given.length === 0
        ? [0, 0, 0, 0]
        : spatial === 1
          ? [0, given[0], 0, given[1]]
          : [given[0], given[1], given[2], given[3]];
    const [low, high] = [0, 1].map((axis) => {
      const size = dims[2 + axis];
      const total = Math.max(0, (Math.ceil(size / strides[axis]) - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - size);
      const less = Math.floor(total / 2);
      return autoPad === "SAME_UPPER" ? [less, total - less] : [total - less, less];
    });
    return [low[0], high[0], low[1], high[1]];
  };
  const geometry = (dims: readonly number[]): ConvGeometry => ({
    channels: dims[1],
    kernel,
    strides,
    dilations,
    pads: padsOf(dims),
    group: groups,
  });
  return {
    key: `conv ${groups} ${[...kernel, ...strides, ...dilations].join()} ${given.join()} ${autoPad}`,
    k,
    groups,
    tokens(dims) {
      const four = sized(dims);
      const pads = padsOf(four);
      const out = [0, 1].map(
        (a) => Math.floor((four[2 + a] + pads[a] + pads[2 + a] - dilations[a] * (kernel[a] - 1) - 1) / strides[a]) + 1,
      );
      return four[0] * Math.max(0, out[0]) * Math.max(0, out[1]);
    },
    read(data, dims, group, every) {
      const four = sized(dims);
      return im2col(data, four, geometry(four), group, { every });
    },
  };
}

/** The tokens that each expert sees of [experts, tokens, k]: zero vectors are those of other experts. */
function expertsView(layer: Layer): VectorView | string {
  const obstacle = expertsObstacle(layer);
  if (obstacle !== undefined) return obstacle;
  const [experts, , k] = layer.shape;
  return {
    key: "experts",
    k,
    groups: experts,
    sparse: true,
    tokens: (dims) => dims[1],
    read(data, dims, group, every) {
      const tokens = dims[1];
      const all = data.subarray(group * tokens * k, (group + 1) * tokens * k);
      const seen = Array.from({ length: Math.ceil(tokens / every) }, (_, i) => all.subarray(i * every * k, (i * every + 1) * k)).filter(
        (vector) => vector.some((value) => value !== 0),
      );
      const out = new Float32Array(seen.length * k);
      for (const [i, vector] of seen.entries()) out.set(vector, i * k);
      return out;
    },
  };
}

/** Whether the vectors of a Gemm lie along rows of its other operand. */
function gemmRows(node: NodeProto, weightInput: number): boolean {
  return weightInput === 1 ? attributeInt(node, "transA", 0) === 0 : attributeInt(node, "transB", 0) !== 0;
}

/** The vectors that a layer's weight, a constant, multiplies, or why there are none. */
export function vectorView(layer: Layer): VectorView | string {
  const { node, input } = layer;
  if (isExperts(layer)) return expertsView(layer);
  const { k, groups } = weightLayout(layer);
  const op = isDefaultDomain(node) ? node.opType : `${node.domain}.${node.opType}`;
  if (op === "MatMul") return input === 1 ? rowView(layer, k) : axisView(layer, k, 1, (rank) => Math.max(0, rank - 2), "columns");
  if (op === "Gemm") return gemmRows(node, input) ? rowView(layer, k) : axisView(layer, k, 1, () => 0, "columns");
  if (op === "Conv") return convView(layer);
  if (op === "ConvTranspose") return axisView(layer, k, groups, () => 1, `channels ${groups}`);
  if (op === "Gather") return "an embedding looks its rows up, it multiplies no vectors";
  return `calibration does not know what ${op} multiplies`;
}

/** The value whose vectors a layer multiplies. */
export const activationOf = (layer: Layer): string =>
  isExperts(layer) ? expertsInput(layer) : (layer.node.input[layer.input === 0 ? 1 : 0] ?? "");

/** The values of the model that this one is made of. */
export const sourcesOf = (layer: Layer): string[] => (isExperts(layer) ? layer.node.input.slice(0, 2) : [activationOf(layer)]);
