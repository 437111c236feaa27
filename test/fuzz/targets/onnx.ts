// ONNX models: protobuf messages changed field by field through their own descriptors (protobuf-es reflection), and
// bytes changed as bytes.
import type { DescField, Message } from "@bufbuild/protobuf";
import { ScalarType, clone, create } from "@bufbuild/protobuf";
import type { GenMessage } from "@bufbuild/protobuf/codegenv2";
import { reflect } from "@bufbuild/protobuf/reflect";
import type { ModelProto, NodeProto } from "../../../src/onnx/file/gen/onnx_pb.ts";
import * as pb from "../../../src/onnx/file/gen/onnx_pb.ts";
import { ONNX_DTYPES, quantizeModelBytes, readModelBytes, summarizeModel } from "../../../src/onnx/index.ts";
import type { QuantizeBytesOptions } from "../../../src/onnx/index.ts";
import type { Random } from "../../helpers/random.ts";
import { random } from "../../helpers/random.ts";
import { T, encode, external, graph, matmulModel, model, node, raw, typed, value, weights } from "../../onnx/build.ts";
import { ZOO } from "../../onnx/zoo.ts";
import type { FuzzResult, FuzzTarget } from "../fuzz.ts";
import { damageBytes, digest, pick } from "../fuzz.ts";

const w = (name: string, ...dims: number[]) =>
  raw(
    name,
    dims,
    weights(
      dims.reduce((a, b) => a * b, 1),
      dims.length,
    ),
  );
const io = (x: (number | string)[]) => ({
  input: [value("x", T.FLOAT, x)],
  output: [create(pb.ValueInfoProtoSchema, { name: "y" })],
});

/** Models of the shapes that users have, each small. */
const SEEDS: readonly (() => ModelProto)[] = [
  () => matmulModel(typed("w", [32, 8], weights(256)), 32, 8),
  () => matmulModel(external("w", [32, 8], { location: "w.bin", offset: "0", length: "1024" }), 32, 8),
  () =>
    model(
      graph({
        ...io(["n", 3, 6, 6]),
        initializer: [
          w("c", 4, 3, 3, 3),
          w("cb", 4),
          w("s", 4),
          w("b", 4),
          w("m", 4),
          raw("v", [4], Float32Array.of(1, 2, 3, 4)),
          w("g", 64, 8),
        ],
        node: [
          node("Conv", ["x", "c", "cb"], ["h"], {}, "conv"),
          node("BatchNormalization", ["h", "s", "b", "m", "v"], ["n"]),
          node("Relu", ["n"], ["r"]),
          node("Flatten", ["r"], ["f"]),
          node("Gemm", ["f", "g"], ["y"], { alpha: 0.5 }, "fc"),
        ],
      }),
      { opset: 12 },
    ),
  () =>
    model(
      graph({
        input: [value("x", T.INT64, ["n", 4])],
        output: [create(pb.ValueInfoProtoSchema, { name: "y" })],
        initializer: [w("e", 16, 32)],
        node: [
          node("Gather", ["e", "x"], ["h"], {}, "embed"),
          node("Transpose", ["e"], ["et"], { perm: { ints: [1, 0] } }),
          node("MatMul", ["h", "et"], ["y"], {}, "head"),
        ],
      }),
    ),
  () => {
    const branch = (name: string, op: string) =>
      graph({
        name,
        output: [create(pb.ValueInfoProtoSchema, { name: `${name}y` })],
        initializer: [w(`${name}w`, 8, 8)],
        node: [node(op, ["h", `${name}w`], [`${name}y`], {}, name)],
      });
    return model(
      graph({
        ...io(["n", 8]),
        initializer: [w("w", 8, 8), raw("zero", [], Float32Array.of(0))],
        node: [
          node("MatMul", ["x", "w"], ["h"], {}, "mm"),
          node("ReduceSum", ["h"], ["sum"], { keepdims: 0n }),
          node("Greater", ["sum", "zero"], ["c"]),
          node("If", ["c"], ["y"], { then_branch: branch("t", "MatMul"), else_branch: branch("f", "Add") }, "if"),
        ],
      }),
    );
  },
  () => {
    const made = model(
      graph({ ...io(["n", 8]), initializer: [w("w", 8, 8)], node: [node("MatMul", ["x", "w"], ["h"]), node("Own", ["h"], ["y"])] }),
    );
    made.graph!.node[1].domain = "own";
    made.opsetImport.push(create(pb.OperatorSetIdProtoSchema, { domain: "own", version: 1n }));
    made.functions.push(
      create(pb.FunctionProtoSchema, {
        name: "Own",
        domain: "own",
        input: ["a"],
        output: ["b"],
        opsetImport: made.opsetImport.slice(0, 1),
        node: [node("Relu", ["a"], ["r"]), node("Neg", ["r"], ["b"])],
      }),
    );
    return made;
  },
  () => {
    const half = raw("w", [32, 8], new Uint16Array(256).fill(0x3c00), T.FLOAT16);
    return model(
      graph({
        ...io(["n", 32]),
        initializer: [half],
        node: [node("Cast", ["w"], ["wf"], { to: 1n }), node("MatMul", ["x", "wf"], ["y"], {}, "mm")],
      }),
    );
  },
  () => {
    const made = model(
      graph({
        ...io(["n", 8]),
        initializer: [],
        node: [
          node("Constant", [], ["w"], { value: w("", 8, 8) }),
          node("Identity", ["w"], ["i"]),
          node("MatMul", ["x", "i"], ["h"]),
          node("LSTM", ["x", "w", "w"], ["", "y"], { hidden_size: 2n }),
        ],
      }),
    );
    made.graph!.sparseInitializer.push(
      create(pb.SparseTensorProtoSchema, { values: w("sp", 2), indices: raw("", [2], BigInt64Array.of(1n, 5n), T.INT64), dims: [8n, 8n] }),
    );
    return made;
  },
];

