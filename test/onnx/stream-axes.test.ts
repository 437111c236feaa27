// Rotation of a residual stream where something takes its channels apart or puts others beside them: the outputs of the
// model stay, and the stream ends there.
import { describe, expect, test } from "vitest";
import type { NodeProto, TensorProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import { applyPasses, readModelBytes, writeModelBytes, type Feeds, type PassRequest } from "../../src/onnx/index.ts";
import { differenceFrom, referenceRun } from "../../src/onnx/passes/check.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { keep } from "./kept.ts";

const D = 16;
const feeds: Feeds[] = [{ x: { type: "float32", data: weights(6 * D, 9), dims: [2, 3, D] } }];
async function applied(bytes: Uint8Array, passes: PassRequest[]) {
  const opened = readModelBytes(bytes);
  const reference = await referenceRun(opened, feeds);
  const notes = await applyPasses(opened, passes, { verify: false });
  keep(opened, ...notes);
  return { notes, difference: (await differenceFrom(reference, readModelBytes(writeModelBytes(opened)))).relative };
}

describe("what takes channels of the stream apart ends it, by whatever number it names the axis", () => {
  const along = ["starts", "ends", "axes", "steps"];
  const cut = (axis: number, from: number[], steps: number[]) => {
    const ends = from.map((v, i) => (steps[i] < 0 ? -D - 1 : v + 2));
    return [from, ends, [axis], steps].map((values, i) => raw(along[i], [values.length], BigInt64Array.from(values, BigInt), T.INT64));
  };
  const order = raw("order", [D], BigInt64Array.from({ length: D }, (_, i) => BigInt((i * 3 + 1) % D)), T.INT64); // prettier-ignore
  const CASES: [string, (axis: bigint) => NodeProto, (axis: bigint) => TensorProto[], width: number][] = [
    ["Concat", (axis) => node("Concat", ["h", "h"], ["c"], { axis }), () => [], 2 * D],
    ["Slice", () => node("Slice", ["h", ...along], ["c"]), (axis) => cut(Number(axis), [1], [1]), 2],
    ["Slice backwards", () => node("Slice", ["h", ...along], ["c"]), (axis) => cut(Number(axis), [D - 1], [-1]), D],
    ["Gather", (axis) => node("Gather", ["h", "order"], ["c"], { axis }), () => [order], D],
  ];
  /** @param dims of the stream, where the file has them @param front the nodes that make its input of x */
  const built = (made: NodeProto, init: TensorProto[], width: number, dims?: number[], front: NodeProto[] = []): Uint8Array => {
    const g = graph({
      input: [value("x", T.FLOAT, [2, 3, D])],
      output: [value("y", T.FLOAT, []), value("z", T.FLOAT, [])],
      initializer: [raw("w0", [D, D], weights(D * D)), raw("g", [D], new Float32Array(D).fill(1)), raw("w1", [D, 4], weights(4 * D, 2)), raw("w2", [width, 4], weights(4 * width, 3)), ...init], // prettier-ignore
      node: [
        ...front,
        node("MatMul", [front.at(-1)?.output[0] ?? "x", "w0"], ["h"], {}, "in"),
        node("SimplifiedLayerNormalization", ["h", "g"], ["n"]),
        node("MatMul", ["n", "w1"], ["y"], {}, "out"),
        Object.assign(made, { name: "apart" }),
        node("MatMul", ["c", "w2"], ["z"], {}, "after"),
      ],
    });
    if (dims !== undefined) g.valueInfo.push(value("h", T.FLOAT, dims));
    return encode(model(g));
  };
  test.each(CASES)("%s", async (op, made, init, width) => {
    for (const axis of [-1n, 2n])
      for (const boundary of [false, true]) {
        const bytes = built(made(axis), init(axis), width, [2, 3, D]);
        const { notes, difference } = await applied(bytes, [{ name: "rotate", block: "full", boundary }]);
        expect([axis, boundary, difference < 1e-5]).toEqual([axis, boundary, true]);
        const stays = `the stream at h stays: h: apart (${op.split(" ")[0]}) reads it`;
        expect(notes[0]).toContain(boundary ? "1 products with the matrix at its bounds" : stays);
      }
  });
  const unknown = () => [node("Shape", ["x"], ["size"]), node("Reshape", ["x", "size"], ["r"])];
  test.each(CASES)("%s, where nothing says how many axes there are", async (op, made, init, width) => {
    const { notes, difference } = await applied(built(made(2n), init(2n), width, undefined, unknown()), [
      { name: "rotate", block: "full" },
    ]);
    expect(notes[0]).toContain(`the stream at h stays: h: apart (${op.split(" ")[0]}) reads it`);
    expect(difference).toBeLessThan(1e-5);
  });
  test.each<[string, NodeProto, TensorProto[]]>([
    ["Concat", node("Concat", ["h", "h"], ["c"], { axis: 1n }), []],
    ["Slice", node("Slice", ["h", ...along], ["c"]), cut(1, [1], [1])],
    ["Slice of the first axes", node("Slice", ["h", ...along.slice(0, 2)], ["c"]), cut(0, [0, 1], [1, 1]).slice(0, 2)],
    ["Gather", node("Gather", ["h", "second"], ["c"], { axis: 1n }), [raw("second", [1], BigInt64Array.of(1n), T.INT64)]],
  ])("along another axis it goes on: %s", async (_, made, init) => {
    const turned = node("Transpose", ["x"], ["t"], { perm: { ints: [1, 0, 2] } });
    const back = node("Transpose", ["t"], ["tt"], { perm: { ints: [1, 0, 2] } });
    // written, or by what the stream is made of
    for (const [dims, front] of [
      [[2, 3, D], unknown()],
      [undefined, []],
      [undefined, [...unknown(), node("Transpose", ["r"], ["t"], { perm: { ints: [1, 0, 2] } }), back]],
      [undefined, [turned, back, node("Add", ["none", "tt"], ["a"])]],
    ] as const) {
      // prettier-ignore
      const none = raw("none", [D], new Float32Array(D));
      const { notes, difference } = await applied(built(made, [...init, none], D, dims && [...dims], [...front]), [
        { name: "rotate", block: "full" },
      ]);
      expect(notes[0]).toContain("2 products read it, 1 write it");
      expect(difference).toBeLessThan(1e-5);
    }
  });
});
