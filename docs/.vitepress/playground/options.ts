// What the controls of the playground offer, and the recipe that they make.
import type { AlgorithmName, LayerRule } from "../../../src/onnx/index.ts";
import { DTYPES } from "../../../src/onnx/dtypes.ts";

/** Formats that are listed first; any other can be typed. */
export const FORMATS = ["int4_b32", "uint4_b32_zp", "int3_b32", "int2_b32", "int8_b32", "int8_row", "mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp8_e4m3", "nf4_b64", "float8_e4m3fn_row", "posit8_es2_row"]; // prettier-ignore

export const DTYPE_CHOICES = DTYPES.map(({ name, summary }) => ({ name, summary }));

/** Algorithms, and which of them look at data. Their code is the worker's. */
export const ALGORITHM_CHOICES: readonly { readonly name: AlgorithmName; readonly data: boolean }[] = [
  ...(["rtn", "mse", "hqq"] as const).map((name) => ({ name, data: false })),
  ...(["awq", "gptq", "mrgptq", "adaround", "refit"] as const).map((name) => ({ name, data: true })),
];

export interface Controls {
  /** "" where a format is typed. */
  readonly dtype: string;
  readonly format: string;
  readonly algorithm: string;
  /** By layer: "" as above, "keep", a dtype or a format. */
  readonly layers: Readonly<Record<string, string>>;
  /** Options as JSON, which add to and win over the controls. */
  readonly more: string;
}

/** A name in a glob as itself. */
const literal = (name: string): string => `/^${name.replaceAll(/[.*+?^${}()|[\]\\/]/g, "\\$&")}$/`;

function ruleOf(name: string, choice: string): LayerRule {
  const match = literal(name);
  if (choice === "keep") return { match, keep: true };
  return DTYPES.some((dtype) => dtype.name === choice) ? { match, dtype: choice as LayerRule["dtype"] } : { match, format: choice };
}

/**
 * The recipe.
 * @throws SyntaxError, TypeError for `more`
 */
export function recipe({ dtype, format, algorithm, layers, more }: Controls): Record<string, unknown> {
  const rules = Object.entries(layers).filter(([, choice]) => choice !== "").map(([name, choice]) => ruleOf(name, choice)); // prettier-ignore
  const typed: unknown = more.trim() === "" ? {} : JSON.parse(more);
  if (typeof typed !== "object" || typed === null || Array.isArray(typed)) throw new TypeError('more options: expected {"name": value}.');
  const { rules: also = [], ...rest } = typed as { rules?: LayerRule[] };
  const all = [...rules, ...also];
  return {
    ...(dtype === "" ? { format: format.trim() } : { dtype }),
    ...(algorithm === "rtn" || algorithm === "" ? {} : { algorithm }),
    ...(all.length === 0 ? {} : { rules: all }),
    ...rest,
  };
}
