// Inputs that are given to a comparison as they are: one array of several samples for a model of a fixed batch.
import { describe, expect, it } from "vitest";
import { givenInputs } from "../../src/onnx/verify/given.ts";
import type { Feeds } from "../../src/onnx/index.ts";
import { encode, graph, model, node, T, value } from "./build.ts";

/** y = x + x. */
const doubling = (dims: (number | string)[]): Uint8Array =>
  encode(
    model(
      graph({
        input: [value("x", T.FLOAT, dims)],
        output: [value("y", T.FLOAT, dims)],
        initializer: [],
        node: [node("Add", ["x", "x"], ["y"], {}, "add")],
      }),
    ),
  );

const feed = (...dims: number[]): Feeds => ({
  x: { type: "float32", data: Float32Array.from({ length: dims.reduce((a, b) => a * b) }, (_, i) => i), dims },
});
const shapes = async (dims: (number | string)[], given: Feeds): Promise<(readonly number[])[]> =>
  (await givenInputs(doubling(dims), [given])).map(({ x }) => x.dims);

describe("inputs as given", () => {
  it("an array of several samples is cut where the model fixes the batch", async () => {
    const cut = await givenInputs(doubling([1, 3]), [feed(4, 3)]);
    expect(cut.map(({ x }) => [x.dims, Array.from(x.data as Float32Array)])).toEqual(
      [0, 1, 2, 3].map((i) => [
        [1, 3],
        [3 * i, 3 * i + 1, 3 * i + 2],
      ]),
    );
    expect(await shapes([2, 3], feed(4, 3))).toEqual([
      [2, 3],
      [2, 3],
    ]);
  });

  it("everything else goes to the runtime as it is", async () => {
    expect(await shapes(["batch", 3], feed(4, 3))).toEqual([[4, 3]]);
    expect(await shapes([1, 3], feed(1, 3))).toEqual([[1, 3]]);
    expect(await shapes([2, 3], feed(3, 3))).toEqual([[3, 3]]);
    const misnamed = { other: feed(4, 3).x };
    expect(await givenInputs(doubling([1, 3]), [misnamed])).toEqual([misnamed]);
    expect(await givenInputs(new Uint8Array([1, 2]), [feed(4, 3)])).toHaveLength(1);
  });
});
