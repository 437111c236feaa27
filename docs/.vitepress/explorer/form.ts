// The form of a format of one's own, and the text that it stands for. Pure data and functions, tested in Node.

/**
 * What the form of one's own format asks for, by kind: field, label, value to begin with, and the choices where they
 * are few.
 */
export const FORM = {
  float: [
    ["exponentBits", "exponent bits", "3"],
    ["mantissaBits", "mantissa bits", "2"],
    ["bias", "bias", "3"],
    ["specials", "specials", "finite", ["finite", "ieee", "fn", "fnuz", "p3109"]],
  ],
  posit: [
    ["bits", "bits", "8"],
    ["es", "exponent bits (es)", "2"],
  ],
  int: [
    ["bits", "bits", "5"],
    ["signed", "signed", "true", ["true", "false"]],
  ],
  codebook: [["values", "values, ascending", "-1 -0.4 0.1 0.9"]],
  block: [
    ["element", "element format", "float4_e2m1fn"],
    ["scale", "scale format", "float8_e4m3fn"],
    ["span", "values that share a scale: a number, row, tensor", "16"],
  ],
} as const satisfies Record<string, readonly (readonly [string, string, string, (readonly string[])?])[]>;

export type FormKind = keyof typeof FORM;

/** The fields that a format in force fills the form with; undefined for one that the form has no kind for. */
export function formFields(definition: object): { readonly kind: FormKind; readonly fields: Record<string, string> } | undefined {
  const given = definition as Record<string, unknown>;
  if (typeof given.kind !== "string" || !Object.hasOwn(FORM, given.kind) || given.kind === "block") return undefined;
  const kind = given.kind as FormKind;
  const text = (value: unknown): string => (Array.isArray(value) ? value.join(" ") : String(value));
  const known = FORM[kind].filter(([name]) => given[name] !== undefined);
  return { kind, fields: Object.fromEntries(known.map(([name]) => [name, text(given[name])])) };
}

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
