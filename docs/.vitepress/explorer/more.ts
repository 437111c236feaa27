// What the explorer shows beside one value: the same value in several formats, under every policy, errors over
// magnitudes. Pure functions over the library, tested in Node.
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

export interface Policies {
  readonly title: string;
  readonly rows: readonly PolicyRow[];
}

/** The two values that stochastic rounding chooses between, and how often it takes the upper one. */
function stochastic(f: NumberFormat, x: number): PolicyRow {
  const row = { policy: "stochastic", code: "-", value: "-" };
  try {
    const { below, above } = explainValue(f, x, { rounding: "floor", overflow: "saturate" });
    if (!Number.isFinite(x) || f.decode(f.encode(x, { overflow: "saturate" })) === x || below === null || above === null)
      return { ...policyRow(f, x, "stochastic", {}), why: "lies between no two values: as in every other mode" };
    const share = (x - below.value) / (above.value - below.value);
    const [up, down] = [above, below].map((n) => `${exactDecimal(n.value)} (${hexCode(n.code, f.bits)})`);
    const percent = (p: number): string => `${Number((100 * p).toPrecision(4))} %`;
    return { ...row, why: `${up} in ${percent(share)} of draws, ${down} in ${percent(1 - share)}: the mean is the value itself` };
  } catch (error) {
    return { ...row, why: message(error) };
  }
}

const INFINITIES = ["overflow", "keep"] as const;
const NANS = ["nan", "error", "zero", "negativeZero", "max"] as const;

/** A value under every rounding mode, then what is beyond the range, infinity and NaN under every policy. */
export function policies(f: NumberFormat, x: number): Policies[] {
  const beyond = Number.isFinite(f.limits.max) && f.limits.max > 0 ? 2 * f.limits.max : Infinity;
  const rounding = ROUNDINGS.filter((r) => r !== "");
  const overflow = OVERFLOWS.filter((o) => o !== "");
  return [
    { title: `rounding of ${x}`, rows: [...rounding.map((r) => policyRow(f, x, r, { rounding: r })), stochastic(f, x)] },
    { title: `overflow, of ${beyond}`, rows: overflow.map((o) => policyRow(f, beyond, o, { overflow: o })) },
    { title: "an infinite input", rows: INFINITIES.map((o) => policyRow(f, Infinity, o, { infinity: o })) },
    { title: "NaN", rows: NANS.map((n) => policyRow(f, NaN, n, { nan: n })) },
  ];
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

const six = (x: number): string => String(Number(x.toPrecision(6)));

/** One value in several formats, named with commas or spaces between; `own` is one that has no name elsewhere. */
export function sideBySide(names: string, x: number, options: EncodeOptions, own?: NumberFormat): SideRow[] {
  const list = names.split(/[\s,]+/).filter((name) => name !== "");
  return list.slice(0, 12).map((name) => {
    try {
      const f = name === own?.name ? own : formatOf(name);
      if (f.kind === "block" || f.kind === "opaque") throw new TypeError("a value there depends on its block");
      const { code, value, below, above } = explainValue(f, x, options);
      const step = below !== null && above !== null ? above.value - below.value : NaN;
      return {
        format: f.name,
        bits: String(f.bits),
        code: hexCode(code, f.bits),
        value: exactDecimal(value),
        error: x === 0 || !Number.isFinite(value) ? "" : `${Number(((100 * Math.abs(value - x)) / Math.abs(x)).toPrecision(2))} %`,
        spacing: Number.isNaN(step) ? "" : step.toPrecision(3),
        range: `${six(f.limits.min)} .. ${six(f.limits.max)}`,
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
