// lowbit/formats/define: the builders, and the way back from a definition (plain JSON, as packed tensors carry it) to a
// format.
import { LowbitError } from "../core/errors.ts";
import type { BlockFormat, Format, FormatDefinition, NumberFormat, OpaqueFormat, ScaleLevel } from "../core/types.ts";
import { bipolarByName, defineBipolarInt } from "./bipolar.ts";
import { defineBlock, type BlockOptions } from "./block.ts";
import { defineCodebook } from "./codebook.ts";
import { defineFixed, fixedByName, type FixedOptions } from "./fixed.ts";
import { defineFloat, floatByName, type FloatOptions } from "./float.ts";
import { defineHifloat8 } from "./hifloat.ts";
import { defineInt, intByName, type IntOptions } from "./int.ts";
import { defineLns, lnsByName, type LnsOptions } from "./lns.ts";
import { defineOlive, oliveByName } from "./olive.ts";
import { defineOpaque, opaqueByName, type OpaqueOptions } from "./opaque.ts";
import { p3109ByName } from "./p3109.ts";
import { definePosit, positByName } from "./posit.ts";
import { defineTakum, takumByName, type TakumOptions } from "./takum.ts";

export { defineBinary8, defineP3109, type P3109Domain, type P3109Options } from "./p3109.ts";
export { affineFromBipolar, bipolarFromAffine, type Affine, type BipolarOptions, type BipolarTensor } from "./bipolar.ts";
export { quireBits, type PositOptions } from "./posit.ts";
export type { CodebookOptions } from "./codebook.ts";
export {
  defineBipolarInt,
  defineBlock,
  defineCodebook,
  defineFixed,
  defineFloat,
  defineInt,
  defineLns,
  defineOlive,
  defineOpaque,
  definePosit,
  defineTakum,
};
export type { BlockOptions, FixedOptions, FloatOptions, IntOptions, LnsOptions, OpaqueOptions, TakumOptions };
export type { FloatSpecials } from "./float.ts";

/**
 * Parametric scalar names: int5, posit6_es1, bipolar9, binary6p3ue, float_e3m2, takum_linear12, lns8_f3, q4_12. Each
 * returns undefined for a name that is not its own.
 */
export const scalarsByName: readonly ((name: string) => NumberFormat | undefined)[] = [
  intByName,
  positByName,
  bipolarByName,
  p3109ByName,
  fixedByName,
  floatByName,
  takumByName,
  lnsByName,
];

const builders: Record<string, (definition: never) => Format> = {
  int: defineInt as (d: never) => Format,
  float: defineFloat as (d: never) => Format,
  posit: definePosit as (d: never) => Format,
  bipolar: defineBipolarInt as (d: never) => Format,
  codebook: defineCodebook as (d: never) => Format,
  fixed: defineFixed as (d: never) => Format,
  takum: defineTakum as (d: never) => Format,
  lns: defineLns as (d: never) => Format,
  hifloat8: defineHifloat8,
  block: (d: FormatDefinition) => blockOf(d),
  opaque: (d: FormatDefinition) => opaqueOf(d),
};

/**
 * The format of a definition.
 * @throws LowbitError E_FORMAT when the definition is not sound
 * @example
 * const stored = JSON.stringify(defineInt({ bits: 5, signed: true }).definition);
 * defineFormat(JSON.parse(stored) as FormatDefinition).name // "int5"
 */
export function defineFormat(definition: FormatDefinition): Format {
  const build = typeof definition === "object" && definition !== null ? builders[definition.kind] : undefined;
  if (build === undefined || !Object.hasOwn(builders, definition.kind))
    throw new LowbitError(
      "E_FORMAT",
      `format definition: expected kind ${Object.keys(builders).join(", ")}, got ${JSON.stringify(definition)?.slice(0, 80)}. Was it written by a newer version?`,
    );
  try {
    return build(definition as never);
  } catch (error) {
    if (error instanceof LowbitError) throw error;
    throw new LowbitError(
      "E_FORMAT",
      `format definition: expected the fields of kind "${definition.kind}", got ${JSON.stringify(definition).slice(0, 120)}.`,
      {
        cause: error,
      },
    );
  }
}

function numberFormatOf(definition: FormatDefinition): NumberFormat {
  const f = defineFormat(definition);
  if (f.kind === "block" || f.kind === "opaque")
    throw new LowbitError(
      "E_FORMAT",
      `format definition: expected a scalar format as element or scale, got "${f.name}". Nest scalar formats only.`,
    );
  return f;
}

function blockOf(d: FormatDefinition): BlockFormat {
  const levels = (list: unknown): ScaleLevel[] =>
    (list as { format: FormatDefinition; span: ScaleLevel["span"] }[]).map((l) => ({ format: numberFormatOf(l.format), span: l.span }));
  const offset = d.offset as { role: "zeroPoint" | "min" | "mean"; levels: unknown } | undefined;
  return defineBlock({
    ...(d as unknown as BlockOptions),
    element: numberFormatOf(d.element as FormatDefinition),
    scales: levels(d.scales),
    ...(offset ? { offset: { role: offset.role, levels: levels(offset.levels) } } : {}),
  });
}

/** Functions cannot be stored: the format must be defined in this process, with the same sizes. */
function opaqueOf(d: FormatDefinition): OpaqueFormat {
  const known = opaqueByName(d.name) ?? oliveByName(String(d.name));
  if (known === undefined || known.blockSize !== d.blockSize || known.blockBytes !== d.blockBytes)
    throw new LowbitError(
      "E_FORMAT",
      `format definition: expected an opaque format defined in this process, got ${JSON.stringify(d).slice(0, 80)}. Import or define it first.`,
    );
  return known;
}
