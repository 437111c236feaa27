// MatMulInteger on the kernel of integers: the same int32 as the loops, for every type and kind of zero point.
import { expect, it } from "vitest";
import { toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "../../src/onnx/file/gen/onnx_pb.ts";
import { seededRandom } from "../../src/quantize/random.ts";
import { loadModel } from "../../src/runtime/index.ts";
import { graph, model, node, raw, T, value } from "../onnx/build.ts";

const types = [
  ["uint8", T.UINT8, 0],
  ["int8", T.INT8, 128],
] as const;

for (const [aName, aType, aLess] of types)
  for (const [bName, bType, bLess] of types)
    for (const zeros of ["none", "one", "columns"] as const)
      it(`multiplies ${aName} by ${bName}, zero points: ${zeros}`, async () => {
        const random = seededRandom(5);
        const [k, n] = [37, 21];
        const codes = (count: number, less: number, of: string): Uint8Array | Int8Array => {
          const list = Array.from({ length: count }, () => Math.floor(256 * random()) - less);
          return of === "int8" ? Int8Array.from(list) : Uint8Array.from(list);
        };
        const initializer = [raw("b", [k, n], codes(k * n, bLess, bName), bType)];
        const input = ["a", "b"];
        if (zeros !== "none") {
          initializer.push(raw("za", [], codes(1, aLess, aName), aType));
          initializer.push(raw("zb", zeros === "one" ? [] : [n], codes(zeros === "one" ? 1 : n, bLess, bName), bType));
          input.push("za", "zb");
        }
        const bytes = toBinary(
          ModelProtoSchema,
          model(
            graph({
              input: [value("a", aType, ["batch", "rows", k])],
              output: [value("y", T.INT32, ["batch", "rows", n])],
              initializer,
              node: [node("MatMulInteger", input, ["y"])],
            }),
          ),
        );
        const feeds = { a: { type: aName, dims: [2, 3, k], data: codes(6 * k, aLess, aName) } };
        const sessions = await Promise.all([loadModel(bytes), loadModel(bytes, { backend: "reference" })]);
        const [kernel, loops] = await Promise.all(sessions.map((session) => session.run(feeds)));
        expect(kernel).toEqual(loops);
        expect(sessions[0].explain().steps[0].kernel).toBe("int8");
        expect(sessions[1].explain().steps[0].kernel).toBe("loops");
        await Promise.all(sessions.map((session) => session.release()));
      });
