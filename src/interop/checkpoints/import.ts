// importCheckpoint: a folder as transformers saves it (config.json, safetensors) with its quantized layers as packed
// tensors, codes untouched, and everything else as the tensors that they are.
import { LowbitError } from "../../../formats/core/errors.ts";
import { disk, nodePath, statOf } from "../../files/calls.ts";
import { readFile } from "../../files/open.ts";
import { readSafetensors, type SafeTensor, type SafetensorsFile } from "../safetensors/read.ts";
import {
  awqLayer,
  bnb4Layer,
  bnb8Layer,
  compressedLayer,
  gptqLayer,
  type CompressedWeights,
  type ImportedLayer,
  type Module,
} from "./methods.ts";
import { torchaoLayer, torchaoWeights } from "./torchao.ts";

/** A checkpoint: its quantized layers are read when asked for. */
export interface Checkpoint {
  /** gptq, awq, compressed-tensors, bitsandbytes, torchao, or none. */
  readonly method: string;
  readonly config: Readonly<Record<string, unknown>>;
  /** By the name of the module: model.layers.0.self_attn.q_proj. */
  readonly layers: ReadonlyMap<string, () => Promise<ImportedLayer>>;
  /** Everything that belongs to no quantized layer, by its full name. */
  readonly tensors: ReadonlyMap<string, SafeTensor>;
  close(): Promise<void>;
}

/** Which tensors make a module a quantized one (or which modules are, by the metadata), and what reads it. */
interface Method {
  readonly marks: readonly string[];
  readonly modules?: (file: SafetensorsFile) => Iterable<string>;
  readonly read: (name: string, module: Module, config: Record<string, unknown>, file: SafetensorsFile) => Promise<ImportedLayer>;
}

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);

function bitsOf(config: Record<string, unknown>): number {
  const bits = Number(config.bits ?? config.w_bit);
  if (![2, 3, 4, 8].includes(bits))
    throw new LowbitError("E_UNSUPPORTED", `quantization_config.bits: expected 2, 3, 4 or 8, got ${JSON.stringify(config.bits)}.`);
  return bits;
}

const METHODS: ReadonlyMap<string, Method> = new Map<string, Method>([
  ["gptq", { marks: ["qweight"], read: (name, module, c) => gptqLayer(name, module, bitsOf(c), c.checkpoint_format !== "gptq_v2") }],
  ["awq", { marks: ["qweight"], read: (name, module, c) => awqLayer(name, module, bitsOf(c)) }],
  [
    "compressed-tensors",
    { marks: ["weight_packed", "weight_scale"], read: (name, module, c) => compressedLayer(name, module, groupOf(name, c)) },
  ],
  [
    "bitsandbytes",
    { marks: ["weight.absmax", "SCB"], read: (name, module) => (module.has("SCB") ? bnb8Layer(name, module) : bnb4Layer(name, module)) },
  ],
  [
    "torchao",
    {
      marks: [],
      modules: (file) => torchaoWeights(file.metadata).keys(),
      read: (name, module, _, file) => torchaoLayer(name, module, torchaoWeights(file.metadata).get(name)!),
    },
  ],
]);

/** The `weights` of the config group that a module belongs to: the first whose targets fit. */
function groupOf(name: string, config: Record<string, unknown>): CompressedWeights {
  const groups = isObject(config.config_groups) ? Object.values(config.config_groups).filter(isObject) : [];
  const fits = (target: unknown): boolean =>
    typeof target === "string" &&
    (target === "Linear" || name === target || name.endsWith(`.${target}`) || (target.startsWith("re:") && matches(target.slice(3), name)));
  const group = groups.find((g) => !Array.isArray(g.targets) || g.targets.some(fits)) ?? groups[0];
  const weights = isObject(group) ? group.weights : undefined;
  if (!isObject(weights) || !Number.isInteger(weights.num_bits) || typeof weights.type !== "string")
    throw new LowbitError(
      "E_CONTAINER",
      `quantization_config.config_groups: expected weights { num_bits, type } for ${name}, got ${JSON.stringify(group)?.slice(0, 120)}.`,
    );
  return weights as unknown as CompressedWeights;
}

/** Most repetitions without end of a pattern, and most letters of a name, that take no time to speak of. */
const [REPETITIONS, LETTERS] = [4, 200];

/**
 * Could matching take time beyond all measure? Repeated groups that repeat or choose inside do, and many repetitions: a
 * pattern comes from a file.
 */
function isCostly(text: string): boolean {
  const open: boolean[] = [];
  let repetitions = 0;
  const plain = text.replace(/\\./gs, "x").replace(/\[[^\]]*\]/g, "x");
  for (let i = 0; i < plain.length; i++) {
    const inner = plain[i] === ")" && open.pop() === true;
    if (plain[i] === "(") open.push(false);
    else if (plain[i] === ")") {
      if (inner && "*+{".includes(plain[i + 1] ?? " ")) return true;
      if (inner && open.length > 0) open[open.length - 1] = true;
    } else if ("*+{|".includes(plain[i])) {
      if (plain[i] !== "|") repetitions++;
      if (open.length > 0) open[open.length - 1] = true;
    }
  }
  return repetitions > REPETITIONS;
}

