// The options of `quantize` as they hold for a format: checked, with the format's defaults filled in, and as the recipe
// records them.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { BlockFormat, NumberFormat, Overflow, QuantConfig, RangeRule, Rounding, ScaleRule } from "../../../formats/core/types.ts";
import type { BulkCodec } from "../../backends/types.ts";
import { ortRangeRule, type Arithmetic } from "./scales.ts";

/** How `quantize` chooses scales and rounds; what is left out is the format's own. */
export interface QuantizeOptions {
  /** Default: the format's. */
  readonly scaleRule?: ScaleRule;
  /** Default: the format's; with arithmetic "ort" the one of onnxruntime's tools. */
  readonly rangeRule?: RangeRule;
  /**
   * Integers: leave half of the codes unused (int8: -64..64, uint8: 0..127), for kernels that saturate sums of
   * products; default false.
   */
  readonly reduceRange?: boolean;
  /** Rounding of the elements; default: the element's own. */
  readonly rounding?: Rounding;
  /** Default "saturate". */
  readonly overflow?: Overflow;
  /** Default "exact". */
  readonly arithmetic?: Arithmetic;
  /** Uniform numbers in [0, 1) for rounding "stochastic". */
  readonly random?: () => number;
  /**
   * A backend that converts in bulk, `await wasm()`: faster for float32 data, same codes and scales. What it has no
   * exact kernel for runs here.
   */
  readonly backend?: { readonly codec: BulkCodec };
}

/** What blocks of a format are quantized by. */
export interface Policy {
  readonly scaleRule: ScaleRule;
  readonly rangeRule: RangeRule;
  readonly reduceRange: boolean;
  readonly rounding: Rounding;
  readonly overflow: Overflow;
  readonly arithmetic: Arithmetic;
  readonly steps: Steps;
  readonly random?: () => number;
}

/**
 * How a value becomes a code: `exact`, x / scale in binary64. In float32: `onnx`, x / scale; `nbits`, x times the
 * reciprocal plus the zero point, half away from zero; `nbitsThenZero`, the zero point after that; `reciprocal`, x
 * times the reciprocal, for codebooks.
 */
export type Steps = "exact" | "onnx" | "nbits" | "nbitsThenZero" | "reciprocal";

const CHOICES: readonly (readonly [keyof QuantizeOptions, readonly string[]])[] = [
  ["rangeRule", ["narrow", "full", "gptq", "ort", "minmax"]],
  ["overflow", ["saturate", "inf", "nan", "error", "wrap"]],
  ["arithmetic", ["exact", "onnx", "ort", "ortQdq"]],
  ["rounding", ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor", "stochastic"]],
];

const KNOWN: ReadonlySet<string> = new Set(["scaleRule", "reduceRange", "random", "backend", ...CHOICES.map(([name]) => name)]);

/** @throws TypeError for options that are none */
export function checkOptions(given: object): void {
  const options = given as QuantizeOptions;
  if (typeof options !== "object" || options === null)
    throw new TypeError(
      `quantize options: expected an object of options or a quantizer, got ${options === null ? "null" : typeof options}.`,
    );
  if ("quantizeWeight" in options) return; // a quantizer, which has fields of its own
  for (const [name, value] of Object.entries(options)) {
    if (!KNOWN.has(name))
      throw new TypeError(`quantize options: expected ${[...KNOWN].join(", ")}, got ${name.slice(0, 40)}. Is it misspelt?`);
    if (value === null) throw new TypeError(`quantize ${name}: expected a value, got null. Leave it out for the default.`);
  }
  for (const [name, choices] of CHOICES) {
    const choice = options[name];
    if (choice !== undefined && !choices.includes(choice as string))
      throw new TypeError(
        `quantize ${name}: expected ${choices.map((c) => `"${c}"`).join(", ")}, got ${String(choice)}. Leave it out for the default.`,
      );
  }
  if (options.reduceRange !== undefined && typeof options.reduceRange !== "boolean")
    throw new TypeError(`quantize reduceRange: expected true or false, got ${String(options.reduceRange)}.`);
  if (options.random !== undefined && typeof options.random !== "function")
    throw new TypeError(`quantize random: expected a function that gives numbers in [0, 1), got ${typeof options.random}.`);
  if (options.backend !== undefined && typeof (options.backend as { codec?: { range?: unknown } } | null)?.codec?.range !== "function")
    throw new TypeError("quantize backend: expected a backend that converts in bulk, got none. Pass await wasm(), or leave it out.");
}

/** @throws LowbitError E_UNSUPPORTED for options that the format cannot follow */
export function blockPolicy(format: BlockFormat, options: QuantizeOptions): Policy {
  const { element, offset } = format;
  const { arithmetic = "exact", overflow = "saturate", reduceRange = false } = options;
  const refuse = (what: string, expected: string, got: unknown) =>
    new LowbitError(
      "E_UNSUPPORTED",
      `quantize ${what} for ${format.name}: expected ${expected}, got ${JSON.stringify(got)}. Leave it out for the format's own.`,
    );
  const steps = stepsOf(format, arithmetic);
  if (steps === null)
    throw refuse(
      "arithmetic",
      `"exact" unless the element is an integer, or a codebook, with one level of float32 or float16 scales`,
      arithmetic,
    );
  if (offset?.role === "min")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `quantize: expected a format with zero points, means or symmetric, got ${format.name} with offsets of role "min", which is only read. Take one with zero points.`,
    );
  if (reduceRange && element.kind !== "int") throw refuse("reduceRange", "false unless the element is an integer", reduceRange);
  const own = steps === "nbits" || steps === "nbitsThenZero" ? "halfExpand" : steps === "onnx" ? "halfEven" : element.defaults.rounding;
  const rounding = options.rounding ?? own;
  if (steps !== "exact" && rounding !== own) throw refuse("rounding", `the one that arithmetic "${arithmetic}" fixes`, rounding);
  return {
    scaleRule: options.scaleRule ?? format.scaleRule,
    rangeRule: options.rangeRule ?? (arithmetic === "ort" || arithmetic === "ortQdq" ? ortRangeRule(format) : format.rangeRule),
    reduceRange,
    rounding,
    overflow,
    arithmetic,
    steps,
    random: options.random,
  };
}

/** Null where the format has no such steps. */
function stepsOf({ element, scales, offset }: BlockFormat, arithmetic: Arithmetic): Steps | null {
  if (arithmetic === "exact") return "exact";
  const [{ format: scale, span }, second] = scales;
  if (scale.kind !== "float" || scale.bits < 16 || second !== undefined) return null;
  const blocks = span !== "row" && span !== "tensor";
  if (element.kind === "codebook") return arithmetic === "ort" && offset === undefined ? "reciprocal" : null;
  if (element.kind !== "int" || (offset !== undefined && offset.role !== "zeroPoint")) return null;
  if (arithmetic === "ortQdq") return blocks ? "nbitsThenZero" : null;
  return arithmetic === "ort" && blocks ? "nbits" : "onnx";
}

export const blockRecipe = (p: Policy): QuantConfig => ({
  version: 1,
  algorithm: "rtn",
  scaleRule: p.scaleRule,
  rangeRule: p.rangeRule,
  rounding: p.rounding,
  overflow: p.overflow,
  arithmetic: p.arithmetic,
  ...(p.reduceRange ? { reduceRange: true } : {}),
});

export const scalarRecipe = (format: NumberFormat, options: QuantizeOptions): QuantConfig => ({
  version: 1,
  algorithm: "rtn",
  rounding: options.rounding ?? format.defaults.rounding,
  overflow: options.overflow ?? "saturate",
});
