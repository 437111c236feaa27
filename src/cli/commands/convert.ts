// lowbit convert: GGUF files quantized as llama-quantize does, Llama checkpoints as GGUF.
import { existsSync, readFileSync, statSync } from "node:fs";
import { basename, join } from "node:path";
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
import { json } from "../report.ts";
import type { CliContext, CommandSpec, ParsedArgs } from "../spec.ts";
import { EXIT, usageError } from "../spec.ts";

export const convertCommand: CommandSpec = {
  name: "convert",
  summary: "Converts models between containers: a GGUF file to other types, a Llama checkpoint (safetensors) to GGUF.",
  positionals: ["INPUT"],
  options: {
    output: { short: "o", value: "FILE", help: "the GGUF file to write" },
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
  lowbit convert Llama-3.2-1B --type q8_0 -o llama.gguf`,
  run: runConvert,
};

async function runConvert(args: ParsedArgs, context: CliContext): Promise<number> {
  const [input] = args.positionals;
  const output = args.text("output");
  if (output === undefined) throw usageError("lowbit convert: expected -o FILE, got none. Name the GGUF file to write.");
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
      ...(existsSync(tokenizer) ? { tokenizer: JSON.parse(readFileSync(tokenizer, "utf8")) as TokenizerJson } : {}),
      tensors: checkpoint.tensors,
    });
    return { model, close: () => checkpoint.close() };
  } catch (error) {
    await checkpoint.close();
    throw error;
  }
}
