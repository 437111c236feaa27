// Element types of values: every operator's outputs as onnxruntime names them, and, where no runtime tells (sequences,
// operators of other domains and of old opsets, graphs inside nodes), as the operators' schemas say.
import { create } from "@bufbuild/protobuf";
import { InferenceSession } from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import {
  OperatorSetIdProtoSchema,
  SparseTensorProtoSchema,
  TypeProtoSchema,
  TypeProto_OptionalSchema,
  TypeProto_SequenceSchema,
  ValueInfoProtoSchema,
  type AttributeProto,
  type NodeProto,
  type ValueInfoProto,
} from "../../src/onnx/file/gen/onnx_pb.ts";
import { buildScopes, inferTypes, outputTypes, SEQUENCE } from "../../src/onnx/graph/graph.ts";
import { readModelBytes } from "../../src/onnx/index.ts";
import { T, attribute, encode, graph, model, node, raw, value, type AttributeValue } from "./build.ts";
import { ZOO, type Specimen } from "./zoo.ts";

/** The specimen with every output of its last node as an output of the graph, of a type that the runtime finds. */
function specimenModel({ nodes, init, x }: Specimen, opset: number): { bytes: Uint8Array; outputs: string[] } {
  const outputs = [...new Set(nodes.flatMap((n) => n.output))].filter((name) => name !== "");
  const proto = model(
    graph({
      input: [value("x", T.FLOAT, x)],
      output: outputs.map((name) => create(ValueInfoProtoSchema, { name })),
      initializer: [...init],
      node: nodes.map((n) => structuredClone(n)),
    }),
    { opset, ir: 9 },
  );
  proto.opsetImport.push(create(OperatorSetIdProtoSchema, { domain: "com.microsoft", version: 1n }));
  return { bytes: encode(proto), outputs };
}

const NAMES = new Map<string, number>([
  ["float32", T.FLOAT],
  ["float16", T.FLOAT16],
  ["float64", T.DOUBLE],
  ["int64", T.INT64],
  ["int32", T.INT32],
  ["uint8", T.UINT8],
  ["int8", T.INT8],
  ["bool", T.BOOL],
  ["string", T.STRING],
]);

test("every operator of the zoo: types of all values as onnxruntime has them", async () => {
  let compared = 0;
  const wrong: string[] = [];
  for (const specimen of ZOO)
    for (const opset of [7, 10, 17, 24].filter((opset) => opset >= specimen.from && opset < specimen.until)) {
      const { bytes, outputs } = specimenModel(specimen, opset);
      let session: InferenceSession;
      try {
        session = await InferenceSession.create(bytes, { logSeverityLevel: 4, graphOptimizationLevel: "disabled" });
      } catch {
        continue;
      }
      const types = inferTypes(buildScopes(readModelBytes(bytes)), opset)
        .values()
        .next().value!;
      for (const { name, type } of session.outputMetadata as unknown as { name: string; type: string }[]) {
        compared++;
        if (types.get(name) !== NAMES.get(type))
          wrong.push(`${specimen.what}, opset ${opset}, ${name}: ${types.get(name)}, wanted ${type}`);
      }
      expect(outputs.length).toBeGreaterThan(0);
      await session.release();
    }
  expect(wrong).toEqual([]);
  expect(compared).toBeGreaterThan(300);
}, 60_000);

type Attributes = Record<string, AttributeValue>;
const [F, H, I, L, B, U, S] = [T.FLOAT, T.FLOAT16, T.INT32, T.INT64, T.BOOL, T.UINT8, T.STRING];

