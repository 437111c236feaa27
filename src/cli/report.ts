// How results are printed: aligned tables, sizes, decibels, JSON.

export interface Column {
  readonly title: string;
  readonly right?: boolean;
}

/** An aligned table; the last column is not padded. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const widths = columns.map((column, i) => Math.max(column.title.length, ...rows.map((row) => row[i].length)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, i) => (columns[i].right ? cell.padStart(widths[i]) : cell.padEnd(widths[i])))
      .join("  ")
      .trimEnd();
  return [line(columns.map((column) => column.title)), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}

/** A count of bytes with separators: 1,835,985. */
export const count = (bytes: number): string => bytes.toLocaleString("en-US");

/** A size for people, in units of 1000. */
export function size(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

export const decibels = (db: number | null): string =>
  db === null || Number.isNaN(db) ? "" : Number.isFinite(db) ? db.toFixed(1).replace(/^-(0\.0)$/, "$1") : db > 0 ? "exact" : "-inf";

export const shape = (dims: readonly (number | string)[]): string => (dims.length === 0 ? "" : dims.join("x"));

export const percent = (part: number, whole: number): string => (whole === 0 ? "" : `${((100 * part) / whole).toFixed(1)}%`);

/**
 * One JSON document. Numbers that JSON cannot hold are the strings "Infinity", "-Infinity" and "NaN", as in protobuf's
 * JSON.
 */
export const json = (value: unknown): string =>
  `${JSON.stringify(value, (_, v: unknown) => (typeof v === "number" && !Number.isFinite(v) ? String(v) : v), 2)}\n`;
