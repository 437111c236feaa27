// Models and reports as text, to compare with a stored text (test/fixtures/onnx): whatever changes in a file shows as a
// line. Long tensors are a hash of their bytes; "about" prints rounded sums instead, for numbers that floating-point sums
// of the machine went into. After a change that is meant: LOWBIT_WRITE_TEXTS=1 npx vitest run test/onnx/printed*.test.ts,
// and read the difference.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterAll, expect } from "vitest";
import { AttributeProto_AttributeType as A } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto } from "../../src/onnx/file/gen/onnx_pb.ts";
import type { OnnxModel } from "../../src/onnx/file/model.ts";
import { dataTypeName } from "../../src/onnx/file/types.ts";
import { readFloats, readRaw } from "../../src/onnx/file/values.ts";
import { readModelBytes, type QuantizeReport } from "../../src/onnx/index.ts";

/** "none": types and shapes alone. */
type Numbers = "exact" | "about" | "none";

const FEW = 8;
const FLOAT = 1;

const shown = (value: unknown): string =>
  typeof value === "bigint" ? String(value) : JSON.stringify(value, (_, v) => (typeof v === "bigint" ? Number(v) : (v as unknown)));
const about = (value: number): string => (value === 0 ? "0" : value.toPrecision(3));

function valuesOf(model: OnnxModel, tensor: TensorProto, numbers: Numbers): string {
  const isShape = tensor.dataType === 7;
  if (numbers === "none" && !isShape) return "";
  const count = tensor.dims.reduce((a, b) => a * Number(b), 1);
  if (tensor.dataType === FLOAT && numbers === "about") {
    const values = readFloats(model, tensor);
    const [even, odd] = [0, 1].map((from) => values.reduce((sum, v, i) => sum + (i % 2 === from ? v * v : 0), 0));
    return `about ${about(Math.sqrt(even))} ${about(Math.sqrt(odd))}`;
  }
  if (tensor.stringData.length > 0) return shown(tensor.stringData.map((s) => new TextDecoder().decode(s)));
  const bytes = readRaw(model, tensor);
  if (tensor.dataType === FLOAT && count <= FEW)
    return [...readFloats(model, tensor)].map((v) => (Object.is(v, -0) ? "-0" : String(v))).join(" ");
  if (bytes.length <= 2 * FEW || (isShape && count <= FEW)) return Buffer.from(bytes).toString("hex");
  return `#${createHash("sha256").update(bytes).digest("hex").slice(0, 12)}`;
}

const tensorText = (model: OnnxModel, tensor: TensorProto, numbers: Numbers): string =>
  `${tensor.name} ${dataTypeName(tensor.dataType)}[${tensor.dims.join(",")}] ${valuesOf(model, tensor, numbers)}`;

function valueText({ name, type }: ValueInfoProto): string {
  if (type?.value.case !== "tensorType") return `${name} ${type?.value.case ?? "no type"}`;
  const { elemType, shape } = type.value.value;
  const dims = shape?.dim.map(({ value }) => (value.case === undefined ? "?" : String(value.value)));
  return `${name} ${dataTypeName(elemType)}${dims === undefined ? " of no shape" : `[${dims.join(",")}]`}`;
}

function attributeText(model: OnnxModel, { name, type, ...a }: AttributeProto, numbers: Numbers): string {
  const text = (bytes: Uint8Array): string => shown(new TextDecoder().decode(bytes));
  switch (type) {
    case A.FLOAT:
      return `${name}=${a.f}f`;
    case A.INT:
      return `${name}=${a.i}`;
    case A.STRING:
      return `${name}=${text(a.s)}`;
    case A.TENSOR:
      return `${name}=<${tensorText(model, a.t!, numbers).trim()}>`;
    case A.FLOATS:
      return `${name}=[${a.floats.map((f) => `${f}f`).join(",")}]`;
    case A.INTS:
      return `${name}=[${a.ints.join(",")}]`;
    case A.STRINGS:
      return `${name}=[${a.strings.map(text).join(",")}]`;
    case A.GRAPH:
      return `${name}={\n${graphLines(model, a.g!, numbers).map((line) => `    ${line}\n`).join("")}  }`; // prettier-ignore
    default:
      return `${name} of type ${type}`;
  }
}