function zoo(rng: Random): ModelProto {
  const specimen = pick(rng, ZOO);
  const opset = specimen.from + rng.integer(Math.max(1, Math.min(specimen.until, 25) - specimen.from));
  return model(
    graph({
      input: [value("x0", T.FLOAT, specimen.x)],
      output: [create(pb.ValueInfoProtoSchema, { name: "y" })],
      initializer: [...specimen.init.map((tensor) => clone(pb.TensorProtoSchema, tensor)), w("extra", 4, 4)],
      node: [node("MatMul", ["x0", "extra"], ["x"]), ...specimen.nodes.map((made) => clone(pb.NodeProtoSchema, made))],
    }),
    { opset: Math.max(7, opset), ir: 8 },
  );
}

// ---- changes of messages
// ---------------------------------------------------------------------------------------------------------------

const OPS = [
  "MatMul",
  "Gemm",
  "Conv",
  "Gather",
  "Identity",
  "Cast",
  "Transpose",
  "Reshape",
  "If",
  "Loop",
  "Constant",
  "ConstantOfShape",
  "Relu",
  "Concat",
  "Slice",
  "Resize",
  "Dropout",
  "DequantizeLinear",
  "QuantizeLinear",
  "DynamicQuantizeLinear",
  "MatMulInteger",
  "MatMulNBits",
  "constructor",
  "__proto__",
  "toString",
  "SequenceEmpty",
  "Shape",
  "Squeeze",
  "Unsqueeze",
  "ConvTranspose",
  "Attention",
  "LSTM",
];
const WORDS = [
  "",
  "x",
  "y",
  "w",
  "h",
  "ai.onnx",
  "com.microsoft",
  "ai.onnx.ml",
  "__proto__",
  "hasOwnProperty",
  "to",
  "axis",
  "axes",
  "perm",
  "value",
  "transB",
  "alpha",
  "group",
  "bits",
  "K",
  "N",
  "block_size",
  "../w.bin",
  "/etc/passwd",
  "w.bin",
  "location",
  "offset",
  "length",
  "-1",
  "1e3",
  "a\u0000b",
  "z".repeat(300),
];
const INTEGERS = [
  0n,
  1n,
  -1n,
  2n,
  3n,
  4n,
  5n,
  7n,
  8n,
  10n,
  13n,
  16n,
  21n,
  32n,
  100n,
  2n ** 16n,
  2n ** 31n - 1n,
  2n ** 31n,
  -(2n ** 31n),
  2n ** 32n,
  2n ** 40n,
  2n ** 53n,
  2n ** 62n,
  2n ** 63n - 1n,
  -(2n ** 63n),
];
const FLOATS = [0, -0, 1, -1, 0.5, 1e38, -3.4e38, 1e-45, 65504, 65520, NaN, Infinity, -Infinity];

interface Site {
  readonly message: Message;
  readonly field: DescField;
}