/** Does a name begin with a pattern of the configuration? */
function matches(text: string, name: string): boolean {
  const wrong = (expected: string, got: string, cause?: unknown): LowbitError =>
    new LowbitError("E_CONTAINER", `quantization_config targets: expected ${expected}, got ${JSON.stringify(got.slice(0, 80))}.`, {
      cause,
    });
  if (isCostly(text)) throw wrong(`a pattern of at most ${REPETITIONS} repetitions, none inside another`, text);
  if (name.length > LETTERS) throw wrong(`names of at most ${LETTERS} letters for a pattern`, name);
  try {
    return new RegExp(`^(?:${text})`).test(name);
  } catch (cause) {
    throw wrong("a regular expression", text, cause);
  }
}

/**
 * Opens a checkpoint folder (Node).
 * @throws LowbitError E_IO, E_CONTAINER for missing shards and damaged files, E_UNSUPPORTED for other quantization
 * methods
 * @example
 * const { layers } = await importCheckpoint("Llama-3.2-1B-GPTQ");
 * const { packed } = await layers.get("model.layers.0.mlp.up_proj")!();
 */
export async function importCheckpoint(folder: string): Promise<Checkpoint> {
  const { join } = nodePath();
  const read = (name: string): unknown => {
    const bytes = readFile(join(folder, name));
    try {
      return JSON.parse(new TextDecoder().decode(bytes));
    } catch (cause) {
      throw new LowbitError(
        "E_IO",
        `${join(folder, name)}: expected the JSON of a checkpoint, got ${(cause as Error).message.slice(0, 120)}. Give the folder that transformers saved.`,
        { cause },
      );
    }
  };
  const has = (name: string): boolean => statOf(join(folder, name)) !== undefined;
  const config = read("config.json");
  if (!isObject(config)) throw new LowbitError("E_CONTAINER", `${join(folder, "config.json")}: expected an object, got something else.`);
  const single = has("model.safetensors") ? "model.safetensors" : disk.readdir(folder).find((f) => f.endsWith(".safetensors"));
  const weights = has("model.safetensors.index.json") ? "model.safetensors.index.json" : single;
  if (weights === undefined)
    throw new LowbitError(
      "E_IO",
      `${folder}: expected model.safetensors or model.safetensors.index.json, got neither. Save it with safetensors.`,
    );
  const apart = ["quantize_config.json", "quant_config.json"].find(has);
  const quantization = config.quantization_config ?? config.compression_config ?? (apart === undefined ? undefined : read(apart));
  return checkpointOf(config, isObject(quantization) ? quantization : undefined, await readSafetensors(join(folder, weights)));
}

/**
 * The same of opened tensors: for browsers, and files of other names.
 * @throws LowbitError E_UNSUPPORTED
 * @example
 * const config = { quantization_config: { quant_method: "gptq", bits: 4, group_size: 128 } };
 * const { layers } = checkpointOf(config, undefined, await readSafetensors("model.safetensors"));
 */
export function checkpointOf(
  config: Readonly<Record<string, unknown>>,
  quantization: Record<string, unknown> | undefined,
  file: SafetensorsFile,
): Checkpoint {
  const method = quantization === undefined ? "none" : methodOf(quantization);
  const found = METHODS.get(method);
  if (found === undefined && method !== "none")
    throw new LowbitError(
      "E_UNSUPPORTED",
      `quantization_config.quant_method: expected ${[...METHODS.keys()].join(", ")}, got ${JSON.stringify(method)}.`,
    );
  const modules = new Map<string, Map<string, SafeTensor>>();
  for (const mark of found?.marks ?? [])
    for (const name of file.tensors.keys()) if (name.endsWith(`.${mark}`)) modules.set(name.slice(0, -mark.length - 1), new Map());
  for (const name of found?.modules?.(file) ?? []) modules.set(name, new Map());
  const tensors = new Map<string, SafeTensor>();
  for (const [name, t] of file.tensors) {
    // the shortest prefix that is a module: weight.quant_state.x has dots of its own
    let module: Map<string, SafeTensor> | undefined;
    let part = "";
    for (let dot = name.indexOf("."); dot >= 0 && module === undefined; dot = name.indexOf(".", dot + 1)) {
      module = modules.get(name.slice(0, dot));
      part = name.slice(dot + 1);
    }
    if (module === undefined || part === "bias") tensors.set(name, t);
    else module.set(part, t);
  }
  const layers = new Map([...modules].map(([name, module]) => [name, async () => found!.read(name, module, quantization!, file)]));
  return { method, config, layers, tensors, close: () => file.close() };
}

function methodOf(c: Record<string, unknown>): string {
  if (typeof c.quant_method === "string") return c.quant_method.toLowerCase();
  return "w_bit" in c || "zero_point" in c ? "awq" : "bits" in c ? "gptq" : "config_groups" in c ? "compressed-tensors" : "unknown";
}