/** Operator, types of its inputs (0: unknown), attributes, types of its outputs. */
const SCHEMAS: [what: string, inputs: number[], attributes: Attributes, outputs: number[]][] = [
  ["Cast", [F], { to: BigInt(H) }, [H]],
  ["CastLike", [F, H], {}, [H]],
  ["CastLike", [F, 0], {}, [0]],
  ["Add", [0, H], {}, [H]],
  ["Relu", [0, H], {}, [0]],
  ["Where", [B, 0, H], {}, [H]],
  ["OneHot", [L, L, H], {}, [H]],
  ["TopK", [H, L], {}, [H, L]],
  ["Unique", [H], {}, [H, L, L, L]],
  ["Shape", [H], {}, [L]],
  ["IsNaN", [H], {}, [B]],
  ["LayerNormalization", [H, H], {}, [H, F, F]],
  ["LayerNormalization", [H, H], { stash_type: BigInt(H) }, [H, H, H]],
  ["RandomNormal", [], {}, [F]],
  ["RandomUniform", [], { dtype: BigInt(H) }, [H]],
  ["RandomNormalLike", [H], {}, [H]],
  ["EyeLike", [H], { dtype: BigInt(L) }, [L]],
  ["Multinomial", [F], {}, [I]],
  ["Multinomial", [F], { dtype: BigInt(L) }, [L]],
  ["HannWindow", [L], {}, [F]],
  ["MelWeightMatrix", [L, L, L, F, F], { output_datatype: BigInt(H) }, [H]],
  ["ConstantOfShape", [L], {}, [F]],
  ["ConstantOfShape", [L], { value: raw("", [1], BigInt64Array.of(3n), L) }, [L]],
  ["TfIdfVectorizer", [L], {}, [F]],
  ["ImageDecoder", [U], {}, [U]],
  ["StringNormalizer", [S], {}, [S]],
  ["StringSplit", [S], {}, [S, L]],
  ["StringConcat", [S, S], {}, [S]],
  ["RegexFullMatch", [S], {}, [B]],
  ["QuantizeLinear", [F, F], {}, [U]],
  ["QuantizeLinear", [F, F, T.INT8], {}, [T.INT8]],
  ["QuantizeLinear", [F, F], { output_dtype: BigInt(T.INT4) }, [T.INT4]],
  ["DequantizeLinear", [U, H], {}, [H]],
  ["DequantizeLinear", [U, F], { output_dtype: BigInt(H) }, [H]],
  ["DynamicQuantizeLinear", [F], {}, [U, F, U]],
  ["MatMulInteger", [U, U], {}, [I]],
  ["QLinearMatMul", [U, F, U, T.INT8, F, T.INT8, F, T.INT8], {}, [T.INT8]],
  ["SequenceConstruct", [F, F], {}, [F | SEQUENCE]],
  ["SequenceConstruct", [0, H], {}, [H | SEQUENCE]],
  ["SequenceConstruct", [0], {}, [0]],
  ["SplitToSequence", [L, L], {}, [L | SEQUENCE]],
  ["Optional", [F], {}, [F | SEQUENCE]],
  ["SequenceEmpty", [], {}, [F | SEQUENCE]],
  ["SequenceEmpty", [], { dtype: BigInt(L) }, [L | SEQUENCE]],
  ["SequenceInsert", [H | SEQUENCE, H], {}, [H | SEQUENCE]],
  ["SequenceAt", [F | SEQUENCE, L], {}, [F]],
  ["ConcatFromSequence", [H | SEQUENCE], {}, [H]],
  ["OptionalGetElement", [L | SEQUENCE], {}, [L]],
  ["OptionalHasElement", [F | SEQUENCE], {}, [B]],
  ["SequenceLength", [F | SEQUENCE], {}, [L]],
  ["NotAnOperator", [F], {}, [0]],
  ["toString", [F], {}, [0]],
  ["ai.onnx.ml.Imputer", [L], {}, [L]],
  ["ai.onnx.ml.Scaler", [L], {}, [F]],
  ["ai.onnx.ml.LinearClassifier", [F], {}, [L, F]],
  ["ai.onnx.ml.SVMClassifier", [F], { classlabels_strings: { strings: ["a"] } }, [S, F]],
  ["ai.onnx.ml.TreeEnsembleClassifier", [F], { classlabels_strings: { strings: ["a", "b"] } }, [S, F]],
  ["ai.onnx.ml.TreeEnsembleClassifier", [F], { classlabels_int64s: { ints: [1, 2] } }, [L, F]],
  ["ai.onnx.ml.ZipMap", [F], {}, [0]],
  ["ai.onnx.ml.Add", [F, F], {}, [0]],
  ["com.microsoft.SkipLayerNormalization", [H, H, H], {}, [H, F, F, H]],
  ["com.microsoft.EmbedLayerNormalization", [I, I, H, H], {}, [H, I, H]],
  ["com.microsoft.GatherBlockQuantized", [U, L, H], {}, [H]],
  ["com.microsoft.DynamicQuantizeMatMul", [F, T.INT8, F], {}, [F]],
  ["com.microsoft.DynamicQuantizeLSTM", [F], {}, [F, F, F]],
  ["com.microsoft.MatMulIntegerToFloat", [U, T.INT8, H, H], {}, [H]],
  ["com.microsoft.QAttention", [U, T.INT8, H, F], {}, [F]],
  ["com.microsoft.QuantizeLinear", [F, F, T.UINT16], {}, [T.UINT16]],
  ["com.microsoft.QuantizeLinear", [F, F], {}, [U]],
  ["com.microsoft.DequantizeLinear", [T.UINT16, H], {}, [H]],
  ["com.microsoft.MatMulNBits", [H, U, H], {}, [H]],
  ["com.microsoft.Relu", [F], {}, [0]],
];