/** All fields of all messages of a model; what the fuzzer changes. */
function sitesOf(root: ModelProto): { sites: Site[]; messages: Message[]; strings: string[] } {
  const sites: Site[] = [];
  const messages: Message[] = [];
  const strings = new Set<string>();
  const stack: [GenMessage<Message>, Message][] = [[pb.ModelProtoSchema, root]];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const [schema, message] = top;
    messages.push(message);
    const view = reflect(schema, message);
    for (const field of schema.fields) {
      const set = view.isSet(field);
      // Empty fields are seldom worth a change; each message offers a few.
      if (set || sites.length % 3 === 0) sites.push({ message, field });
      if (!set) continue;
      const inner =
        (message as unknown as Record<string, unknown>)[field.localName] ??
        (message as unknown as { value: { value: unknown } }).value?.value;
      for (const one of Array.isArray(inner) ? inner : [inner]) {
        if (typeof one === "string") strings.add(one);
        else if (field.message !== undefined && typeof one === "object" && one !== null)
          stack.push([field.message as GenMessage<Message>, one as Message]);
      }
    }
  }
  return { sites, messages, strings: [...strings] };
}

/** Another value of a scalar. */
function scalarOf(rng: Random, field: DescField, scalar: ScalarType | undefined, before: unknown, strings: readonly string[]): unknown {
  switch (scalar) {
    case ScalarType.STRING:
      return field.localName === "opType" ? pick(rng, OPS) : rng.next() < 0.6 && strings.length > 0 ? pick(rng, strings) : pick(rng, WORDS);
    case ScalarType.BYTES: {
      const bytes = before instanceof Uint8Array ? before : new Uint8Array(0);
      return rng.next() < 0.5
        ? damageBytes(rng, bytes)
        : rng.next() < 0.5
          ? bytes.slice(0, rng.integer(bytes.length + 1))
          : new Uint8Array(rng.integer(64));
    }
    case ScalarType.FLOAT:
    case ScalarType.DOUBLE:
      return pick(rng, FLOATS);
    case ScalarType.BOOL:
      return !(before as boolean);
    case ScalarType.INT64:
    case ScalarType.UINT64: {
      const next = rng.next() < 0.3 && typeof before === "bigint" ? before + pick(rng, [1n, -1n]) : pick(rng, INTEGERS);
      return scalar === ScalarType.UINT64 ? BigInt.asUintN(64, next) : BigInt.asIntN(64, next);
    }
    default:
      return rng.next() < 0.7 ? rng.integer(26) : pick(rng, [-1, 99, 2 ** 31 - 1, -(2 ** 31)]);
  }
}

/** A message of the same kind from elsewhere in the model, or an empty one. */
function otherOf(rng: Random, schema: GenMessage<Message>, messages: readonly Message[]): Message {
  const same = messages.filter((message) => message.$typeName === schema.typeName);
  if (same.length === 0 || rng.next() < 0.2) return create(schema);
  try {
    return clone(schema, pick(rng, same));
  } catch {
    return create(schema); // protobuf-es clones no message with an unknown enum value
  }
}

function changeField(rng: Random, { message, field }: Site, messages: readonly Message[], strings: readonly string[]): void {
  const plain = message as unknown as Record<string, unknown>;
  const scalar = field.fieldKind === "scalar" || field.fieldKind === "list" ? field.scalar : undefined;
  const fresh = (before: unknown): unknown =>
    field.message === undefined
      ? scalarOf(rng, field, scalar, before, strings)
      : otherOf(rng, field.message as GenMessage<Message>, messages);
  if (field.fieldKind === "list") {
    const list = plain[field.localName] as unknown[];
    if (!Array.isArray(list)) return;
    const at = rng.integer(list.length + 1);
    const kind = rng.integer(5);
    if (kind === 0 || list.length === 0) list.splice(at, 0, fresh(list[0]));
    else if (kind === 1) list.splice(Math.min(at, list.length - 1), 1);
    else if (kind === 2) [list[0], list[list.length - 1]] = [list[list.length - 1], list[0]];
    else if (field.message === undefined) list[at % list.length] = fresh(list[at % list.length]);
    else list.push(otherOf(rng, field.message as GenMessage<Message>, messages));
    return;
  }
  const view = reflect(schemaOf(message), message);
  if (rng.next() < 0.15) view.clear(field);
  else if (field.oneof !== undefined && field.oneof.localName === "value" && "value" in plain)
    plain.value = { case: field.localName, value: fresh(undefined) };
  else plain[field.localName] = fresh(plain[field.localName]);
}