function nodeText(model: OnnxModel, { name, domain, opType, input, output, attribute }: NodeProto, numbers: Numbers): string {
  const attributes = attribute.map((a) => attributeText(model, a, numbers)).join(" ");
  const title = name === "" ? "" : ` ${JSON.stringify(name)}`;
  return `${output.join(", ")} = ${domain === "" ? "" : `${domain}.`}${opType}(${input.join(", ")})${attributes === "" ? "" : ` ${attributes}`}${title}`;
}

function graphLines(model: OnnxModel, graph: GraphProto, numbers: Numbers): string[] {
  return [
    ...graph.input.map((v) => `in ${valueText(v)}`),
    ...graph.initializer.map((t) => tensorText(model, t, numbers)),
    ...graph.sparseInitializer.map((t) => `sparse ${t.values?.name ?? ""}`),
    ...graph.node.map((n) => nodeText(model, n, numbers)),
    ...graph.valueInfo.map((v) => `value ${valueText(v)}`),
    ...graph.output.map((v) => `out ${valueText(v)}`),
  ];
}

/** A model, a line for each value, tensor and node. */
export function modelText(model: OnnxModel | Uint8Array, numbers: Numbers = "exact"): string {
  const opened = model instanceof Uint8Array ? readModelBytes(model) : model;
  const { proto } = opened;
  const opsets = proto.opsetImport.map(({ domain, version }) => `${domain || "onnx"} ${version}`).join(", ");
  const metadata = proto.metadataProps.map(({ key, value }) => `meta ${key}${numbers === "none" ? "" : ` ${value.length > 300 ? `${value.length} characters` : value}`}`); // prettier-ignore
  const functions = proto.functions.map((f) => `function ${f.domain}.${f.name}(${f.input.join(", ")}) -> ${f.output.join(", ")}\n${f.node.map((n) => `  ${nodeText(opened, n, numbers)}\n`).join("")}`); // prettier-ignore
  return [`ir ${proto.irVersion}, ${opsets}`, ...metadata, ...functions, ...graphLines(opened, proto.graph!, numbers)].join("\n");
}

/** A report without what depends on time and place. */
export function reportText(report: QuantizeReport): string {
  const { layers, notes, traps, rules } = report;
  const line = (layer: QuantizeReport["layers"][number]): string => {
    const { sqnrDb, outputSqnrDb, ...rest } = layer;
    return shown({ ...rest, db: sqnrDb === null ? null : sqnrDb.toFixed(1), out: outputSqnrDb?.toFixed(0) });
  };
  const sums = shown([report.dtype, report.quantized, report.leftAlone, report.weightBytesBefore, report.weightBytesAfter, report.fileBytesBefore, report.fileBytesAfter]); // prettier-ignore
  return [
    ...layers.map(line),
    sums,
    ...notes.map((note) => `note ${note}`),
    ...traps.map((t) => `trap ${t.runtime} ${t.versions}`),
    ...(rules ?? []).map((rule) => `rule ${shown(rule)}`),
  ].join("\n");
}

/** Texts by name, stored in test/fixtures/onnx/NAME.txt. */
export function storedTexts(name: string): (title: string, text: string) => void {
  const path = fileURLToPath(new URL(`../fixtures/onnx/${name}.txt`, import.meta.url));
  const sections = new Map<string, string>();
  for (const part of existsSync(path) ? readFileSync(path, "utf8").split(/^=== /m).slice(1) : []) {
    const end = part.indexOf("\n");
    sections.set(part.slice(0, end), part.slice(end + 1).trimEnd());
  }
  const write = process.env.LOWBIT_WRITE_TEXTS === "1";
  const made = new Map<string, string>();
  if (write)
    afterAll(() => writeFileSync(path, [...made].map(([title, text]) => `=== ${title}\n${text}\n`).join("\n"))); // prettier-ignore
  return (title, text) => {
    if (write) made.set(title, text.trimEnd());
    else expect(text.trimEnd(), title).toBe(sections.get(title));
  };
}