test("schemas that no runtime was asked for", () => {
  for (const [what, inputs, attributes, outputs] of SCHEMAS) {
    const at = what.lastIndexOf(".");
    const made = node(what.slice(at + 1), inputs.map(String), outputs.map(String), attributes);
    made.domain = what.slice(0, Math.max(0, at));
    expect([what, inputs, outputTypes({ node: made, input: (i) => inputs[i] ?? 0, opset: 21 })]).toEqual([what, inputs, outputs]);
  }
});

test("what an old opset says otherwise: Cast by name, the mask of Dropout", () => {
  const of = (made: NodeProto, opset: number): number[] => outputTypes({ node: made, input: () => H, opset });
  const cast = (to: AttributeValue): NodeProto => node("Cast", ["x"], ["y"], { to });
  expect(["FLOAT16", "float16", "INT64", "toString", ""].map((name) => of(cast(name), 5)[0])).toEqual([H, H, L, 0, 0]);
  expect(of(cast(BigInt(T.DOUBLE)), 6)).toEqual([T.DOUBLE]);
  const dropout = node("Dropout", ["x"], ["y", "mask"]);
  expect([of(dropout, 9), of(dropout, 10)]).toEqual([
    [H, H],
    [H, B],
  ]);
});

test("Constant by each of its attributes", () => {
  const sparse = attribute("sparse_value", 0n);
  sparse.sparseTensor = create(SparseTensorProtoSchema, { values: raw("", [1], Uint16Array.of(0), H), dims: [4n] });
  const of = (one: AttributeProto): number => {
    const made = node("Constant", [], ["y"]);
    made.attribute = [one];
    return outputTypes({ node: made, input: () => 0, opset: 17 })[0];
  };
  expect(of(attribute("value", raw("", [1], BigInt64Array.of(3n), L)))).toBe(L);
  expect(of(attribute("value_float", 1))).toBe(F);
  expect(of(attribute("value_ints", { ints: [1] }))).toBe(L);
  expect(of(attribute("value_string", "a"))).toBe(S);
  expect(of(attribute("value_strings", { strings: ["a"] }))).toBe(S);
  expect(of(sparse)).toBe(H);
});

