// Rounding and overflow as options of commands that encode numbers.
import type { EncodeOptions, Overflow, Rounding } from "../../formats/core/types.ts";
import { nearest } from "../../formats/registry.ts";
import type { OptionSpec, ParsedArgs } from "./spec.ts";
import { usageError } from "./spec.ts";

const ROUNDINGS: readonly Rounding[] = ["halfEven", "halfExpand", "halfTrunc", "halfCeil", "halfFloor", "trunc", "expand", "ceil", "floor"];
const OVERFLOWS: readonly Overflow[] = ["saturate", "inf", "nan", "error", "wrap"];

export const POLICIES: Readonly<Record<"rounding" | "overflow", OptionSpec>> = {
  rounding: { value: "MODE", help: ROUNDINGS.join(", ") },
  overflow: { value: "MODE", help: OVERFLOWS.join(", ") },
};

/** @throws LowbitError E_CLI for names that are none */
export const policies = (args: ParsedArgs): EncodeOptions => ({
  ...(args.flag("rounding") ? { rounding: choice(args, "rounding", ROUNDINGS) } : {}),
  ...(args.flag("overflow") ? { overflow: choice(args, "overflow", OVERFLOWS) } : {}),
});

function choice<T extends string>(args: ParsedArgs, name: string, known: readonly T[]): T {
  const text = args.text(name) ?? "";
  const found = known.find((word) => word.toLowerCase() === text.toLowerCase());
  if (found === undefined)
    throw usageError(`--${name}: expected one of ${known.join(", ")}, got ${text}. Did you mean ${nearest(text, known)[0]}?`);
  return found;
}
