// What the explorer shows beside one value: the same value in several formats, under every rounding and overflow
// policy, errors over magnitudes. Pure functions over the library, tested in Node.
import { type EncodeOptions, type NumberFormat } from "../../../formats/index.ts";
import { explainValue, hexCode } from "../../../formats/core/explain.ts";
import { exactDecimal } from "../../../formats/core/value-table.ts";
import { formatOf, OVERFLOWS, ROUNDINGS } from "./state";

const message = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Rounding a value by one policy: where it lands, and why. */
export interface PolicyRow {
  readonly policy: string;
  readonly code: string;
  readonly value: string;
  readonly why: string;
}

function policyRow(f: NumberFormat, x: number, policy: string, options: EncodeOptions): PolicyRow {
  try {
    const { code, lines } = explainValue(f, x, options);
    const why = lines.find((line) => line.startsWith("why")) ?? "";
    return { policy, code: hexCode(code, f.bits), value: exactDecimal(f.decode(code)), why: why.replace(/^why\s+/, "") };
  } catch (error) {
    return { policy, code: "-", value: "-", why: message(error) };
  }
}

/** A value under every rounding mode, then a value beyond the range under every overflow policy. */
export function policies(f: NumberFormat, x: number): { roundings: PolicyRow[]; overflows: PolicyRow[]; beyond: number } {
  const beyond = Number.isFinite(f.limits.max) && f.limits.max > 0 ? 2 * f.limits.max : Infinity;
  const rounding = ROUNDINGS.filter((r) => r !== "");
  const overflow = OVERFLOWS.filter((o) => o !== "");
  return {
    roundings: rounding.map((r) => policyRow(f, x, r, { rounding: r })),
    overflows: overflow.map((o) => policyRow(f, beyond, o, { overflow: o })),
    beyond,
  };
}

export interface SideRow {
  readonly format: string;
  readonly bits: string;
  readonly code: string;
  readonly value: string;
  readonly error: string;
  readonly spacing: string;
  readonly range: string;
}

/** One value in several formats, named with commas or spaces between. */
export function sideBySide(names: string, x: number, options: EncodeOptions): SideRow[] {
  const list = names.split(/[\s,]+/).filter((name) => name !== "");
  return list.slice(0, 12).map((name) => {
    try {
      const f = formatOf(name);
      if (f.kind === "block" || f.kind === "opaque") throw new TypeError("a value there depends on its block");
      const { code, value, below, above } = explainValue(f, x, options);
      const step = below !== null && above !== null ? above.value - below.value : NaN;
      return {
        format: f.name,
        bits: String(f.bits),
        code: hexCode(code, f.bits),
        value: exactDecimal(value),
        error: x === 0 || !Number.isFinite(value) ? "" : `${((100 * Math.abs(value - x)) / Math.abs(x)).toPrecision(2)} %`,
        spacing: Number.isNaN(step) ? "" : step.toPrecision(3),
        range: `${f.limits.min} .. ${f.limits.max}`,
      };
    } catch (error) {
      return { format: name, bits: "", code: "", value: message(error).split(". ")[0], error: "", spacing: "", range: "" };
    }
  });
}

export interface ErrorCurve {
  /** log2 of the magnitude, the middle of each bin. */
  readonly magnitudes: readonly number[];
  /** Largest relative error in the bin, in percent; null where values leave the range. */
  readonly errors: readonly (readonly (number | null)[])[];
  readonly names: readonly string[];
}

const PER_OCTAVE = 4;
const IN_BIN = 24;

/** Largest relative error by magnitude, of formats on one axis that spans what they all hold. */
export function errorCurve(formats: readonly NumberFormat[]): ErrorCurve {
  const low = Math.max(-60, Math.min(...formats.map((f) => Math.log2(f.limits.minPositive || 2 ** -20)))) - 2;
  const high = Math.min(60, Math.max(...formats.map((f) => Math.log2(Math.max(f.limits.max, 2 ** -20))))) + 1;
  const bins = Math.max(2, Math.min(512, Math.round((high - low) * PER_OCTAVE)));
  const magnitudes = Array.from({ length: bins }, (_, i) => low + ((i + 0.5) * (high - low)) / bins);
  const errors = formats.map((f) =>
    magnitudes.map((m) => {
      let worst = 0;
      for (let j = 0; j < IN_BIN; j++) {
        const x = 2 ** (m + (((j + 0.5) / IN_BIN - 0.5) * (high - low)) / bins);
        if (x > f.limits.max) return null;
        const error = Math.abs(f.decode(f.encode(x, { overflow: "saturate" })) - x) / x;
        if (error > worst) worst = error;
      }
      return 100 * worst;
    }),
  );
  return { magnitudes, errors, names: formats.map((f) => f.name) };
}

/** What the form of one's own format asks for, by kind: field, label, value to begin with. */
export const FORM = {
  float: [
    ["exponentBits", "exponent bits", "3"],
    ["mantissaBits", "mantissa bits", "2"],
    ["bias", "bias", "3"],
    ["specials", "specials: ieee, finite, fn, fnuz", "finite"],
  ],
  posit: [
    ["bits", "bits", "8"],
    ["es", "exponent bits (es)", "2"],
  ],
  int: [
    ["bits", "bits", "5"],
    ["signed", "signed: true or false", "true"],
  ],
  codebook: [["values", "values, ascending", "-1 -0.4 0.1 0.9"]],
  block: [
    ["element", "element format", "float4_e2m1fn"],
    ["scale", "scale format", "float8_e4m3fn"],
    ["span", "values that share a scale: a number, row, tensor", "16"],
  ],
} as const satisfies Record<string, readonly (readonly [string, string, string])[]>;

export type FormKind = keyof typeof FORM;

/** The definition as JSON, or for blocks the name, that a filled form stands for. */
export function formText(kind: FormKind, fields: Readonly<Record<string, string>>): string {
  const of = (name: string): string => fields[name]?.trim() ?? "";
  if (kind === "block") {
    const span = /^\d+$/.test(of("span")) ? `b${of("span")}` : of("span");
    return `${of("element")}_${span}_${of("scale")}`;
  }
  const value = (text: string): unknown =>
    text === "true" || text === "false" ? text === "true" : text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  const values = (text: string): number[] => text.split(/[\s,]+/).filter((t) => t !== "").map(Number); // prettier-ignore
  return JSON.stringify({
    kind,
    name: "mine",
    ...Object.fromEntries(FORM[kind].map(([name]) => [name, name === "values" ? values(of(name)) : value(of(name))])),
  });
}
