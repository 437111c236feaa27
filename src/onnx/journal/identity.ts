// What makes two runs the same: the version, the recipe, the graph and the calibration data. Weights are compared layer
// by layer (store.ts), so that nobody has to read all of a large model to know it.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { OnnxModel } from "../file/model.ts";
import type { QuantizeModelOptions } from "../options.ts";
import { recipeOf } from "../recipe.ts";
import type { Feeds } from "../verify/feeds.ts";
import { hashFeeds, hashModel } from "./hashes.ts";
import type { RecordMeta } from "./log.ts";
import { LIBRARY_VERSION } from "./version.ts";

/** The first record of every log. */
export interface Identity extends RecordMeta {
  readonly kind: "run";
  readonly version: string;
  /** The options, as a recipe: what makes the numbers, and how the file is written. */
  readonly recipe: Readonly<Record<string, unknown>>;
  /** SHA-256 of the graph, of small tensors, and of the sizes of others. */
  readonly model: string;
  /** SHA-256 of the calibration data; "" without. */
  readonly calibration: string;
}

/** Options of a recipe that say where and how, not what. */
const NOT_COMPARED: ReadonlySet<string> = new Set(["calibration", "statistics", "force", "followLinks"]);

/**
 * @param data calibration data, or the hash of their statistics
 * @throws TypeError for options that cannot be compared: functions
 */
export function identityOf(model: OnnxModel, options: QuantizeModelOptions, data: readonly Feeds[] | string | null): Identity {
  const { algorithm, rules = [] } = options;
  if ([algorithm, ...rules.map((rule) => rule.algorithm)].some((one) => typeof one === "function"))
    throw new TypeError("resume, shard: expected algorithms by name, got a function, which two runs cannot compare. Give its name.");
  const calibration = typeof options.calibration === "string" ? { calibration: options.calibration } : {};
  const recipe = { ...recipeOf({ ...options, calibration: undefined }), ...calibration };
  return {
    kind: "run",
    version: LIBRARY_VERSION,
    recipe,
    model: hashModel(model),
    calibration: data === null ? "" : typeof data === "string" ? data : hashFeeds(data),
  };
}

const compared = (recipe: Identity["recipe"]): Map<string, string> =>
  new Map(
    Object.entries(recipe)
      .filter(([key]) => !NOT_COMPARED.has(key))
      .map(([key, value]) => [key, JSON.stringify(value) ?? "none"]),
  );

/** How another run differs from this one, in words; undefined: it does not. */
export function differenceOf(theirs: Partial<Identity>, ours: Identity): string | undefined {
  if (theirs.version !== ours.version) return `version ${String(theirs.version)} instead of ${ours.version}`;
  if (theirs.model !== ours.model) return "another model";
  if (theirs.calibration !== ours.calibration) return "other calibration data";
  const [before, now] = [compared(theirs.recipe ?? {}), compared(ours.recipe)];
  for (const key of new Set([...before.keys(), ...now.keys()]))
    if (before.get(key) !== now.get(key)) return `another recipe: ${key} ${before.get(key) ?? "none"} instead of ${now.get(key) ?? "none"}`;
  return undefined;
}

/** The identity that a log begins with. @throws LowbitError E_CONTAINER */
export function readIdentity(path: string, meta: RecordMeta | undefined): Identity {
  if (meta?.kind === "run" && typeof meta.model === "string" && typeof meta.recipe === "object") return meta as Identity;
  throw new LowbitError("E_CONTAINER", `${path}: expected a journal or shard of lowbit quantize, got another file. Check its name.`);
}