describe("graphs inside nodes", () => {
  const untyped = (name: string): ValueInfoProto => create(ValueInfoProtoSchema, { name });
  const container = (name: string, kind: "sequence" | "optional", elemType: number): ValueInfoProto => {
    const inner = value(name, elemType, [2]).type!;
    return create(ValueInfoProtoSchema, {
      name,
      type: create(TypeProtoSchema, {
        value:
          kind === "sequence"
            ? { case: "sequenceType", value: create(TypeProto_SequenceSchema, { elemType: inner }) }
            : { case: "optionalType", value: create(TypeProto_OptionalSchema, { elemType: inner }) },
      }),
    });
  };
  /** Types by name, of all graphs. */
  function typesOf(nodes: NodeProto[], input: ValueInfoProto[]): Map<string, number> {
    const proto = model(graph({ input, output: [untyped("y")], node: nodes }), { opset: 21 });
    const found = inferTypes(buildScopes(readModelBytes(encode(proto))), 21);
    return new Map([...found.values()].flatMap((types) => [...types]));
  }

  test("inputs that are sequences and optionals, with elements or without", () => {
    const types = typesOf([node("SequenceAt", ["s", "i"], ["y"])], [container("s", "sequence", H), container("o", "optional", L), container("none", "sequence", 0)]); // prettier-ignore
    expect([types.get("s"), types.get("o"), types.get("none"), types.get("y")]).toEqual([H | SEQUENCE, L | SEQUENCE, 0, H]);
  });

  test("If: what one branch does not tell, the other may", () => {
    const branch = (op: string, name: string) => graph({ output: [untyped(name)], node: [node(op, ["x"], [name])] });
    const types = typesOf(
      [
        node("If", ["c"], ["y"], { then_branch: branch("Unknown", "a"), else_branch: branch("Relu", "b") }),
        node("If", ["c"], ["z"], { then_branch: branch("Relu", "d"), else_branch: branch("Unknown", "e") }),
        node("If", ["c"], ["u"], { then_branch: branch("Unknown", "f"), else_branch: branch("Unknown", "g") }),
        node("Abs", ["u"], ["after"]),
        node("Shape", ["u"], ["shape"]),
      ],
      [value("x", H, [2]), value("c", B, [])],
    );
    expect(["a", "b", "y", "z", "u", "after", "shape"].map((name) => types.get(name))).toEqual([0, H, H, H, 0, 0, L]);
  });

  test("Loop: counter and condition, carried values, and what is gathered", () => {
    const body = graph({
      input: [untyped("i"), untyped("go"), untyped("carried")],
      output: [untyped("go2"), untyped("next"), untyped("seen")],
      node: [node("Identity", ["go"], ["go2"]), node("Relu", ["carried"], ["next"]), node("Shape", ["carried"], ["seen"])],
    });
    const types = typesOf(
      [node("Loop", ["n", "c", "x"], ["y", "all"], { body })],
      [value("n", L, []), value("c", B, []), value("x", H, [2])],
    );
    expect(["i", "go", "carried", "y", "all"].map((name) => types.get(name))).toEqual([L, B, H, H, L]);
  });

  test("SequenceMap: elements inside, sequences outside, unknown ones unknown", () => {
    const body = graph({
      input: [untyped("one")],
      output: [untyped("shape"), untyped("other")],
      node: [node("Shape", ["one"], ["shape"]), node("Unknown", ["one"], ["other"])],
    });
    const types = typesOf([node("SequenceMap", ["s"], ["y", "z"], { body })], [container("s", "sequence", H)]);
    expect(["one", "y", "z"].map((name) => types.get(name))).toEqual([H, L | SEQUENCE, 0]);
  });

  test("Scan: its inputs as they come, its results as its graph has them", () => {
    const body = graph({
      input: [untyped("state"), untyped("row")],
      output: [untyped("state2"), untyped("out")],
      node: [node("Add", ["state", "row"], ["state2"]), node("IsNaN", ["row"], ["out"])],
    });
    const types = typesOf([node("Scan", ["s", "x"], ["y", "z"], { body, num_scan_inputs: 1n })], [value("s", H, [2]), value("x", H, [3, 2])]); // prettier-ignore
    expect(["state", "row", "y", "z"].map((name) => types.get(name))).toEqual([H, H, H, B]);
  });

  test("inputs that a node does not have are of no type", () => {
    const types = typesOf([node("QuantizeLinear", ["x", "s"], ["q"]), node("Unknown", ["q"], ["y"])], [value("x", F, [2]), value("s", F, [])]); // prettier-ignore
    expect(types.get("q")).toBe(U);
  });

  test("an unknown operator leaves its outputs unknown, until the file says them", () => {
    const proto = model(
      graph({
        input: [value("x", F, [2])],
        output: [value("y", H, [2]), untyped("z")],
        node: [node("Unknown", ["x"], ["y", "z"]), node("Unknown", ["x"], ["told"]), node("Neg", ["told"], ["after"])],
      }),
    );
    proto.graph!.valueInfo.push(value("told", H, [2]));
    const types = inferTypes(buildScopes(readModelBytes(encode(proto))), 17)
      .values()
      .next().value!;
    expect(["y", "z", "told", "after"].map((name) => types.get(name))).toEqual([H, 0, H, H]);
  });
});
