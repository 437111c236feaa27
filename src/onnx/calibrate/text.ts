// Text for language models: tokens by npm @huggingface/tokenizers (an optional peer) in windows of equal length, spread
// evenly over the text.
import { LowbitError } from "../../../formats/core/errors.ts";
import { inputDims, type FeedTensor, type Feeds, type InputMetadata } from "../verify/feeds.ts";
import { convertTensor } from "./feeds.ts";
import { readFile } from "../../files/open.ts";
import { nodeFs, nodePath } from "./node.ts";

/** Text for language models. */
export interface TextSource {
  /** A path to plain text, or to .jsonl with a "text" in each line. */
  readonly text: string;
  /** A path to tokenizer.json; default: that beside the text. */
  readonly tokenizer?: string;
  /** Tokens in a window; default 256, or what the model fixes. */
  readonly window?: number;
  /** Windows at most, taken evenly over the text; default 128. */
  readonly windows?: number;
}

const PACKAGE = "@huggingface/tokenizers";
const WINDOW = 256;
const WINDOWS = 128;
const BATCH = 8;

interface TokenizerModule {
  readonly Tokenizer: new (
    tokenizer: object,
    config: object,
  ) => { encode(text: string, options?: object): { readonly ids: readonly number[] } };
}

async function loadTokenizer(path: string): Promise<InstanceType<TokenizerModule["Tokenizer"]>> {
  let module: TokenizerModule;
  try {
    const name = PACKAGE;
    module = (await import(/* @vite-ignore */ name)) as TokenizerModule;
  } catch (cause) {
    throw new LowbitError(
      "E_RUNTIME",
      `calibration text: expected the package ${PACKAGE}, got ${(cause as Error).message.split("\n")[0]}. Install it: npm install ${PACKAGE}`,
      { cause },
    );
  }
  const json = (file: string): object => {
    try {
      return JSON.parse(new TextDecoder().decode(readFile(file))) as object;
    } catch (cause) {
      throw new LowbitError("E_CALIBRATION", `${file}: expected the JSON of a tokenizer, got ${(cause as Error).message}.`, { cause });
    }
  };
  const config = nodePath().join(nodePath().dirname(path), "tokenizer_config.json");
  return new module.Tokenizer(json(path), nodeFs().existsSync(config) ? json(config) : {});
}

/** The text of a file; of JSON lines their "text". */
function readText(path: string): string {
  const text = new TextDecoder().decode(readFile(path));
  if (!/\.(jsonl|ndjson)$/i.test(path)) return text;
  return text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line) => String((JSON.parse(line) as { text?: unknown }).text ?? ""))
    .join("\n");
}

/** The input that takes token ids: the one called so, or the only integers of two dimensions. */
export function tokenInput(inputs: readonly InputMetadata[]): InputMetadata {
  const integers = inputs.filter((input) => /^int(32|64)$/.test(input.type) && input.shape.length === 2);
  const named = integers.find((input) => /^(input_ids|ids|tokens|decoder_input_ids)$/.test(input.name));
  const found = named ?? (integers.length === 1 ? integers[0] : undefined);
  if (found === undefined)
    throw new LowbitError(
      "E_CALIBRATION",
      `calibration text: expected an input of token ids (integers [batch, length], called input_ids), got ${inputs.map((i) => `${i.name} ${i.type}[${i.shape.join(", ")}]`).join("; ")}. Give arrays instead of text.`,
    );
  return found;
}

/** Values of the other inputs of a language model. */
function companion(input: InputMetadata, batch: number, window: number): FeedTensor {
  const isFixed = (dim: number | string): boolean => typeof dim === "number" && dim >= 0;
  const dims = /past|cache/i.test(input.name)
    ? inputDims(input, isFixed(input.shape[0]) ? {} : { [`${input.name}:0`]: batch }, window)
    : input.shape.map((dim, axis) => (isFixed(dim) ? Number(dim) : axis === 0 ? batch : window));
  const count = dims.reduce((a, b) => a * b, 1);
  const value = /mask/i.test(input.name) ? () => 1 : /position/i.test(input.name) ? (i: number) => i % window : () => 0;
  if (/^float/.test(input.type))
    return convertTensor({ type: "float32", data: Float32Array.from({ length: count }, (_, i) => value(i)), dims }, input.type, input.name);
  return convertTensor({ type: "int32", data: Int32Array.from({ length: count }, (_, i) => value(i)), dims }, input.type, input.name);
}

/** Feeds of windows of tokens. @throws LowbitError E_CALIBRATION, E_IO, E_RUNTIME */
export async function* textFeeds(source: TextSource, inputs: readonly InputMetadata[]): AsyncGenerator<Feeds> {
  const ids = tokenInput(inputs);
  const path = source.tokenizer ?? nodePath().join(nodePath().dirname(source.text), "tokenizer.json");
  const text = readText(source.text);
  const [fixedBatch, fixedWindow] = ids.shape.map((dim) => (typeof dim === "number" && dim > 0 ? dim : undefined));
  const window = fixedWindow ?? source.window ?? WINDOW;
  if (!Number.isSafeInteger(window) || window < 1)
    throw new RangeError(`calibration text window: expected a positive integer, got ${window}.`);
  const tokens = (await loadTokenizer(path)).encode(text, { add_special_tokens: false }).ids;
  const there = Math.floor(tokens.length / window);
  if (there === 0)
    throw new LowbitError(
      "E_CALIBRATION",
      `calibration text ${source.text}: expected at least ${window} tokens, got ${tokens.length}. Give more text, or a smaller window.`,
    );
  const count = Math.min(there, source.windows ?? WINDOWS);
  const batch = fixedBatch ?? Math.min(BATCH, count);
  for (let first = 0; first + (fixedBatch ?? 1) <= count; first += batch) {
    const size = Math.min(batch, count - first);
    const data = new Int32Array(size * window);
    for (let b = 0; b < size; b++) {
      const from = Math.floor(((first + b) * there) / count) * window;
      for (let t = 0; t < window; t++) data[b * window + t] = tokens[from + t];
    }
    yield Object.fromEntries(
      inputs.map((input) => [
        input.name,
        input === ids ? convertTensor({ type: "int32", data, dims: [size, window] }, ids.type, ids.name) : companion(input, size, window),
      ]),
    );
  }
}
