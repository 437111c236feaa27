// Makes the frozen NumberFormat of a definition: a table codec to 16 bits (the table is built on first use), a rule
// codec above.
import { LowbitError } from "./errors.ts";
import { checkEncodeOptions, isA } from "./check.ts";
import { latticeOf, tableLimits, valueOrder, type TableSource } from "./table.ts";
import type { Access, EncodeDefaults, EncodeOptions, Field, FormatDefinition, Limits, NumberFormat, ValueOrder } from "./types.ts";

/** What all scalar builders hand over. */
export interface CodecParts {
  readonly kind: NumberFormat["kind"];
  readonly name: string;
  readonly aliases?: readonly string[];
  readonly bits: number;
  readonly spec: string;
  readonly fields: readonly Field[];
  readonly fieldsOf?: NumberFormat["fieldsOf"];
  readonly ordering?: NumberFormat["ordering"];
  readonly scaleTo?: number;
  readonly defaults: EncodeDefaults;
  readonly definition: FormatDefinition;
  readonly onnx?: number;
  /** Exact value of a code, by rule. */
  readonly decode: (code: number) => number;
  /** Access where the values form no lattice; default "table". */
  readonly access?: Access;
  /** Up to 16 bits: everything but the table itself. */
  readonly source?: Omit<TableSource, "name" | "bits" | "table" | "defaults">;
  /** The scalar encoder by rule. Up to 16 bits it must equal the table's for every value, which the tests check. */
  readonly encode?: EncodeFunction;
  /**
   * Instead of `encode`, up to 16 bits: `tableEncoder` itself, handed in so that formats which encode by rule do not
   * carry it.
   */
  readonly encodeBy?: (source: TableSource, order: ValueOrder) => EncodeFunction;
  /** Limits by rule: required above 16 bits, derived from the table below. */
  readonly limits?: Limits;
}

export type EncodeFunction = (value: number, options?: EncodeOptions) => number;

/** What names of formats are. */
export const NAME = /^[a-z][a-z0-9_]*$/;

const unchecked = new WeakMap<object, EncodeFunction>();

/** `format.encode` without its checks of arguments, for loops whose entry has made them. */
export const uncheckedEncode = (format: NumberFormat): EncodeFunction => unchecked.get(format) ?? format.encode;

/** @throws LowbitError E_FORMAT for a bad name or width, or a default policy that does not exist */
export function makeCodec(parts: CodecParts): NumberFormat {
  const { name, bits } = parts;
  if (typeof name !== "string" || !NAME.test(name))
    throw new LowbitError(
      "E_FORMAT",
      `format name: expected lower case letters, digits and _, got ${typeof name === "string" ? `"${name}"` : "none"}. Name the format.`,
    );
  try {
    checkEncodeOptions(`${name} defaults`, parts.defaults);
  } catch (cause) {
    throw new LowbitError("E_FORMAT", (cause as Error).message, { cause });
  }
  const widest = 2 ** bits - 1;
  const checkArguments = (value: number, options?: EncodeOptions) => {
    if (typeof value !== "number") throw new TypeError(`${name}: expected a number, got ${isA(value)}. Convert it with Number(value).`);
    if (options !== undefined) checkEncodeOptions(name, options);
  };
  const checkCode = (code: number) => {
    if (!(Number.isInteger(code) && code >= 0 && code <= widest))
      throw new RangeError(`${name}: expected a code in 0..${widest}, got ${code}. Codes are unsigned integers of ${bits} bits.`);
  };
  const common = {
    kind: parts.kind,
    name,
    aliases: Object.freeze([...(parts.aliases ?? [])]),
    bits,
    spec: parts.spec,
    fields: Object.freeze(parts.fields.map((f) => Object.freeze({ ...f }))),
    defaults: Object.freeze(parts.defaults),
    definition: Object.freeze(parts.definition),
    ...(parts.onnx === undefined ? {} : { onnx: parts.onnx }),
    ...(parts.fieldsOf === undefined ? {} : { fieldsOf: parts.fieldsOf }),
    ...(parts.ordering === undefined ? {} : { ordering: parts.ordering }),
    ...(parts.scaleTo === undefined ? {} : { scaleTo: parts.scaleTo }),
  };

  if (bits > 16) {
    const { encode, limits, decode } = parts;
    if (!encode || !limits) throw new TypeError(`${name}: a format of ${bits} bits needs an encoder and limits by rule.`);
    const made = Object.freeze({
      ...common,
      limits: Object.freeze(limits),
      access: parts.access ?? Object.freeze({ kind: "rule" as const }),
      table: null,
      order: null,
      decode(code: number) {
        checkCode(code);
        return decode(code);
      },
      encode(value: number, options?: EncodeOptions) {
        checkArguments(value, options);
        return encode(value, options);
      },
    });
    unchecked.set(made, encode);
    return made;
  }

  // Built on first use: importing a format costs nothing. The memo hangs on closures because the descriptor is frozen.
  let source: TableSource | undefined;
  let order: ValueOrder | undefined;
  let encoder: EncodeFunction | undefined;
  let limits: Limits | undefined;
  let access: Access | undefined;
  const getSource = () =>
    (source ??= {
      ...parts.source!,
      name,
      bits,
      defaults: parts.defaults,
      table: Float64Array.from({ length: 2 ** bits }, (_, c) => parts.decode(c)),
    });
  const getOrder = () => (order ??= valueOrder(getSource()));
  const encode: EncodeFunction = (value, options) => (encoder ??= parts.encode ?? parts.encodeBy!(getSource(), getOrder()))(value, options);
  const made = Object.freeze({
    ...common,
    get limits() {
      return (limits ??= tableLimits(getSource(), getOrder()));
    },
    get access() {
      return (access ??= (bits <= 8 ? latticeOf(getOrder().values) : null) ?? parts.access ?? Object.freeze({ kind: "table" as const }));
    },
    get table() {
      return getSource().table;
    },
    get order() {
      return getOrder();
    },
    decode(code: number) {
      checkCode(code);
      return getSource().table[code];
    },
    encode(value: number, options?: EncodeOptions) {
      checkArguments(value, options);
      return encode(value, options);
    },
  });
  unchecked.set(made, encode);
  return made;
}
