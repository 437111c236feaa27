// All values of a scalar format by code, as a file that other tools read.
import { LowbitError } from "./errors.ts";
import { hexCode } from "./explain.ts";
import type { NumberFormat } from "./types.ts";

/** How `valueTable` writes the values of a format: for spreadsheets, programs, C or Verilog. */
export type ValueTableKind = "csv" | "json" | "c" | "readmemh";

/** Shortest digits that read back as the same double; -0 keeps its sign. */
export const exactDecimal = (value: number): string => (Object.is(value, -0) ? "-0" : String(value));

/**
 * `csv` has code, hexadecimal code and value; `json` the values; `c` an array of doubles; `readmemh` (Verilog) the
 * values as IEEE doubles, a word a line.
 * @throws LowbitError E_UNSUPPORTED above 16 bits
 * @example valueTable(float4_e2m1fn, "csv").split("\n")[1] // "0,0x0,0"
 */
export function valueTable(format: NumberFormat, kind: ValueTableKind): string {
  if (format.table === null)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `valueTable: expected a format of at most 16 bits, got ${format.name} of ${format.bits}. Decode single codes.`,
    );
  const values = [...format.table];
  switch (kind) {
    case "csv":
      return ["code,hex,value", ...values.map((v, code) => `${code},${hexCode(code, format.bits)},${exactDecimal(v)}`), ""].join("\n");
    case "json":
      return `${JSON.stringify({ format: format.name, bits: format.bits, values: values.map(exactDecimal) })}\n`;
    case "c": {
      const c = (v: number): string => (Number.isNaN(v) ? "NAN" : Number.isFinite(v) ? exactDecimal(v) : v > 0 ? "INFINITY" : "-INFINITY");
      const name = `${format.name}_values[${values.length}]`;
      return `#include <math.h>\nstatic const double ${name} = {\n${values.map((v) => `  ${c(v)},`).join("\n")}\n};\n`;
    }
    case "readmemh": {
      const bits = new DataView(new ArrayBuffer(8));
      const word = (v: number): string => (bits.setFloat64(0, v), bits.getBigUint64(0).toString(16).padStart(16, "0"));
      return `// ${format.name}: the value of each code as an IEEE double\n${values.map(word).join("\n")}\n`;
    }
  }
}
