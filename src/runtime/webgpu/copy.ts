// Strided copies on the device: transposes, slices, expansion, joins and parts.
import { COPY_FIELDS, COPY_RANK, copyShader } from "../../../kernels/wgsl/nn/moves.ts";
import { itemGroups } from "../../../kernels/wgsl/nn/shader.ts";
import { contiguous } from "../../onnx/graph/views.ts";
import { product } from "../ops/operator.ts";
import type { Moved } from "../ops/shape.ts";
import type { Dispatch, Recorder, Tensor } from "./recorder.ts";

/** A place in a tensor. */
export interface Place {
  readonly tensor: Tensor;
  /** Elements from the tensor's own start; asked each time that the command is submitted. */
  readonly start: number | (() => number);
}

interface Side extends Place {
  readonly strides: readonly number[];
}

/** Elements from the start of the buffer. */
export const startOf = ({ tensor, start }: Place): number => tensor.offset + (typeof start === "number" ? start : start());

/** Copies `sizes` elements, of at most six dimensions. */
export function copyBetween(r: Recorder, sizes: readonly number[], from: Side, to: Side): void {
  const lead = COPY_RANK - sizes.length;
  const all = (list: readonly number[], filler: number): number[] => [...new Array<number>(lead).fill(filler), ...list];
  const [dims, f, t] = [all(sizes, 1), all(from.strides, 0), all(to.strides, 0)];
  const params: Record<string, number> = { count: product(sizes) };
  dims.forEach((d, i) => {
    params[`d${i}`] = d;
    params[`f${i}`] = f[i];
    params[`t${i}`] = t[i];
  });
  const dispatch = (): Dispatch => ({
    fields: COPY_FIELDS,
    params: { ...params, src: startOf(from), dst: startOf(to) },
    bound: { x: from.tensor, y: to.tensor },
    groups: itemGroups(params.count),
  });
  const moves = typeof from.start === "function" || typeof to.start === "function";
  r.dispatch({ family: "copy", spec: {}, name: "f32_copy__wgsl", code: copyShader }, moves ? dispatch : dispatch());
}

/** A moved view as a tensor of its own. */
export function copyStrided(r: Recorder, x: Tensor, { dims, strides, start }: Moved): Tensor {
  const y = r.tensor(dims, x.type);
  copyBetween(r, dims, { tensor: x, strides, start }, { tensor: y, strides: contiguous(dims).strides, start: 0 });
  return y;
}
