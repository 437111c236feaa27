// Resize and Upsample: each axis in turn, an output as a weighted sum of inputs. Source: the ONNX operator Resize-19
// and its reference implementation.
import { LowbitError } from "../../../formats/core/errors.ts";
import { attributeFloat, attributeInt, attributeOf } from "../../onnx/graph/nodes.ts";
import type { NodeProto } from "../../onnx/file/gen/onnx_pb.ts";
import type { Value } from "../value.ts";
import { empty, floatData, integers, sizeOf } from "../value.ts";
import type { Inputs, Operator, Operators } from "./operator.ts";
import { axisOf, fail, ints, need, product, text } from "./operator.ts";

type Shaped = Pick<Value, "dims">;

/** Where along an axis of `from` elements the output at `i` of `to` lies. */
interface Axis {
  readonly from: number;
  readonly to: number;
  readonly scale: number;
  /** tf_crop_and_resize: start and end, as parts of the axis. */
  readonly crop: readonly [number, number];
}

type Place = (axis: Axis, i: number) => number;

const PLACES: ReadonlyMap<string, Place> = new Map<string, Place>([
  ["half_pixel", ({ scale }, i) => (i + 0.5) / scale - 0.5],
  ["pytorch_half_pixel", ({ scale, to }, i) => (to > 1 ? (i + 0.5) / scale - 0.5 : 0)],
  ["asymmetric", ({ scale }, i) => i / scale],
  ["align_corners", ({ from, to }, i) => (to === 1 ? 0 : (i * (from - 1)) / (to - 1))],
  ["tf_half_pixel_for_nn", ({ scale }, i) => (i + 0.5) / scale],
  [
    "half_pixel_symmetric",
    ({ from, to, scale }, i) => {
      const centre = from / 2;
      const shift = centre * (1 - to / (scale * from));
      return shift + (i + 0.5) / scale - 0.5;
    },
  ],
  [
    "tf_crop_and_resize",
    ({ from, to, crop: [start, end] }, i) =>
      to > 1 ? start * (from - 1) + (i * (end - start) * (from - 1)) / (to - 1) : 0.5 * (start + end) * (from - 1),
  ],
]);

const NEAREST: ReadonlyMap<string, (x: number) => number> = new Map([
  ["round_prefer_floor", (x) => Math.ceil(x - 0.5)],
  ["round_prefer_ceil", (x) => Math.floor(x + 0.5)],
  ["floor", Math.floor],
  ["ceil", Math.ceil],
]);

/** Inputs that an output is made of, and their weights. */
export interface Taps {
  readonly at: readonly number[];
  readonly weights: readonly number[];
}

const clamp = (i: number, count: number): number => Math.min(Math.max(i, 0), count - 1);

function cubicWeights(t: number, a: number): number[] {
  const near = (x: number): number => ((a + 2) * x - (a + 3)) * x * x + 1;
  const far = (x: number): number => ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return [far(1 + t), near(t), near(1 - t), far(2 - t)];
}

/** The taps of each output along an axis; null for an output outside the image that is the extrapolation value. */
function tapsOf(axis: Axis, node: NodeProto): (Taps | null)[] {
  const mode = text(node, "mode", "nearest");
  const how = modeOf(node);
  const place = PLACES.get(how)!;
  const nearest = NEAREST.get(node.opType === "Upsample" ? "floor" : text(node, "nearest_mode", "round_prefer_floor"))!;
  const a = attributeFloat(node, "cubic_coeff_a", -0.75);
  const cut = attributeInt(node, "exclude_outside", 0) !== 0;
  return Array.from({ length: axis.to }, (_, i) => {
    // coordinates are float32, as in the runtimes that files are made for
    const x = axis.from === axis.to && axis.scale === 1 && how !== "tf_crop_and_resize" ? i : Math.fround(place(axis, i));
    if (how === "tf_crop_and_resize" && (x < 0 || x > axis.from - 1)) return null;
    if (mode === "nearest") return { at: [clamp(nearest(x), axis.from)], weights: [1] };
    if (mode === "linear") {
      const inside = Math.min(Math.max(x, 0), axis.from - 1);
      const low = Math.floor(inside);
      return { at: [low, clamp(low + 1, axis.from)], weights: [1 - (inside - low), inside - low] };
    }
    const low = Math.floor(x);
    const places = [-1, 0, 1, 2].map((d) => low + d);
    let weights = cubicWeights(x - low, a);
    if (cut) {
      weights = weights.map((w, j) => (places[j] < 0 || places[j] >= axis.from ? 0 : w));
      const sum = weights.reduce((s, w) => s + w, 0);
      weights = weights.map((w) => w / sum);
    }
    return { at: places.map((p) => clamp(p, axis.from)), weights };
  });
}

const modeOf = (node: NodeProto): string =>
  node.opType === "Upsample" ? "asymmetric" : text(node, "coordinate_transformation_mode", "half_pixel");

