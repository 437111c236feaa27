// The proof that a pass kept the function: the float model run before and after, outputs compared. Node only
// (onnxruntime-node).
import type { OnnxModel } from "../file/model.ts";
import { allTensors } from "../file/model.ts";
import { TensorProto_DataType as T } from "../file/gen/onnx_pb.ts";
import { openRun, randomFeeds, type RunValue } from "../run.ts";
import type { Feeds } from "../verify/feeds.ts";

/** Outputs of the model as it was, to compare with. */
export interface Reference {
  readonly feeds: readonly Feeds[];
  readonly outputs: readonly ReadonlyMap<string, RunValue>[];
  /** Allowed difference, as a share of an output's range. */
  readonly tolerance: number;
}

export interface Difference {
  /** Largest |a - b| over the range of its output. */
  readonly relative: number;
  readonly output: string;
}

/** Float error: of float32 arithmetic in another order, or of weights rounded to 16 bits once more. */
function toleranceOf(model: OnnxModel): number {
  let tolerance = 1e-4;
  for (const tensor of allTensors(model.proto)) {
    if (tensor.dataType === T.FLOAT16) tolerance = Math.max(tolerance, 1e-2);
    if (tensor.dataType === T.BFLOAT16) tolerance = Math.max(tolerance, 8e-2);
  }
  return tolerance;
}

/** Runs the model on these inputs, or on two random ones. */
export async function referenceRun(model: OnnxModel, feeds?: readonly Feeds[]): Promise<Reference> {
  const session = await openRun(model);
  try {
    const inputs = feeds ?? (await randomFeeds(session, model, 2));
    const outputs: ReadonlyMap<string, RunValue>[] = [];
    for (const feed of inputs) outputs.push(await session.run(feed));
    return { feeds: inputs, outputs, tolerance: toleranceOf(model) };
  } finally {
    await session.release();
  }
}

/** The largest difference between a model and the reference. */
export async function differenceFrom(reference: Reference, model: OnnxModel): Promise<Difference> {
  const session = await openRun(model);
  let worst: Difference = { relative: 0, output: "" };
  try {
    for (const [i, feed] of reference.feeds.entries()) {
      const got = await session.run(feed);
      for (const [output, want] of reference.outputs[i]) {
        const relative = maxDifference(want.data, got.get(output)!.data);
        if (!(relative <= worst.relative)) worst = { relative, output };
      }
    }
  } finally {
    await session.release();
  }
  return worst;
}

/**
 * max |a - b| / (max a - min a); of an output without a range the plain difference. Infinity where only one is finite.
 */
function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [low, high, most] = [Infinity, -Infinity, 0];
  if (a.length !== b.length) return Infinity;
  for (let i = 0; i < a.length; i++) {
    const x = Number(a[i]);
    const y = Number(b[i]);
    if (Number.isFinite(x)) [low, high] = [Math.min(low, x), Math.max(high, x)];
    if (x === y || (Number.isNaN(x) && Number.isNaN(y))) continue;
    const difference = Math.abs(x - y);
    most = Math.max(most, Number.isFinite(difference) ? difference : Infinity);
  }
  const range = high - low;
  return range > 0 ? most / range : most;
}
