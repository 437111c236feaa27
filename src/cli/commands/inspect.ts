// lowbit inspect: what is in a model: inputs, outputs, operators, bytes by element type, and the layers that quantize
// can name.
import { inspectModel } from "../../onnx/inspect.ts";
import type { ModelSummary, ValueSummary } from "../../onnx/inspect.ts";
import { count, json, percent, shape, size, table } from "../report.ts";
import type { CommandSpec } from "../spec.ts";
import { EXIT } from "../spec.ts";

export const inspectCommand: CommandSpec = {
  name: "inspect",
  summary: "Lists inputs, outputs, operators and layers of an ONNX model; reads no weights.",
  positionals: ["MODEL"],
  options: {},
  notes: "The layer names are what --include and --exclude of lowbit quantize match.",
  run: async (args, context) => {
    const [input] = args.positionals;
    const summary = inspectModel(input);
    context.print(args.json ? json({ command: "inspect", input, ...summary }) : inspectText(input, summary));
    return EXIT.ok;
  },
};

const value = (v: ValueSummary): string => `${v.name} ${v.type}[${v.dims.join(", ")}]`;

function inspectText(input: string, summary: ModelSummary): string {
  const opsets = Object.entries(summary.opsets).map(([domain, version]) => `${domain} ${version}`);
  const total = Object.values(summary.tensorBytes).reduce((a, b) => a + b, 0);
  const bytes = Object.entries(summary.tensorBytes)
    .sort(([, a], [, b]) => b - a)
    .map(([type, n]) => `${type} ${count(n)} (${percent(n, total)})`);
  const facts: [string, string][] = [
    ["file", `${input}, ${count(summary.fileBytes)} bytes (${size(summary.fileBytes)})`],
    ...(summary.files.length > 1 ? [["external data", summary.files.slice(1).join(", ")] as [string, string]] : []),
    ["producer", summary.producer || "unknown"],
    ["opsets", `${opsets.join(", ")}; IR version ${summary.irVersion}`],
    ["inputs", summary.inputs.map(value).join("; ") || "none"],
    ["outputs", summary.outputs.map(value).join("; ") || "none"],
    [
      "operators",
      Object.entries(summary.operators)
        .map(([type, n]) => `${type} ${n}`)
        .join(", "),
    ],
    ["tensor bytes", bytes.join(", ") || "none"],
  ];
  const width = Math.max(...facts.map(([name]) => name.length));
  const columns = [
    { title: "layer" },
    { title: "operator" },
    { title: "weight" },
    { title: "shape" },
    { title: "format" },
    { title: "bytes", right: true },
    { title: "graph" },
  ];
  const rows = summary.layers.map((layer) => [
    layer.name,
    layer.opType,
    layer.weight || "(computed)",
    shape(layer.shape),
    layer.format || layer.dataType,
    count(layer.bytes),
    layer.graph,
  ]);
  return [...facts.map(([name, text]) => `${name.padEnd(width)}  ${text}`), "", table(columns, rows), ""].join("\n");
}
