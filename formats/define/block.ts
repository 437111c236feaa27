// Block formats by composition: an element format, one or more levels of scales, optional offsets. Nothing is encoded
// here: src/tensor quantizes by these descriptors, kernels read them. Names: <element>_b<n> | _row | _tensor [_<scale
// format>] [_zp].
import { NAME } from "../core/codec.ts";
import { LowbitError } from "../core/errors.ts";
import { ANY, LIST, RECORD, SCALAR, checkFields, oneOf } from "../core/fields.ts";
import { spanCount } from "../core/span.ts";
import type { BlockFormat, NumberFormat, RangeRule, ScaleLevel, ScaleRule, Span } from "../core/types.ts";

/** Elements under one or more levels of scales, with or without zero points. */
export interface BlockOptions {
  /** Default: derived from element, first scale level and offset. */
  readonly name?: string;
  readonly aliases?: readonly string[];
  readonly element: NumberFormat;
  /** Innermost first. */
  readonly scales: readonly ScaleLevel[];
  readonly offset?: BlockFormat["offset"];
  /** Default "max". */
  readonly scaleRule?: ScaleRule;
  /** Default "minmax" with a zero point, else "narrow". */
  readonly rangeRule?: RangeRule;
  /** Default "short". */
  readonly tail?: "short" | "error";
  /** Default "error". */
  readonly nonFinite?: BlockFormat["nonFinite"];
  readonly spec?: string;
}

const shown = (x: unknown): string => (typeof x === "object" ? JSON.stringify(x) : String(x)).slice(0, 60);

function checkSpan(span: Span, what: string): void {
  const whole = (n: number) => Number.isSafeInteger(n) && n > 0;
  const ok =
    span === "row" ||
    span === "tensor" ||
    (typeof span === "number" ? whole(span) : Array.isArray(span) && span.length === 2 && span.every(whole));
  if (!ok)
    throw new LowbitError(
      "E_FORMAT",
      `${what} span: expected a positive integer, "row", "tensor" or [rows, k], got ${shown(span)}. Spans count elements along k.`,
    );
}

const FIELDS = {
  element: SCALAR,
  scales: LIST,
  offset: RECORD,
  scaleRule: oneOf(
    ...[
      "max",
      "floor",
      "ceil",
      "rceil",
      "nearest",
      "even",
      "fourThirds",
      "mse",
      "mseSweep",
      "quest",
      "torchao",
      "te",
      "modelopt",
      "fourOverSix",
    ],
  ),
  rangeRule: oneOf("narrow", "full", "gptq", "ort", "minmax"),
  tail: oneOf("short", "error"),
  nonFinite: oneOf("error", "scale"),
};
const LEVEL = { format: SCALAR, span: ANY };
const OFFSET = { role: oneOf("zeroPoint", "min", "mean"), levels: LIST };

function checkLevel(level: ScaleLevel, what: string): void {
  checkFields(`defineBlock ${what} level`, level, LEVEL);
  if (level.format === undefined)
    throw new LowbitError("E_FORMAT", `defineBlock ${what} level: expected a format and a span, got no format. Name both.`);
  checkSpan(level.span, what);
}

const spanName = (span: Span): string =>
  typeof span === "number" ? `b${span}` : typeof span === "string" ? span : `t${span[0]}x${span[1]}`;

/** The derived name of a scaled form. float32 scales go unnamed. */
export function blockName(element: NumberFormat, scales: readonly ScaleLevel[], zeroPoint: boolean): string {
  const [inner] = scales;
  const scale = inner.format.bits === 32 ? "" : `_${inner.format.name}`;
  return `${element.name}_${spanName(inner.span)}${scale}${zeroPoint ? "_zp" : ""}`;
}

/**
 * A block format.
 * @throws LowbitError E_FORMAT for missing scales, spans that are no sizes, or a zero point on an element that is not
 * an unsigned integer
 * @example defineBlock({ element: int5, scales: [{ format: float16, span: 64 }] }).name // "int5_b64_float16"
 */
