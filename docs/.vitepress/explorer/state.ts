// What a permalink of the number explorer holds, and what the page shows for it: pure functions over the library,
// tested in Node.
import {
  allFormats,
  arithmetic,
  bitCard,
  defineFormat,
  explainCode,
  explainValue,
  format,
  isLowbitError,
  type EncodeOptions,
  type Format,
  type FormatDefinition,
  type NumberFormat,
  type PackedTensor,
} from "../../../formats/index.ts";
import { hexCode } from "../../../formats/core/explain.ts";
import { readNumber } from "../../../formats/core/read-number.ts";
import { exactDecimal, valueTable, type ValueTableKind } from "../../../formats/core/value-table.ts";
import { exactDigits, exactResult, hexFloat } from "./exact";

export const ROUNDINGS = ["", "halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor"] as const;
export const OVERFLOWS = ["", "saturate", "inf", "nan", "error", "wrap"] as const;

/** All of it is text, as the fields of the page are: a link may hold what is half typed. */
export interface ExplorerState {
  /** A name, or a definition as JSON. */
  readonly format: string;
  readonly value: string;
  /** "" is the format's own. */
  readonly rounding: string;
  readonly overflow: string;
  /** The second operand of the arithmetic table. */
  readonly other: string;
  /** Values of a block, apart by spaces or commas. */
  readonly block: string;
  /** Formats beside this one, apart by spaces or commas. */
  readonly beside: string;
  /** The panel of a tensor of one's own: "" is closed, "open", or "sample" with the sample in it. A file is in no link. */
  readonly panel: string;
  /** Its tensor by name, bits a value and formats; "" is its own choice. */
  readonly tensor: string;
  readonly tensorBits: string;
  readonly tensorFormats: string;
}

export const START: ExplorerState = {
  format: "posit8_es2",
  value: "0.3",
  rounding: "",
  overflow: "",
  other: "1.5",
  block: "0.11 -0.52 0.03 0.98 -1.7 0.26 0.4 -0.08",
  beside: "float8_e4m3fn float8_e5m2 int8 float16",
  panel: "",
  tensor: "",
  tensorBits: "4.5",
  tensorFormats: "",
};
const KEYS: readonly (readonly [key: string, field: keyof ExplorerState])[] = [
  ["f", "format"],
  ["x", "value"],
  ["r", "rounding"],
  ["o", "overflow"],
  ["y", "other"],
  ["b", "block"],
  ["c", "beside"],
  ["p", "panel"],
  ["t", "tensor"],
  ["tb", "tensorBits"],
  ["tf", "tensorFormats"],
];

/** The part of a link after "#": what differs from the start. */
export function toHash(state: ExplorerState): string {
  const query = new URLSearchParams();
  for (const [key, field] of KEYS) if (state[field] !== START[field]) query.set(key, state[field]);
  return query.toString();
}

export function fromHash(hash: string): ExplorerState {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  return Object.fromEntries(KEYS.map(([key, field]) => [field, query.get(key) ?? START[field]])) as unknown as ExplorerState;
}

export interface ScalarView {
  readonly kind: "scalar";
  readonly format: NumberFormat;
  readonly code: number;
  readonly fields: readonly { readonly name: string; readonly bits: string; readonly meaning: string }[];
  readonly lines: readonly string[];
  /** All digits of the value, its hexadecimal form, how far its neighbours are. */
  readonly facts: readonly (readonly [name: string, text: string])[];
  readonly card: readonly string[];
  /** Results of the typed value (as a code) with the second operand (as a code); "-" where the format refuses. */
  readonly results: readonly (readonly [operation: string, exact: string, code: string, value: string])[];
  /** Finite values, ascending, of formats with at most 4,096 codes. */
  readonly values: Float64Array | undefined;
}

export interface BlockView {
  readonly kind: "block";
  readonly format: Format;
  readonly card: readonly string[];
  readonly packed: PackedTensor;
  readonly rows: readonly (readonly [value: number, stored: number, error: number])[];
  readonly sqnr: number;
}

/** What makes the view of a block: `blockView` of block.ts, which is fetched when it is first needed. */
export type BlockViewer = (f: Format, state: ExplorerState) => View;

export type View =
  | ScalarView
  | BlockView
  | { readonly kind: "error"; readonly message: string }
  | { readonly kind: "waiting"; readonly card: readonly string[] };

export function formatOf(text: string): Format {
  return text.trim().startsWith("{") ? defineFormat(JSON.parse(text) as FormatDefinition) : format(text.trim());
}

/** The text of a block with one value changed; places before it that are empty are zero. */
export function withValue(block: string, i: number, value: number): string {
  const values = block.split(/[\s,]+/).filter((part) => part !== "");
  while (values.length < i) values.push("0");
  values[i] = String(value);
  return values.join(" ");
}

