// What verification prints: outputs, layers, traps, and the matrix of runtimes.
import type { LayerComparison } from "../onnx/verify/layers.ts";
import type { RuntimeCell, RuntimeMatrix } from "../onnx/verify/matrix.ts";
import type { RuntimeTrap } from "../onnx/verify/traps.ts";
import type { VerifyReport } from "../onnx/verify/verify.ts";
import { decibels, shape, size, table } from "./report.ts";

export const trapText = (trap: RuntimeTrap): string => `trap (${trap.runtime} ${trap.versions}, ${trap.effect}): ${trap.text}`;

const milliseconds = (ms: number): string => (Number.isNaN(ms) ? "" : `${ms.toFixed(ms < 10 ? 2 : 0)} ms`);

function cellRow(cell: RuntimeCell): string[] {
  const ran = cell.state === "ran";
  return [
    cell.model,
    cell.runtime,
    ran ? (cell.ok ? "ok" : "differs") : cell.state,
    ran ? decibels(cell.sqnrDb) : "",
    ran ? decibels(cell.agreementDb) : "",
    ran ? cell.explained.db.toFixed(0) : "",
    milliseconds(cell.loadMs),
    milliseconds(cell.ms),
    cell.peakBytes === null ? "" : size(cell.peakBytes),
  ];
}

/** Under the table: refusals, where runtimes part, what runtimes are. */
function cellNotes(cell: RuntimeCell): string[] {
  const where = `${cell.model} in ${cell.runtime}`;
  if (cell.state === "unproved") return [`${where}: not proved here, ${cell.error ?? ""}`];
  if (cell.state === "refused") return [`${where}: ${cell.error ?? ""}`];
  const { parting } = cell;
  if (parting === undefined) return [];
  const explains = `(${cell.explained.arithmetic} explain ${cell.explained.db.toFixed(0)} dB)`
    .replace("float32 explain", "float32 explains")
    .replace("float16 explain", "float16 explains");
  if (parting.node === null)
    return [
      `${where} and node part at output ${parting.output}: ${decibels(cell.agreementDb)} dB ${explains}. No node is named: ${parting.reason ?? ""}`,
    ];
  const inputs = parting.inputsDb === Infinity ? "its inputs are equal" : `its inputs agree to ${decibels(parting.inputsDb)} dB`;
  return [
    `${where} and node part at output ${parting.output}: ${decibels(cell.agreementDb)} dB ${explains}.`,
    `  First node: ${parting.node} (${parting.opType}); ${inputs}, its output ${parting.value} to ${decibels(parting.sqnrDb)} dB.`,
  ];
}

export function matrixText({ cells }: RuntimeMatrix): string {
  const columns = [
    { title: "model" },
    { title: "runtime" },
    { title: "" },
    { title: "SQNR dB", right: true },
    { title: "as node dB", right: true },
    { title: "explained", right: true },
    { title: "load", right: true },
    { title: "run", right: true },
    { title: "memory", right: true },
  ];
  const about = new Map(
    cells.map((cell) => [cell.runtime, `${cell.runtime}: version ${cell.version}${cell.note === undefined ? "" : `, ${cell.note}`}`]),
  );
  return [table(columns, cells.map(cellRow)), ...about.values(), ...cells.flatMap(cellNotes)].join("\n");
}

export function layersText(layers: readonly LayerComparison[] | null): string {
  if (layers === null) return "These models cannot be compared layer by layer (more than 1 GB, or the runtime refuses).\n";
  const columns = [{ title: "layer" }, { title: "operator" }, { title: "SQNR dB", right: true }, { title: "cosine", right: true }];
  return `${table(
    columns,
    layers.map((layer) => [layer.name, layer.opType, decibels(layer.sqnrDb), layer.cosine.toFixed(5)]),
  )}\n`;
}

/** After a failure: the first layers whose output is below the threshold. Empty where no layer of the main graph is. */
export function partingText(layers: readonly LayerComparison[] | null, minSqnrDb: number): string {
  const below = (layers ?? []).filter((layer) => layer.sqnrDb < minSqnrDb);
  if (layers === null || below.length === 0) return "";
  const shown = below.slice(0, 5);
  return [
    `The models part here (${below.length} of ${layers.length} layers are below ${minSqnrDb} dB, in the order of the graph):`,
    ...shown.map((layer) => `  ${layer.name} (${layer.opType}, ${decibels(layer.sqnrDb)} dB)`),
    ...(below.length > shown.length ? [`  ... and ${below.length - shown.length} more; lowbit verify --layers lists all`] : []),
    "",
  ].join("\n");
}