/** One axis of x resized. */
function along(x: Value, axis: number, taps: readonly (Taps | null)[], outside: number): Value {
  const dims = x.dims.with(axis, taps.length);
  const inner = product(x.dims.slice(axis + 1));
  const outer = product(x.dims.slice(0, axis));
  const from = x.data as Float32Array;
  const d = x.dims[axis];
  const out = empty(x.type, dims);
  const to = out.data as Float32Array;
  for (let o = 0; o < outer; o++)
    taps.forEach((tap, i) => {
      const row = (o * taps.length + i) * inner;
      if (tap === null) return void to.fill(outside, row, row + inner);
      if (tap.at.length === 1) return void to.set(from.subarray((o * d + tap.at[0]) * inner, (o * d + tap.at[0] + 1) * inner), row);
      tap.at.forEach((at, k) => {
        const w = tap.weights[k];
        if (w !== 0) for (let j = 0; j < inner; j++) to[row + j] += w * from[(o * d + at) * inner + j];
      });
    });
  return out;
}

/** Input i where it holds numbers: an empty tensor is none. */
const filled = (inputs: Inputs, i: number): Value | undefined =>
  inputs[i] !== undefined && inputs[i].data.length > 0 ? inputs[i] : undefined;

/** Sizes by axis from `sizes`, and the policy that keeps the ratio of the sides. */
function bySizes(x: Shaped, axes: readonly number[], sizes: readonly number[], node: NodeProto): Axis[] {
  const policy = text(node, "keep_aspect_ratio_policy", "stretch");
  const ratios = axes.map((a, i) => sizes[i] / x.dims[a]);
  const kept = policy === "not_larger" ? Math.min(...ratios) : Math.max(...ratios);
  return x.dims.map((from, axis) => {
    const i = axes.indexOf(axis);
    if (i < 0) return { from, to: from, scale: 1, crop: [0, 1] };
    if (policy === "stretch") return { from, to: sizes[i], scale: ratios[i], crop: [0, 1] };
    return { from, to: Math.floor(kept * from + 0.5), scale: kept, crop: [0, 1] };
  });
}

/** What happens to each axis. @throws LowbitError E_SHAPE, E_ONNX */
function axesOf(x: Shaped, inputs: Inputs, node: NodeProto): Axis[] {
  const old = node.opType === "Upsample" || inputs.length === 2;
  const scales = old ? filled(inputs, 1) : filled(inputs, 2);
  const sizes = old ? undefined : filled(inputs, 3);
  const given = ints(node, "axes");
  const axes = (given ?? x.dims.map((_, i) => i)).map((a) => axisOf(a, x.dims.length, node));
  const region = text(node, "coordinate_transformation_mode", "") === "tf_crop_and_resize" ? filled(inputs, 1) : undefined;
  const factors = scales === undefined ? attributeOf(node, "scales")?.floats : [...floatData(scales, node.opType)];
  const wanted = sizes === undefined ? undefined : integers(sizes);
  const list = wanted ?? factors;
  if (list === undefined)
    throw new LowbitError("E_ONNX", `node ${node.name} (${node.opType}): expected scales or sizes, got neither. The model is damaged.`);
  if (list.length !== axes.length) throw fail(node, `${axes.length} scales or sizes`, `[${list.join(", ")}]`);
  const plain =
    wanted !== undefined
      ? bySizes(x, axes, wanted, node)
      : x.dims.map((from, axis): Axis => {
          const scale = axes.includes(axis) ? factors![axes.indexOf(axis)] : 1;
          return { from, to: Math.floor(from * scale), scale, crop: [0, 1] };
        });
  if (region === undefined) return plain;
  const parts = floatData(region, node.opType);
  return plain.map((axis, i) => {
    const at = axes.indexOf(i);
    return at < 0 ? axis : { ...axis, crop: [parts[at], parts[axes.length + at]] };
  });
}

/** The axes that change, in order, and the taps of their outputs. @throws LowbitError as `axesOf` */
export function resizing(x: Shaped, inputs: Inputs, node: NodeProto): { readonly axis: number; readonly taps: readonly (Taps | null)[] }[] {
  const axes = axesOf(x, inputs, node);
  sizeOf(axes.map(({ to }) => to), node.opType); // prettier-ignore
  return axes.flatMap((of, axis) => {
    const whole = of.crop[0] === 0 && of.crop[1] === 1;
    if (of.from === of.to && whole && of.scale === 1) return [];
    if (of.from === 0) throw fail(node, "an image with elements", `[${x.dims.join(", ")}]`);
    return [{ axis, taps: tapsOf(of, node) }];
  });
}

function resize(inputs: Inputs, node: NodeProto): Value {
  const x = need(inputs, 0, node);
  const steps = resizing(x, inputs, node);
  if (text(node, "mode", "nearest") !== "nearest") floatData(x, node.opType);
  const outside = attributeFloat(node, "extrapolation_value", 0);
  const out = steps.reduce((of, { axis, taps }) => along(of, axis, taps, outside), x);
  return out === x ? { ...x, data: x.data.slice() } : out;
}

const known: Operator["missing"] = (node) => {
  const mode = text(node, "mode", "nearest");
  if (attributeInt(node, "antialias", 0) !== 0) return "with antialiasing";
  if (!["nearest", "linear", "cubic"].includes(mode)) return `in mode ${mode}`;
  if (!PLACES.has(modeOf(node))) return `with ${modeOf(node)}`;
  return NEAREST.has(text(node, "nearest_mode", "round_prefer_floor")) ? undefined : `with ${text(node, "nearest_mode", "")}`;
};

export const resizers: Operators = { Resize: { run: resize, missing: known }, Upsample: { run: resize, missing: known } };
