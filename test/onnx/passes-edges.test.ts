// Passes where there is all or nothing to do, and what outputs are held to.
import { expect, test } from "vitest";
import { encodeHalf } from "../../src/onnx/file/half.ts";
import { readModelBytes, writeModelBytes } from "../../src/onnx/index.ts";
import { referenceRun } from "../../src/onnx/passes/check.ts";
import { encode, graph, model, node, raw, T, value, weights } from "./build.ts";
import { changed, encoderModel } from "./encoder.ts";
import { D, FORMS, added, applied, block, feeds, operators } from "./norm-blocks.ts";
import { calibrationOn } from "./statistics.ts";

/** x [b, 3, D] -> y [b, 3, 4]. */
const modelOf = (of: Pick<Parameters<typeof graph>[0], "initializer" | "node">): Uint8Array =>
  encode(model(graph({ input: [value("x", T.FLOAT, ["b", 3, D])], output: [value("y", T.FLOAT, ["b", 3, 4])], ...of })));

test("how far outputs may differ: more where weights are float16", async () => {
  const float = block(FORMS.SimplifiedLayerNormalization.norm, 17, added(FORMS.SimplifiedLayerNormalization.norm));
  expect((await referenceRun(readModelBytes(float), feeds)).tolerance).toBe(1e-4);
  const mixed = model(
    graph({
      input: [value("x", T.FLOAT, [2, 3, D])],
      output: [value("y", T.FLOAT, [2, 3, 4])],
      initializer: [raw("w", [D, 4], Uint16Array.from(weights(D * 4), encodeHalf), T.FLOAT16)],
      node: [node("Cast", ["w"], ["wide"], { to: BigInt(T.FLOAT) }), node("MatMul", ["x", "wide"], ["y"])],
    }),
  );
  expect((await referenceRun(readModelBytes(encode(mixed)), feeds)).tolerance).toBe(1e-2);
});

test("gather-outliers: where all channels are wide nothing is put in order", async () => {
  const { norm } = FORMS.SimplifiedLayerNormalization;
  const options = { calibration: calibrationOn(feeds) };
  const bytes = block(norm, 17, added(norm));
  const all = await applied(bytes, [{ name: "gather-outliers", block: 8, share: 1 }], options);
  expect(all.notes[0]).toMatch(/outliers of (\d+) inputs of products gathered: (\d+) of \2 blocks of 8 channels keep 8 bits/);
  expect(operators(all.model)).not.toContain("Gather");
  expect(all.difference).toBe(0);
  const half = await applied(bytes, [{ name: "gather-outliers", block: 8, share: 0.5 }], options);
  expect(operators(half.model)).toContain("Gather");
  expect(half.difference).toBeLessThan(1e-5);
});

test("bias-correction without biases says so and changes nothing; with add it gives them", async () => {
  const bytes = modelOf({ initializer: [raw("w", [D, 4], weights(D * 4))], node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")] });
  const options = { calibration: calibrationOn(feeds) };
  const none = await applied(bytes, [{ name: "bias-correction", format: "int4_b16" }], options);
  expect(none.notes).toEqual(["bias-correction: no layers with a bias were found (add: true gives them one); nothing changed"]);
  expect(none.difference).toBe(0);
  const given = await applied(bytes, [{ name: "bias-correction", format: "int2_b16", add: true }], options);
  expect(given.notes).toEqual(["bias-correction: 1 of 1 biases corrected for the shift of quantization"]);
  expect(given.difference).toBeGreaterThan(1e-3);
});

test("rotate: a value projection that something else reads is not turned by head", async () => {
  const opened = readModelBytes(encoderModel());
  opened.proto.graph!.output.push(value("l0.v", T.FLOAT, []));
  const { notes, difference } = await changed(writeModelBytes(opened), [{ name: "rotate" }]);
  expect(notes).toContain("rotate: 1 pairs of value and output projections turned by head");
  expect(difference).toBeLessThan(1e-5);
});

test("smooth: a vector that is added behind a norm is divided with the norm's gain", async () => {
  const bytes = modelOf({
    initializer: [raw("g", [D], weights(D)), raw("v", [D], weights(D, 2)), raw("w", [D, 4], weights(D * 4))],
    node: [
      node("SimplifiedLayerNormalization", ["x", "g"], ["n"]),
      node("Relu", ["n"], ["r"]),
      node("Add", ["r", "v"], ["a"]),
      node("MatMul", ["a", "w"], ["y"], {}, "mm"),
    ],
  });
  const { model: after, difference } = await applied(bytes, ["smooth"], { calibration: calibrationOn(feeds) });
  expect(difference).toBeLessThan(1e-5);
  const of = (name: string) => after.proto.graph!.initializer.find((tensor) => tensor.name === name)!;
  expect(Buffer.compare(of("v").rawData!, Buffer.from(weights(D, 2).buffer))).not.toBe(0);
});
