// lowbit convert: GGUF files quantized as llama-quantize does, Llama checkpoints as GGUF, quantized checkpoints into
// the ONNX graph of their model.
import { existsSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import { LowbitError } from "../../../formats/core/errors.ts";
import { readFile } from "../../files/open.ts";
import {
  floatModel,
  ggufTargets,
  importCheckpoint,
  llamaGguf,
  quantizeGguf,
  readGguf,
  readImatrix,
  writeGguf,
  type FloatModel,
  type LlamaConfig,
  type TokenizerJson,
} from "../../interop/index.ts";
import { placeModel, type PlaceReport } from "../../onnx/index.ts";
import { json } from "../report.ts";
import type { CliContext, CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, numberOption, usageError } from "../spec.ts";

export const convertCommand: CommandSpec = {
  name: "convert",
  summary:
    "Converts models between containers: GGUF to other types, a Llama checkpoint to GGUF, a quantized checkpoint into its model's ONNX graph.",
  positionals: ["INPUT"],
  options: {
    output: { short: "o", value: "FILE", help: "the GGUF file to write; the ONNX file with --onto" },
    onto: { value: "MODEL", help: "put the layers of a checkpoint into this ONNX model in floats; codes stay as they are" },
    map: {
      value: "NAME=NODE",
      multiple: true,
      help: 'with --onto: which node a module is: a glob, whose * are $1, $2, or /regex/; "keep" leaves it out; first match wins',
    },
    target: { value: "TARGET", help: "with --onto: matmulnbits or stored (default: MatMulNBits where it holds the codes, else stored)" },
    "accuracy-level": { value: "N", help: "with --onto: accuracy_level of MatMulNBits, 0 to 4" },
    "keep-floats": { help: "with --onto: norms, biases and tables stay those of the ONNX model" },
    type: { short: "t", value: "TYPE", help: "f32, f16, bf16, q8_0, q4_0, q4_k, q4_k_m, q6_k, iq4_xs, ... (default f16)" },
    rule: {
      value: "GLOB=TYPE",
      multiple: true,
      help: 'another type for some tensors, "keep" for none: "blk.*.attn_v.weight=q6_k"; first match wins',
    },
    imatrix: { value: "FILE", help: "importance matrix of llama-imatrix (GGUF): the error of each column is weighed" },
    pure: { help: "every matrix gets the type, the output matrix too" },
    "allow-requantize": { help: "quantize tensors again that are quantized already" },
    force: { short: "f", help: "overwrite the output" },
  },
  notes: `INPUT is a .gguf file, or a folder with config.json, tokenizer.json and model.safetensors (or its index) of a Llama or Mistral model in floats.
  lowbit convert model-f16.gguf --type q4_k_m -o model-q4_k_m.gguf
  lowbit convert Llama-3.2-1B --type q8_0 -o llama.gguf
With --onto it is a folder of any checkpoint that importCheckpoint reads (GPTQ, AWQ, compressed-tensors, bitsandbytes, torchao):
  lowbit convert Llama-3.2-1B-GPTQ --onto model.onnx -o model_gptq.onnx
  lowbit convert DIR --onto model.onnx --map 'model.layers.*.mlp.*=/layers.$1/ffn/$2/MatMul' -o out.onnx`,
  run: runConvert,
};

async function runConvert(args: ParsedArgs, context: CliContext): Promise<number> {
  const [input] = args.positionals;
  const output = args.text("output");
  if (output === undefined) throw usageError("lowbit convert: expected -o FILE, got none. Name the file to write.");
  if (args.text("onto") !== undefined) return runOnto(input, args.text("onto")!, output, args, context);
  const stray = ["map", "target", "accuracy-level", "keep-floats"].find((name) => args.text(name) !== undefined || args.flag(name));
  if (stray !== undefined) throw usageError(`--${stray}: expected with --onto, got it alone. Name the ONNX model with --onto.`);
  if (!output.endsWith(".gguf")) throw usageError(`-o: expected a name that ends in .gguf, got ${JSON.stringify(output)}.`);
  const rules = args.all("rule").map((text) => {
    const at = text.lastIndexOf("=");
    if (at < 1) throw usageError(`--rule: expected GLOB=TYPE, got ${JSON.stringify(text)}. Types: ${ggufTargets().join(", ")}, keep.`);
    return { match: text.slice(0, at), type: text.slice(at + 1) };
  });
  const imatrix = args.text("imatrix");
  const { model, close } = await open(input);
  const counts = new Map<string, number>();
  const started = Date.now();
  try {
    const quantized = quantizeGguf(model, {
      type: args.text("type") ?? "f16",
      rules,
      pure: args.flag("pure"),
      allowRequantize: args.flag("allow-requantize"),
      ...(imatrix === undefined ? {} : { importance: await readImatrix(imatrix) }),
      onTensor: () => context.signal.throwIfAborted(),
    });
    await writeGguf(output, quantized, { force: args.flag("force") });
  } finally {
    await close();
  }
  const written = await readGguf(output);
  for (const t of written.tensors.values()) counts.set(t.type.name, (counts.get(t.type.name) ?? 0) + 1);
  await written.close();
  const bytes = statSync(output).size;
  if (args.json) context.print(json({ command: "convert", input, output, bytes, types: Object.fromEntries(counts) }));
  else {
    const types = [...counts].map(([type, n]) => `${n} ${type}`).join(", ");
    context.print(`${output}: ${(bytes / 1e6).toFixed(1)} MB, ${types}, in ${((Date.now() - started) / 1000).toFixed(1)} s\n`);
  }
  return EXIT.ok;
}

async function open(input: string): Promise<{ model: FloatModel; close(): Promise<void> }> {
  if (existsSync(input) && statSync(input).isDirectory()) return openFolder(input);
  const file = await readGguf(input);
  return { model: floatModel(file), close: () => file.close() };
}

async function openFolder(folder: string): Promise<{ model: FloatModel; close(): Promise<void> }> {
  const checkpoint = await importCheckpoint(folder);
  try {
    if (checkpoint.method !== "none")
      throw usageError(
        `${folder}: expected float weights, got a ${checkpoint.method} checkpoint. Its layers come in with importCheckpoint of lowbit/interop.`,
      );
    const tokenizer = join(folder, "tokenizer.json");
    const model = llamaGguf({
      name: basename(folder),
      config: checkpoint.config as unknown as LlamaConfig,
      ...(existsSync(tokenizer) ? { tokenizer: readTokenizer(tokenizer) } : {}),
      tensors: checkpoint.tensors,
    });
    return { model, close: () => checkpoint.close() };
  } catch (error) {
    await checkpoint.close();
    throw error;
  }
}

/** What lists of names show. */
const SHOWN = 8;

async function runOnto(input: string, onto: string, output: string, args: ParsedArgs, context: CliContext): Promise<number> {
  const stray = ["type", "rule", "imatrix", "pure", "allow-requantize"].find((name) => args.flag(name));
  if (stray !== undefined)
    throw usageError(`--${stray}: expected a GGUF file to write, got --onto. The codes of a checkpoint stay as they are.`);
  if (!output.endsWith(".onnx")) throw usageError(`-o: expected a name that ends in .onnx, got ${JSON.stringify(output)}.`);
  const rules = args.all("map").map((text) => {
    const at = text.lastIndexOf("=");
    if (at < 1) throw usageError(`--map: expected NAME=NODE, got ${JSON.stringify(text)}.`);
    return { match: text.slice(0, at), to: text.slice(at + 1) };
  });
  const target = args.text("target");
  if (target !== undefined && target !== "matmulnbits" && target !== "stored")
    throw usageError(`--target: expected matmulnbits or stored, got ${JSON.stringify(target)}.`);
  const accuracyLevel = numberOption(args, "accuracy-level", "a number from 0 to 4", (n) => Number.isInteger(n) && n >= 0 && n <= 4);
  const checkpoint = await importCheckpoint(input);
  try {
    if (checkpoint.method === "none")
      throw usageError(`${input}: expected a quantized checkpoint, got one in floats. lowbit quantize makes packed ONNX models of those.`);
    const report = await placeModel(onto, output, checkpoint, {
      ...{ rules, force: args.flag("force"), keepFloats: args.flag("keep-floats"), signal: context.signal },
      ...(target === undefined ? {} : { target }),
      ...(accuracyLevel === undefined ? {} : { accuracyLevel }),
    });
    const { method, layers } = checkpoint;
    const bytes = statSync(output).size;
    if (args.json) context.print(json({ command: "convert", input, onto, output, method, bytes, layers: layers.size, ...report }));
    else context.print(ontoText(output, bytes, method, layers.size, report));
  } finally {
    await checkpoint.close();
  }
  return EXIT.ok;
}

function ontoText(output: string, bytes: number, method: string, layers: number, report: PlaceReport): string {
  const count = (target: string): number => report.placed.filter((layer) => layer.target === target).length;
  const lines = [
    `${output}: ${(bytes / 1e6).toFixed(1)} MB, ${report.placed.length} of ${layers} ${method} layers placed: ${count("matmulnbits")} MatMulNBits, ${count("stored")} stored`,
    `floats: ${report.floats.length} found, ${report.floats.filter((f) => f.changed).length} of them changed`,
  ];
  const list = (title: string, of: readonly string[]): void => {
    if (of.length === 0) return;
    lines.push(`${title}:`, ...of.slice(0, SHOWN).map((line) => `  ${line}`));
    if (of.length > SHOWN) lines.push(`  ... ${of.length} in all (--json lists them)`);
  };
  list(
    "not placed",
    report.left.map(({ name, reason }) => `${name}: ${reason}`),
  );
  list("kept in floats by the graph", report.kept);
  list("notes", report.notes);
  return `${lines.join("\n")}\n`;
}

/** @throws LowbitError E_IO, E_CONTAINER */
function readTokenizer(path: string): TokenizerJson {
  const bytes = readFile(path);
  try {
    return JSON.parse(new TextDecoder().decode(bytes)) as TokenizerJson;
  } catch (cause) {
    throw new LowbitError("E_CONTAINER", `${path}: expected a tokenizer as JSON, got ${(cause as Error).message}. Is the file whole?`, {
      cause,
    });
  }
}