/** All digits of a number, to be read back (`showNumber` of the library is for reading alone); -0 keeps its sign. */
export { exactDecimal as decimal, readNumber, valueTable as table, type ValueTableKind as TableKind };

function results(f: NumberFormat, options: object, a: number, b: number): ScalarView["results"] {
  const attempt = (name: string, exact: string, run: () => number): readonly [string, string, string, string] => {
    try {
      const code = run();
      return [name, exact, hexCode(code, f.bits), String(f.decode(code))];
    } catch (error) {
      return [name, exact, "-", error instanceof Error ? error.message : String(error)];
    }
  };
  const [x, y] = [f.decode(a), f.decode(b)];
  const math = arithmetic(f, options);
  return [
    attempt("a + b", exactResult("+", x, y), () => math.add(a, b)),
    attempt("a - b", exactResult("-", x, y), () => math.sub(a, b)),
    attempt("a * b", exactResult("*", x, y), () => math.mul(a, b)),
    attempt("a / b", exactResult("/", x, y), () => math.div(a, b)),
    attempt("sqrt a", exactResult("sqrt", x, 0), () => math.sqrt(a)),
    attempt("next a", "-", () => math.next(a)),
    attempt("previous a", "-", () => math.previous(a)),
  ];
}

/** What the lines of `explainValue` leave out: all digits, and the gaps to the values beside this one. */
function facts(f: NumberFormat, code: number): ScalarView["facts"] {
  const { value, below, above } = explainCode(f, code);
  const gaps = [
    ...(below === null ? [] : [`${exactResult("-", value, below.value)} below`]),
    ...(above === null ? [] : [`${exactResult("-", above.value, value)} above`]),
  ];
  return [
    ["exactly", exactDigits(value)],
    ["hexadecimal", hexFloat(value)],
    ...(gaps.length > 0 ? [["spacing", gaps.join(", ")] as const] : []),
  ];
}

/** The shortest decimal that is this float32. */
export function shortest(x: number): string {
  if (Object.is(x, -0)) return "-0";
  for (let digits = 1; digits <= 9; digits++) {
    const s = Number(x.toPrecision(digits));
    if (Math.fround(s) === Math.fround(x)) return String(s);
  }
  return String(x);
}

/** What the page shows. Whatever is half typed or refused is an error with the library's words. */
export function view(state: ExplorerState, blockView: BlockViewer | null): View {
  try {
    const f = formatOf(state.format);
    if (f.kind === "block" || f.kind === "opaque") return blockView?.(f, state) ?? { kind: "waiting", card: bitCard(f).lines };
    const x = readNumber(state.value);
    if (x === undefined)
      return { kind: "error", message: `value: expected a number (0.3, 2^-7, 0x1.8p3, NaN, -Infinity), got "${state.value}".` };
    // words that are no policy are refused by the library, in its own words
    const options = {
      ...(state.rounding ? { rounding: state.rounding } : {}),
      ...(state.overflow ? { overflow: state.overflow } : {}),
    } as EncodeOptions;
    const explained = explainValue(f, x, options);
    const y = readNumber(state.other);
    return {
      kind: "scalar",
      format: f,
      code: explained.code,
      fields: explained.fields,
      lines: explained.lines,
      facts: facts(f, explained.code),
      card: bitCard(f).lines,
      results: y === undefined ? [] : results(f, options, explained.code, f.encode(y, options)),
      values: f.order !== null && f.bits <= 12 ? f.order.values : undefined,
    };
  } catch (error) {
    if (isLowbitError(error) || error instanceof TypeError || error instanceof SyntaxError)
      return { kind: "error", message: error.message };
    throw error;
  }
}

/** The typed value after a bit is turned over. */
export function flip(f: NumberFormat, code: number, bit: number): string {
  const turned = Math.floor(code / 2 ** bit) % 2 === 1 ? code - 2 ** bit : code + 2 ** bit;
  return exactDecimal(f.decode(turned));
}

/** Places between 0 and 1 on a line that is logarithmic on both sides of zero, from the least of the values to the largest. */
export function scaleOf(values: Float64Array): (x: number) => number {
  const smallest = values.reduce((least, v) => (v !== 0 ? Math.min(least, Math.abs(v)) : least), Infinity);
  const at = (v: number): number => Math.sign(v) * Math.log2(1 + Math.abs(v) / smallest);
  const [low, high] = [at(values[0]), at(values[values.length - 1])];
  return (x) => Math.min(1, Math.max(0, (at(x) - low) / (high - low)));
}

export const formatNames = (): string[] => allFormats.map((f) => f.name);
