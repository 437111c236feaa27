// What happens to each layer: by dtype or format, by rules, by names and operators. Nothing is written here, and
// weights are read for their signs only.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Format, FormatDefinition } from "../../formats/core/types.ts";
import { defineFormat } from "../../formats/define/index.ts";
import { format as formatByName } from "../../formats/registry.ts";
import { TensorProto_DataType as T } from "./file/gen/onnx_pb.ts";
import type { Scope } from "./graph/graph.ts";
import { dtypeRow, type Dtype } from "./dtypes.ts";
import type { Layer } from "./layers.ts";
import { unknownReason } from "./layers.ts";
import type { AlgorithmChoice, FormatChoice, LayerRule, QuantizeOptions } from "./options.ts";
import { nameFilter, nameMatcher } from "./patterns.ts";
import { TARGETS } from "./targets/index.ts";
import type { Target, TargetContext } from "./targets/target.ts";
import type { TargetName } from "./dtypes.ts";
import { largeReason, layerType, maskReason, oneScaleDecibels, signReason } from "./weights.ts";

/** What a layer becomes. */
export interface Decision {
  readonly target: Target;
  readonly format: Format;
  /** The dtype that chose the format: its rounding is onnxruntime's. null where the user named a format. */
  readonly dtype: Dtype | null;
  /** undefined: round to nearest. */
  readonly algorithm: AlgorithmChoice | undefined;
}

/** Asks for a layer's fate: a decision, or the reason why it stays. */
export interface Decider {
  of(layer: Layer): Decision | string;
  /** The targets in use. */
  readonly targets: () => Target[];
}

/** A format by any of its spellings. @throws LowbitError E_FORMAT, E_FORMAT_UNKNOWN */
export function resolveFormat(choice: FormatChoice): Format {
  if (typeof choice === "string") return formatByName(choice);
  // a descriptor has functions, a definition is plain
  return "definition" in choice ? (choice as Format) : defineFormat(choice as FormatDefinition);
}

/** Operators in whose presence q8 has unsigned weights (transformers.js). */
const UNSIGNED_IF: ReadonlySet<string> = new Set(["Conv", "GroupQueryAttention", "MultiHeadAttention"]);

/** Targets to try, the fastest first, where a format comes without one. */
const BY_SPEED: readonly TargetName[] = ["matmulnbits", "stored"];

/** What `options` or a rule ask for. */
interface Wish {
  readonly dtype: Dtype | null;
  readonly format: Format | null;
  readonly target: TargetName | undefined;
  readonly algorithm: AlgorithmChoice | undefined;
}

const wishOf = (from: QuantizeOptions | LayerRule, base?: Wish): Wish => {
  const dtype = from.dtype === undefined ? null : dtypeRow(from.dtype)!;
  const format = from.format === undefined ? null : resolveFormat(from.format);
  const given = dtype !== null || format !== null;
  return {
    dtype: given ? dtype : (base?.dtype ?? null),
    format: given ? format : (base?.format ?? null),
    target: from.target ?? (given ? undefined : base?.target),
    algorithm: from.algorithm ?? base?.algorithm,
  };
};

/**
 * @param found all layers of the model
 * @throws LowbitError E_ONNX for patterns, rules and operators that match nothing, E_FORMAT_UNKNOWN
 */
export function decider(context: TargetContext, found: readonly Layer[]): Decider {
  const { options, scopes } = context;
  const names = [...new Set(found.map((layer) => layer.name))];
  const filter = nameFilter(options, names);
  const keep = (options.keep ?? []).map((pattern) => ({ pattern, matches: nameMatcher("keep", pattern, allNames(scopes)) }));
  const keepOps = new Set(options.keepOps);
  const base = wishOf(options);
  const rules = (options.rules ?? []).map((rule, i) => ({
    rule,
    matches: nameMatcher(`rules[${i}].match`, rule.match, names),
    wish: wishOf(rule, base),
  }));
  checkOpTypes(options, found);
  const unsigned = scopes.some(({ graph }) => graph.node.some((node) => UNSIGNED_IF.has(node.opType)));
  const targets = new Map<TargetName, Target>();
  const target = (name: TargetName): Target => {
    let made = targets.get(name);
    if (made === undefined) targets.set(name, (made = TARGETS.get(name)!()));
    return made;
  };

  /** Do options ask for layers by name, or for their operators? */
  const named = options.opTypes !== undefined || options.include !== undefined;
  const inTarget = (layer: Layer, wish: Wish, name: TargetName, byRule: boolean): Decision | string => {
    const made = target(name);
    const type = layer.node.opType;
    const wanted = options.opTypes ?? made.defaultOpTypes;
    if (!made.opTypes.includes(type)) return unknownReason(layer, wish.dtype?.name ?? `target ${name}`);
    if (!wanted.includes(type))
      return options.opTypes === undefined ? `${type} is not quantized unless opTypes (--op-types) names it` : "not among opTypes";
    const { blockSize, symmetric, perChannel } = options;
    const half = layerType(layer) === T.FLOAT16;
    const oneScale = (): number => oneScaleDecibels(context.model, layer);
    const asked = wish.format ?? wish.dtype!.format!({ opType: type, half, unsigned, blockSize, symmetric, perChannel, oneScale });
    const format = made.adapt?.(layer, asked) ?? asked;
    const reason =
      made.reason(layer, format, context) ??
      largeReason(context.model, layer, format) ??
      maskReason(context.model, layer) ??
      signReason(context.model, layer, format);
    const advice = named || byRule || wish.dtype === null ? undefined : made.advice?.(layer, context);
    return reason ?? advice ?? { target: made, format, dtype: wish.dtype, algorithm: wish.algorithm };
  };

  const decide = (layer: Layer): Decision | string => {
    const byRule = rules.find(({ matches }) => matches(layer.name));
    if (byRule?.rule.keep) return byRule.rule.reason ?? `kept by the rule ${String(byRule.rule.match)}`;
    const kept = keep.find(({ matches }) => matches(layer.name));
    if (kept !== undefined) return `kept by ${String(kept.pattern)}`;
    if (keepOps.has(layer.node.opType)) return `kept: ${layer.node.opType} is among keepOps`;
    const left = filter(layer.name);
    if (left !== undefined) return left;
    const wish = byRule?.wish ?? base;
    const one = wish.target ?? wish.dtype?.target;
    if (one !== undefined && one !== null) return inTarget(layer, wish, one, byRule !== undefined);
    const tries = BY_SPEED.map((name) => inTarget(layer, wish, name, byRule !== undefined));
    const fits = (result: Decision | string): boolean =>
      typeof result !== "string" && (result.target.isNative?.(layer, result.format) ?? true);
    return tries.find(fits) ?? tries[tries.length - 1];
  };
  const known = new Map<Layer, Decision | string>();
  return {
    of(layer) {
      let result = known.get(layer);
      if (result === undefined) known.set(layer, (result = decide(layer)));
      return result;
    },
    targets: () => [...targets.values()],
  };
}

const allNames = (scopes: readonly Scope[]): string[] =>
  scopes.flatMap(({ graph }) => graph.node.map((node) => node.name || (node.output.find((name) => name !== "") ?? node.opType)));

function checkOpTypes(options: QuantizeOptions, found: readonly Layer[]): void {
  if (options.opTypes === undefined) return;
  const there = [...new Set(found.map((layer) => layer.node.opType))];
  if (options.opTypes.some((type) => there.includes(type))) return;
  throw new LowbitError(
    "E_ONNX",
    `opTypes: expected operators with a weight in this model, got ${options.opTypes.join(", ")}. It has: ${there.join(", ") || "none"}.`,
  );
}
