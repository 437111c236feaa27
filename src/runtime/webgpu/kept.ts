// Keys or values of a sequence that stay where they are on a device: [heads][room][size], of which the first tokens are
// in use. Attention reads them in place; whatever else reads them gets a copy (execute.ts).
import { contiguous } from "../../onnx/graph/views.ts";
import type { Moved } from "../ops/shape.ts";
import { isTensor, type Held, type Tensor } from "./recorder.ts";

/** A tensor [1, heads, tokens, size] of float32 in a cache. */
export interface Kept extends Tensor {
  /** Tokens from a head to the next. */
  readonly room: number;
}

export const isKept = (value: Held | undefined): value is Kept => isTensor(value) && "room" in value;

/** Elements from one index of dimension 1 to the next: of heads. */
export const headStep = (tensor: Tensor): number => {
  const [, , tokens, size] = tensor.dims;
  return (isKept(tensor) ? tensor.room : tokens) * size;
};

/** How its values lie. */
export const keptView = (value: Kept): Moved => ({
  dims: value.dims,
  strides: contiguous(value.dims).strides.with(1, headStep(value)),
  start: 0,
});