const SCHEMAS = new Map<string, GenMessage<Message>>(
  (Object.values(pb) as { kind?: string }[])
    .filter((entry) => entry.kind === "message")
    .map((entry) => [(entry as unknown as GenMessage<Message>).typeName, entry as unknown as GenMessage<Message>]),
);
const schemaOf = (message: Message): GenMessage<Message> => SCHEMAS.get(message.$typeName)!;

/** Changes that single fields do not reach: circles, chains, nesting, many nodes of one name. */
function changeGraph(rng: Random, proto: ModelProto): void {
  const main = proto.graph;
  if (main === undefined || main.node.length === 0) return;
  const some = (): NodeProto => pick(rng, main.node);
  switch (rng.integer(6)) {
    case 0:
      some().input[0] = some().output[0] ?? "";
      break;
    case 1: {
      const [at, to] = [some(), `c${rng.integer(100)}`];
      const from = at.input[0] ?? "";
      main.node.unshift(
        ...Array.from({ length: 1 + rng.integer(50) }, (_, i) => node("Identity", [i === 0 ? from : `${to}_${i - 1}`], [`${to}_${i}`])),
      );
      at.input[0] = `${to}_0`;
      break;
    }
    case 2: {
      const output = [create(pb.ValueInfoProtoSchema, { name: "z" })];
      const empty = graph({ node: [] });
      let inner = graph({ name: "inner", node: [node("Identity", ["x"], ["z"])], output });
      for (let depth = rng.integer(30); depth > 0; depth--)
        inner = graph({ name: "n", output, node: [node("If", ["x"], ["z"], { then_branch: inner, else_branch: empty })] });
      main.node.push(node("If", ["x"], [`nested${rng.integer(9)}`], { then_branch: inner, else_branch: empty }));
      break;
    }
    case 3:
      for (const made of main.node) made.name = "same";
      break;
    case 4:
      main.node.reverse();
      break;
    default:
      proto.opsetImport[0] = create(pb.OperatorSetIdProtoSchema, {
        domain: pick(rng, ["", "ai.onnx", "x"]),
        version: BigInt(rng.integer(30)),
      });
  }
}

function make(rng: Random): Uint8Array {
  const proto = rng.next() < 0.4 ? zoo(rng) : pick(rng, SEEDS)();
  const how = rng.next();
  if (how > 0.15) {
    for (let n = 1 + rng.integer(4); n > 0; n--) {
      if (rng.next() < 0.15) changeGraph(rng, proto);
      else {
        const { sites, messages, strings } = sitesOf(proto);
        changeField(rng, pick(rng, sites), messages, strings);
      }
    }
  }
  const bytes = encode(proto);
  return how < 0.3 ? damageBytes(rng, bytes) : bytes;
}

// ---- runs
// ---------------------------------------------------------------------------------------------------------------------

const FORMATS = ["mxfp4", "int4_b32", "nf4_b64", "int8_row", "uint4_b32_zp", "float8_e4m3fn_row"];

/** The options of a run, drawn from its bytes. */
function optionsOf(rng: Random): QuantizeBytesOptions {
  const flag = (): boolean => rng.next() < 0.25;
  const common = { ...(flag() ? { allowUnchanged: true } : {}) };
  if (rng.next() < 0.15) return { ...common, format: pick(rng, FORMATS) } as QuantizeBytesOptions;
  const dtype = pick(rng, ONNX_DTYPES);
  const more = /8$/.test(dtype)
    ? { ...(flag() ? { perChannel: true } : {}), ...(flag() ? { reduceRange: true } : {}) }
    : dtype === "fp16" && flag()
      ? { keepIoTypes: false }
      : dtype === "q4" && flag()
        ? { symmetric: false }
        : {};
  return { ...common, dtype, ...more };
}

async function run(input: Uint8Array): Promise<FuzzResult | undefined> {
  const rng = random(digest(input));
  const files = { "w.bin": new Uint8Array(weights(256).buffer) };
  if (rng.next() < 0.1) {
    summarizeModel(readModelBytes(input, files));
    return undefined;
  }
  const { bytes } = await quantizeModelBytes(input, { ...optionsOf(rng), external: files });
  return { before: input, after: bytes };
}

export const onnx: FuzzTarget = { name: "onnx", make, run };