export function defineBlock(options: BlockOptions): BlockFormat {
  checkFields("defineBlock", options, FIELDS);
  const { element, scales, offset } = options;
  if (element === undefined)
    throw new LowbitError("E_FORMAT", "defineBlock element: expected a scalar format, got nothing. Name the format of one value.");
  if (!Array.isArray(scales) || scales.length === 0)
    throw new LowbitError(
      "E_FORMAT",
      `defineBlock scales: expected at least one { format, span }, got ${shown(scales)}. Add a scale level.`,
    );
  for (const level of scales) checkLevel(level, "scale");
  if (offset !== undefined) checkFields("defineBlock offset", offset, OFFSET);
  if (offset !== undefined && (offset.role === undefined || offset.levels === undefined))
    throw new LowbitError("E_FORMAT", "defineBlock offset: expected a role and levels, got one of them. Name both.");
  for (const level of offset?.levels ?? []) checkLevel(level, "offset");
  if (offset && offset.levels.length === 0)
    throw new LowbitError("E_FORMAT", "defineBlock offset: expected at least one level, got none. Name its format and span.");
  const zeroPoint = offset?.role === "zeroPoint";
  if (zeroPoint && (element.kind !== "int" || offset.levels.length !== 1))
    throw new LowbitError(
      "E_FORMAT",
      `defineBlock offset: expected an integer element and one level with role "zeroPoint", got ${element.name} and ${offset.levels.length} levels. Use role "min" for other elements.`,
    );
  if (options.name !== undefined && !NAME.test(options.name))
    throw new LowbitError(
      "E_FORMAT",
      `defineBlock name: expected lower case letters, digits and _, got "${options.name.slice(0, 40)}". Rename the format.`,
    );
  const name = options.name ?? blockName(element, scales, zeroPoint);
  const scaleRule = options.scaleRule ?? "max";
  const rangeRule = options.rangeRule ?? (offset && offset.role !== "mean" ? "minmax" : "narrow");
  const tail = options.tail ?? "short";
  const nonFinite = options.nonFinite ?? "error";
  if (nonFinite === "scale" && !scales[0].format.limits.hasNaN)
    throw new LowbitError(
      "E_FORMAT",
      `defineBlock nonFinite: expected a scale format with NaN for "scale", got ${scales[0].format.name}. Use "error".`,
    );
  if (offset?.role === "mean" && offset.levels.length !== 1)
    throw new LowbitError("E_FORMAT", `defineBlock offset: expected one level with role "mean", got ${offset.levels.length}.`);
  const freezeLevels = (levels: readonly ScaleLevel[]) =>
    Object.freeze(levels.map((l) => Object.freeze({ format: l.format, span: l.span })));
  const levelsJson = (levels: readonly ScaleLevel[]) => levels.map((l) => ({ format: l.format.definition, span: l.span }));
  return Object.freeze({
    kind: "block" as const,
    name,
    aliases: Object.freeze([...(options.aliases ?? [])]),
    spec: options.spec ?? `${element.name} with ${scales.map((s) => `${s.format.name} scale per ${spanName(s.span)}`).join(", ")}`,
    element,
    scales: freezeLevels(scales),
    ...(offset ? { offset: Object.freeze({ role: offset.role, levels: freezeLevels(offset.levels) }) } : {}),
    scaleRule,
    rangeRule,
    tail,
    nonFinite,
    definition: Object.freeze({
      kind: "block",
      name,
      element: element.definition,
      scales: levelsJson(scales),
      ...(offset ? { offset: { role: offset.role, levels: levelsJson(offset.levels) } } : {}),
      scaleRule,
      rangeRule,
      tail,
      ...(nonFinite === "error" ? {} : { nonFinite }),
    }),
    bitsPerValue(rows: number, k: number) {
      const levels = [...scales, ...(offset?.levels ?? [])];
      const extra = levels.reduce((sum, l) => sum + spanCount(l.span, rows, k) * l.format.bits, 0);
      return element.bits + extra / (rows * k);
    },
  });
}
