// The report of a quantization as one HTML page: no script, nothing loaded from elsewhere, safe with any names that a
// model has.
import type { LayerReport, QuantizeReport } from "../options.ts";
import type { RuntimeCell } from "../verify/matrix.ts";
import type { VerifyReport } from "../verify/verify.ts";
import type { WeightHistogram } from "./histogram.ts";
import { bar, escape, htmlTable } from "./markup.ts";
import { STYLE } from "./style.ts";

/** A model in a runtime, as far as it is shown. */
export type ShownCell = Pick<
  RuntimeCell,
  "model" | "runtime" | "ok" | "state" | "error" | "sqnrDb" | "agreementDb" | "ms" | "peakBytes" | "parting"
>;

/** What a page shows. */
export interface ReportContent {
  /** Name of the model that was quantized. */
  readonly input: string;
  readonly report: QuantizeReport;
  /** The options in force, as a recipe. */
  readonly recipe: Readonly<Record<string, unknown>>;
  readonly histograms?: readonly WeightHistogram[];
  readonly verify?: Omit<VerifyReport, "matrix"> & { readonly matrix?: { readonly cells: readonly ShownCell[] } };
}

const DOCS = "https://www.npmjs.com/package/lowbit";

const size = (bytes: number): string => {
  const unit = Math.max(0, Math.min(4, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
  const value = bytes / 1000 ** unit;
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(value < 10 ? 2 : 1)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
};
const decibels = (db: number | null): string =>
  db === null || Number.isNaN(db) ? "" : db === Infinity ? "exact" : db === -Infinity ? "-inf" : db.toFixed(1);
const percent = (part: number, whole: number): string => (whole === 0 ? "" : `${((100 * part) / whole).toFixed(1)} %`);
const section = (title: string, body: string): string => `<h2>${escape(title)}</h2>\n${body}`;
const list = (items: readonly string[]): string => `<ul>${items.map((item) => `<li>${escape(item)}</li>`).join("")}</ul>`;
const verdict = (ok: boolean, text: string): string => `<span class="${ok ? "ok" : "bad"}">${escape(text)}</span>`;

function cards({ report, verify }: ReportContent): string {
  const card = (value: string, label: string): string => `<div class="card"><b>${value}</b><span>${escape(label)}</span></div>`;
  const losses = report.layers.flatMap(({ sqnrDb }) => (sqnrDb !== null && Number.isFinite(sqnrDb) ? [sqnrDb] : []));
  const outputs = (verify?.outputs ?? []).map(({ sqnrDb }) => sqnrDb).filter((db) => !Number.isNaN(db));
  return `<div class="cards">${[
    card(size(report.fileBytesAfter), `file, ${percent(report.fileBytesAfter, report.fileBytesBefore)} of ${size(report.fileBytesBefore)}`),
    card(`${report.quantized} of ${report.layers.length}`, "layers quantized"),
    card(size(report.weightBytesAfter), `their weights, ${percent(report.weightBytesAfter, report.weightBytesBefore)} of before`),
    ...(losses.length === 0 ? [] : [card(`${decibels(Math.min(...losses))} dB`, "worst weight, SQNR")]),
    ...(verify === undefined || outputs.length === 0
      ? []
      : [
          card(
            verdict(verify.ok, `${decibels(Math.min(...outputs))}${outputs.every((db) => db === Infinity) ? "" : " dB"}`),
            `worst output, SQNR: ${verify.ok ? "ok" : "failed"}`,
          ),
        ]),
  ].join("")}</div>`;
}

/** Bars of SQNR are on 0 to 60 dB; those of bytes are shares of the largest layer before. */
const SQNR_FULL = 60;

function layers({ layers: all }: QuantizeReport): string {
  const largest = all.reduce((most, { bytesBefore }) => Math.max(most, bytesBefore), 1);
  const row = (layer: LayerReport): string[] => {
    const done = layer.format !== null;
    const own = done && layer.sharedWith === undefined;
    const left = done ? (own ? "" : `weight shared with ${layer.sharedWith}`) : (layer.reason ?? "left alone");
    const remark = left === "" ? "" : `<div class="dim">${escape(left)}</div>`;
    return [
      `<code>${escape(layer.name)}</code>${remark}`,
      escape(layer.opType),
      escape(layer.shape.join("x")),
      escape(layer.format ?? ""),
      layer.sqnrDb === null ? "" : bar(layer.sqnrDb / SQNR_FULL, "b1"),
      decibels(layer.sqnrDb),
      bar(own ? layer.bytesAfter / largest : 0, "b2", layer.bytesBefore / largest),
      own ? size(layer.bytesAfter) : done ? "shared" : size(layer.bytesBefore),
    ];
  };
  const columns = [
    { title: "layer" },
    { title: "operator", wide: true },
    { title: "shape", wide: true },
    { title: "format", wide: true },
    { title: "SQNR", wide: true },
    { title: "dB", right: true },
    { title: "bytes (pale: before)", wide: true },
    { title: "after", right: true },
  ];
  return `${htmlTable(columns, all.map(row))}\n<p class="dim">SQNR of a weight is 10 log10(sum w² / sum (w - w')²): how well it was rounded. Bars end at ${SQNR_FULL} dB.</p>`;
}

/** Weights as bars, code points as ticks below. */
export function histogramHtml({ layer, format, points, from, to, counts, weights }: WeightHistogram): string {
  const most = Math.max(1, ...counts);
  const at = (value: number): string => (((value - from) / (to - from)) * 960).toFixed(1);
  const width = 960 / counts.length;
  const bars = counts
    .map((n, i) => (n === 0 ? "" : `M${(i * width).toFixed(1)} 90v-${((n / most) * 86).toFixed(1)}h${width.toFixed(1)}V90z`))
    .join("");
  // More code points than a screen has room for are a band.
  const ticks =
    points.length <= 128
      ? points.map((point) => `<line x1="${at(point)}" x2="${at(point)}" y1="92" y2="108"/>`).join("")
      : `<line x1="${at(points[0])}" x2="${at(points.at(-1)!)}" y1="100" y2="100"/>`;
  const label = `${weights.toLocaleString("en-US")} weights in units of their scale; ${points.length} code points from ${points[0]} to ${points.at(-1)}`;
  return `<div class="hist"><h3><code>${escape(layer)}</code></h3><svg viewBox="0 0 960 110" preserveAspectRatio="none" role="img" aria-label="${escape(label)}"><path class="bars" d="${bars}"/>${ticks}</svg><p class="dim">${escape(format)}: ${escape(label)}.</p></div>`;
}

function outputs(verify: NonNullable<ReportContent["verify"]>): string {
  const columns = [
    { title: "output" },
    { title: "shape", wide: true },
    { title: "SQNR dB", right: true },
    { title: "cosine", right: true, wide: true },
    { title: "max error", right: true, wide: true },
    { title: "" },
    { title: "for its kind" },
  ];
  const rows = verify.outputs.map((output) => [
    `<code>${escape(output.name)}</code>`,
    escape(output.dims.join("x")),
    decibels(output.sqnrDb),
    Number.isNaN(output.cosine) ? "" : output.cosine.toFixed(5),
    Number.isNaN(output.cosine) ? "" : output.maxAbsError.toPrecision(3),
    verdict(output.ok, output.ok ? "ok" : "differs"),
    escape(`${output.kind}, ${output.judgement.text}`),
  ]);
  const ran = Object.entries(verify.inputs).map(([name, dims]) => `${name} [${dims.join(", ")}]`);
  const about = `<p class="dim">${escape(`${verify.samples} ${verify.random ? "random " : ""}inputs: ${ran.join("; ")}; expected at least ${verify.minSqnrDb} dB.`)}</p>`;
  const remarks = [...verify.notes, ...verify.warnings.map((warning) => `warning: ${warning}`)];
  return `${htmlTable(columns, rows)}\n${about}${remarks.length === 0 ? "" : list(remarks)}`;
}

function cellRow(cell: ShownCell): string[] {
  const ran = cell.state === "ran";
  const { parting } = cell;
  const where =
    parting === undefined
      ? (cell.error ?? "")
      : parting.node === null
        ? (parting.reason ?? "")
        : `parts at ${parting.node} (${parting.opType})`;
  return [
    escape(cell.model),
    `<div class="name">${escape(cell.runtime)}</div>` + (where === "" ? "" : `<div class="dim">${escape(where)}</div>`),
    verdict(cell.ok, ran ? (cell.ok ? "ok" : "differs") : cell.state),
    ran ? decibels(cell.sqnrDb) : "",
    ran ? decibels(cell.agreementDb) : "",
    ran ? `${cell.ms.toFixed(cell.ms < 10 ? 2 : 0)} ms` : "",
    cell.peakBytes === null ? "" : size(cell.peakBytes),
  ];
}

const MATRIX_COLUMNS = [
  { title: "model" },
  { title: "runtime" },
  { title: "" },
  { title: "SQNR dB", right: true },
  { title: "as node dB", right: true, wide: true },
  { title: "run", right: true },
  { title: "memory", right: true, wide: true },
];

/**
 * The parts of the page, from the cards to the recipe, as HTML for a page of one's own: `COMPONENTS` of style.ts is
 * their style.
 */
export function reportParts(content: ReportContent): string {
  const { report, recipe, histograms = [], verify } = content;
  const traps = report.traps.map((trap) => `${trap.runtime} ${trap.versions} (${trap.effect}): ${trap.text}`);
  return [
    cards(content),
    ...(report.notes.length === 0 ? [] : [list(report.notes)]),
    ...(verify === undefined ? [] : [section("Outputs compared", outputs(verify))]),
    ...(verify?.matrix === undefined ? [] : [section("Runtimes", htmlTable(MATRIX_COLUMNS, verify.matrix.cells.map(cellRow)))]),
    ...(traps.length === 0 ? [] : [section("Known faults of runtimes that this file is in", list(traps))]),
    section("Layers", layers(report)),
    ...(histograms.length === 0
      ? []
      : [
          section(
            "Weights against code points",
            `<p class="dim">The layers that lost most. Ticks below are the values that the format has.</p><div class="grid">${histograms.map(histogramHtml).join("\n")}</div>`,
          ),
        ]),
    section("Recipe", `<pre tabindex="0">${escape(JSON.stringify(recipe, null, 2))}</pre>`),
  ].join("\n");
}

/**
 * The page.
 * @example
 * const { bytes: quantized, report } = await quantizeModelBytes(bytes, { dtype: "q8" });
 * const page = reportHtml({ input: "model.onnx", report, recipe: { dtype: "q8" } }); // one file, nothing loaded
 */
export function reportHtml(content: ReportContent): string {
  const { input, report } = content;
  const body = [
    `<main><h1>${escape(input)}</h1>`,
    `<p class="dim">${escape(`${report.dtype}, quantized by lowbit in ${report.seconds.toFixed(2)} s: ${report.outputs.join(", ")}`)}</p>`,
    reportParts(content),
    `</main><footer>What the figures mean: docs/cli.md and docs/onnx.md of <a href="${DOCS}">lowbit</a>.</footer>`,
  ].join("\n");
  const head = `<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"><title>${escape(input)}: lowbit report</title><style>${STYLE}</style>`;
  return `<!doctype html>\n<html lang="en"><head>${head}</head><body>\n${body}\n</body></html>\n`;
}
