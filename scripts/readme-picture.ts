// The picture of README: bytes and quality of two models by dtype, drawn from docs/public/zoo.json, which
// `npm run bench -- zoo` measures. Light and dark, side by side and, for phones, one above the other; part of `npm run generate`.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

interface Row {
  readonly model: string;
  readonly kind: string;
  readonly dtype: string;
  readonly bytes: number;
  readonly cells: readonly { readonly runtime: string; readonly sqnrDb: number | null }[];
}

const COLOURS = {
  light: { text: "#1f2328", dim: "#59636e", bar: "#2f6feb", pale: "#d8dee4" },
  dark: { text: "#e6edf3", dim: "#9aa4af", bar: "#6ca4ff", pale: "#2d343c" },
} as const;
const MODELS = ["kjv-llama", "fashion-cnn"];
const DTYPES = ["float32", "fp16", "q8", "q4", "q4f16"];
const [WIDTH, LINE, PANEL] = [420, 26, 440];

const escape = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function panel(
  rows: readonly Row[],
  model: string,
  [x, top]: readonly [number, number],
  colours: (typeof COLOURS)[keyof typeof COLOURS],
): string {
  const mine = DTYPES.map((dtype) => rows.find((row) => row.model === model && row.dtype === dtype)!);
  const [float] = mine;
  const bar = (row: Row): number => (150 * row.bytes) / float.bytes;
  const lines = mine.map((row, i) => {
    const y = top + 48 + i * LINE;
    const db = row.cells.find(({ runtime }) => runtime === "node")?.sqnrDb ?? null;
    const quality = row === float ? "" : db === null ? "" : `${db.toFixed(0)} dB`;
    const size = `${(row.bytes / 1e6).toFixed(row.bytes < 1e6 ? 2 : 1)} MB`;
    const at = x + 66;
    return [
      `<text x="${x}" y="${y + 12}" fill="${colours.text}" font-family="ui-monospace,Menlo,Consolas,monospace">${row.dtype}</text>`,
      `<rect x="${at}" y="${y}" width="150" height="16" rx="3" fill="${colours.pale}"/>`,
      `<rect x="${at}" y="${y}" width="${bar(row).toFixed(1)}" height="16" rx="3" fill="${colours.bar}"/>`,
      `<text x="${at + 160}" y="${y + 12}" fill="${colours.text}">${size}, ${((100 * row.bytes) / float.bytes).toFixed(0)} %</text>`,
      `<text x="${x + WIDTH - 12}" y="${y + 12}" text-anchor="end" fill="${colours.dim}">${quality}</text>`,
    ].join("");
  });
  return [
    `<text x="${x}" y="${top + 28}" font-weight="600" fill="${colours.text}">${escape(`${model}: ${float.kind}`)}</text>`,
    ...lines,
  ].join("\n");
}

/** The four files, fresh. */
export function readmePictures(): { path: string; text: string }[] {
  const { rows } = JSON.parse(readFileSync(join(root, "docs/public/zoo.json"), "utf8")) as { rows: Row[] };
  return (["", "narrow-"] as const).flatMap((shape) =>
    (["light", "dark"] as const).map((scheme) => ({
      path: `docs/public/dtypes-${shape}${scheme}.svg`,
      text: picture(rows, COLOURS[scheme], shape === "narrow-"),
    })),
  );
}

function picture(rows: readonly Row[], colours: (typeof COLOURS)[keyof typeof COLOURS], narrow: boolean): string {
  const high = 48 + DTYPES.length * LINE;
  const [width, height] = narrow ? [PANEL, MODELS.length * high + 40] : [2 * PANEL, high + 22];
  const label = "Bytes of two models in float32, fp16, q8, q4 and q4f16, and the SQNR of their outputs against float32";
  const body = MODELS.map((model, i) => panel(rows, model, narrow ? [10, i * high] : [10 + i * PANEL, 0], colours)).join("\n");
  const notes = ["bytes of the file, and SQNR of the worst output against float32", "(npm run bench -- zoo)"];
  const lines = narrow ? notes : [notes.join(" ")];
  const note = lines
    .map((text, i) => `<text x="10" y="${height - 8 - 16 * (lines.length - 1 - i)}" font-size="11" fill="${colours.dim}">${text}</text>`)
    .join("");
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui,-apple-system,Segoe UI,Roboto,sans-serif" font-size="13" role="img" aria-label="${label}">\n<title>${label}</title>\n${body}\n${note}\n</svg>\n`;
}