export function verifyText(report: VerifyReport): string {
  const columns = [
    { title: "output" },
    { title: "shape" },
    { title: "SQNR dB", right: true },
    { title: "cosine", right: true },
    { title: "max error", right: true },
    { title: "same argmax", right: true },
    { title: "" },
    { title: "for its kind" },
  ];
  const figure = (value: number, text: string): string => (Number.isNaN(value) ? "" : text);
  const rows = report.outputs.map((output) => [
    output.name,
    shape(output.dims),
    // An output that cannot differ is not "exact".
    output.noEvidence !== null && output.sqnrDb === Infinity ? "-" : decibels(output.sqnrDb),
    figure(output.cosine, output.cosine.toFixed(5)),
    figure(output.cosine, output.maxAbsError.toPrecision(3)),
    output.argmaxAgreement === null ? "" : `${(100 * output.argmaxAgreement).toFixed(1)}%`,
    output.ok ? (output.noEvidence === null ? "ok" : "-") : output.noEvidence === "nan" ? "NaN" : "differs",
    `${output.kind}, ${output.judgement.text}`,
  ]);
  const ran = Object.entries(report.inputs).map(([name, dims]) => `${name} [${dims.join(", ")}]`);
  return [
    table(columns, rows),
    "",
    `${report.samples} inputs: ${ran.join("; ")}`,
    ...report.notes.map((note) => `note: ${note}`),
    ...report.warnings.map((warning) => `warning: ${warning}`),
    ...report.traps.map(trapText),
    ...generationText(report.generation),
    ...Object.entries(report.metrics ?? {}).map(([name, figures]) => `${name}: ${metric(figures.reference)} -> ${metric(figures.model)}`),
    ...(report.matrix === undefined ? [] : ["", matrixText(report.matrix)]),
    verdict(report),
    "",
  ].join("\n");
}

const metric = (value: number): string => String(Number(value.toPrecision(6)));

/** What decoders wrote, in two lines. */
function generationText(generation: VerifyReport["generation"]): string[] {
  if (generation === undefined) return [];
  const { tokens, prompts, random, agreement, firstDivergence, sameTexts, klMean, klMax } = generation;
  const parts = firstDivergence === null ? "they never part" : `they first part at token ${firstDivergence + 1}`;
  return [
    `generated: ${tokens} tokens after ${prompts} ${random ? "random " : ""}prompts: ${(100 * agreement).toFixed(1)}% the same, ${sameTexts} of ${prompts} texts the same to their end, ${parts}`,
    `divergence of the next token: ${klMean.toPrecision(3)} nats on average, ${klMax.toPrecision(3)} at most${random ? " (random prompts say little: give --inputs)" : ""}`,
  ];
}

function verdict({ ok, outputs, minSqnrDb, matrix }: VerifyReport): string {
  if (matrix !== undefined && !matrix.ok) {
    const failed = matrix.cells.filter((cell) => !cell.ok && !(cell.model === "reference" && cell.state === "refused"));
    return `FAILED: ${[...new Set(failed.map((cell) => `${cell.runtime} ${cell.state === "refused" ? "does not run the model" : "disagrees with node"}`))].join(", ")}`;
  }
  if (!ok && outputs.every((output) => output.ok && output.noEvidence === null)) return "FAILED: the decoders agree on too few tokens";
  if (!ok && outputs.every((output) => output.ok)) return "FAILED: nothing was proved, no output depends on the random inputs";
  if (!ok && outputs.some((output) => output.noEvidence === "nan")) return "FAILED: the reference itself gives NaN on these inputs";
  if (!ok) return `FAILED: expected every output to reach ${minSqnrDb} dB`;
  return outputs.every((output) => output.noEvidence === null)
    ? `ok: every output reaches ${minSqnrDb} dB`
    : `ok: every output that is evidence reaches ${minSqnrDb} dB`;
}
