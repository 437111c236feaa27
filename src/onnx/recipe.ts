// The recipe: the options of the quantizer as a file, lowbit.config.json or .mjs. Plain JSON with a version; checked
// with errors that name the field. A module may hold functions as well. Found beside the model, or named.
import { LowbitError } from "../../formats/core/errors.ts";
import { nearest } from "../../formats/registry.ts";
import { readFile } from "../files/open.ts";
import { nodeFs, nodePath, nodeUrl } from "./calibrate/node.ts";
import { OPTIONS } from "./option-table.ts";
import type { QuantizeModelOptions } from "./options.ts";

/** Version of the recipe's fields. */
export const RECIPE_VERSION = 1;

/** Names that are looked for beside the model, the first found counts. */
const FILE_NAMES = ["lowbit.config.json", "lowbit.config.mjs"];

/**
 * The options that a recipe file can hold: all but functions and signals.
 * @example JSON.stringify(recipeOf({ dtype: "q4", onProgress: console.log })) // '{"version":1,"dtype":"q4"}'
 */
export function recipeOf(options: QuantizeModelOptions): Record<string, unknown> {
  const recipe: Record<string, unknown> = { version: RECIPE_VERSION };
  for (const { name, json } of OPTIONS) {
    const value = options[name];
    if (value === undefined || !json || typeof value === "function") continue;
    recipe[name] = plain(value);
  }
  return recipe;
}

/** Regular expressions as their text, format descriptors as their definition. */
function plain(value: unknown): unknown {
  if (value instanceof RegExp) return String(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  if ("definition" in value) return value.definition;
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, plain(entry)]));
}

/**
 * The options of a recipe.
 * @param label its name in messages: a path
 * @throws LowbitError E_VALUE for another version, an unknown field or a field of the wrong kind
 * @example parseRecipe({ version: 1, dtype: "q4", exclude: ["lm_head"] }, "recipe.json").dtype // "q4"
 */
export function parseRecipe(recipe: unknown, label: string): QuantizeModelOptions {
  const bad = (what: string, expected: string, got: string, remedy: string) =>
    new LowbitError("E_VALUE", `${label}: ${what}: expected ${expected}, got ${got}. ${remedy}`);
  if (typeof recipe !== "object" || recipe === null || Array.isArray(recipe))
    throw bad("recipe", "an object of options", Array.isArray(recipe) ? "a list" : String(recipe), "See docs/onnx.md for an example.");
  const { version = RECIPE_VERSION, $schema: _, ...options } = recipe as Record<string, unknown>;
  if (version !== RECIPE_VERSION)
    throw bad("version", String(RECIPE_VERSION), JSON.stringify(version), "Write it again with --print-config.");
  for (const [name, value] of Object.entries(options)) {
    const row = OPTIONS.find((option) => option.name === name);
    if (row === undefined) {
      const names = OPTIONS.filter(({ json }) => json).map((option) => option.name);
      throw bad(name, `one of ${names.join(", ")}`, "an unknown field", `Did you mean ${nearest(name, names)[0]}?`);
    }
    if (!row.accepts(value)) throw bad(name, row.expected, (JSON.stringify(value) ?? typeof value).slice(0, 80), "Correct its value.");
  }
  return options as QuantizeModelOptions;
}

/**
 * Reads the recipe at `path`, or the one beside `model`; {} where none is named and none is there.
 * @throws LowbitError E_IO, E_VALUE
 * @example
 * const options = await configFile("lowbit.json", "model.onnx");
 * await quantizeModel("model.onnx", "model_q8.onnx", options);
 */
export async function configFile(path: string | undefined, model: string): Promise<QuantizeModelOptions> {
  const { existsSync } = nodeFs();
  const { dirname, extname, join, resolve } = nodePath();
  const found = path ?? FILE_NAMES.map((name) => join(dirname(resolve(model)), name)).find((file) => existsSync(file));
  if (found === undefined) return {};
  const fail = (cause: unknown) =>
    new LowbitError(
      "E_IO",
      `${found}: expected a recipe (JSON, or a module with a default export), got ${(cause as Error).message}. Check --config.`,
      { cause },
    );
  if (/^\.[cm]?js$/.test(extname(found))) {
    let module: { default?: unknown };
    try {
      module = (await import(/* @vite-ignore */ nodeUrl().pathToFileURL(resolve(found)).href)) as { default?: unknown };
    } catch (cause) {
      throw fail(cause);
    }
    return parseRecipe(module.default, found);
  }
  let recipe: unknown;
  try {
    recipe = JSON.parse(new TextDecoder().decode(readFile(found)));
  } catch (cause) {
    throw fail(cause);
  }
  return parseRecipe(recipe, found);
}
