// Decoders compared token by token: the reference writes greedily from a prompt, the other model reads what it wrote
// and says at every position what it would have written. Until the first position where it would have written another
// token both texts are the same, so that is where free runs part too. Models with a cache (past_key_values.* ->
// present.*) are fed one token a step, models without one the whole text.
import { LowbitError } from "../../../formats/core/errors.ts";
import { halfTable } from "../file/half.ts";
import type { FeedTensor, Feeds, InputHint, InputMetadata } from "./feeds.ts";
import { inputDims, randomSource, randomTensor } from "./feeds.ts";
import type { OutputTensor, RunResult } from "./runtimes.ts";

/** How two decoders compare token by token. */
export interface Generation {
  /** Tokens that the reference wrote after each prompt. */
  readonly tokens: number;
  readonly prompts: number;
  /** Whether the prompts were random tokens. */
  readonly random: boolean;
  /** Share of positions where both models write the same token. */
  readonly agreement: number;
  /** The first position where they do not, over all prompts; null: nowhere. */
  readonly firstDivergence: number | null;
  /** Prompts whose texts are the same to the end. */
  readonly sameTexts: number;
  /** Kullback-Leibler divergence of the next-token distributions in nats: sum p log(p / q), p the reference's. */
  readonly klMean: number;
  readonly klMax: number;
  /** What the first prompt became. */
  readonly text: { readonly prompt: readonly number[]; readonly reference: readonly number[]; readonly model: readonly number[] };
}

/** One model, as this needs it. */
export interface DecoderModel {
  readonly label: string;
  readonly inputs: readonly InputMetadata[];
  readonly outputNames: readonly string[];
  run(feeds: Feeds): Promise<RunResult["outputs"]>;
}

/** Which inputs and outputs are what. */
interface Shape {
  readonly ids: InputMetadata;
  readonly logits: string;
  readonly mask?: InputMetadata;
  readonly positions?: InputMetadata;
  readonly flag?: InputMetadata;
  /** Inputs of the cache, and the outputs that they come from. */
  readonly cache: readonly { readonly input: InputMetadata; readonly output: string }[];
}

const INTEGERS = ["int64", "int32"];
/** Tokens of a random prompt. */
const PROMPT = 8;

function shapeOf(model: DecoderModel): Shape {
  const { inputs, outputNames, label } = model;
  const refuse = (what: string, got: string): LowbitError =>
    new LowbitError(
      "E_UNSUPPORTED",
      `${label}: expected ${what} of a decoder for generate, got ${got}. Leave --generate out for this model.`,
    );
  const integers = inputs.filter(({ type, shape }) => INTEGERS.includes(type) && shape.length === 2);
  const named = (pattern: RegExp): InputMetadata | undefined => inputs.find(({ name }) => pattern.test(name));
  const mask = named(/^attention_mask$/);
  const positions = named(/^position_ids$/);
  const ids = named(/^input_ids$/) ?? integers.find((input) => input !== mask && input !== positions);
  if (ids === undefined) throw refuse("an input of token ids [batch, sequence]", inputs.map(({ name }) => name).join(", ") || "no inputs");
  const cache = inputs
    .filter(({ name }) => /^past/.test(name))
    .map((input) => {
      const output = [input.name.replace(/^past_key_values/, "present"), input.name.replace(/^past/, "present")].find((name) =>
        outputNames.includes(name),
      );
      if (output === undefined) throw refuse(`an output for the cache ${input.name}`, outputNames.join(", "));
      return { input, output };
    });
  const logits = outputNames.includes("logits") ? "logits" : outputNames.find((name) => !cache.some(({ output }) => output === name));
  if (logits === undefined) throw refuse("an output of logits", "none");
  const flag = named(/^use_cache_branch$/);
  const known = new Set([ids, mask, positions, flag, ...cache.map(({ input }) => input)]);
  const other = inputs.find((input) => !known.has(input));
  if (other !== undefined) throw refuse("token ids, attention_mask, position_ids and a cache as inputs", `also ${other.name}`);
  return { ids, logits, cache, ...(mask && { mask }), ...(positions && { positions }), ...(flag && { flag }) };
}

const integers = (input: InputMetadata, values: readonly number[]): FeedTensor => ({
  type: input.type,
  data: input.type === "int32" ? Int32Array.from(values) : BigInt64Array.from(values, BigInt),
  dims: [1, values.length],
});

/** A model being read token by token. */
interface Reader {
  /** Adds tokens; the logits after the last one. */
  read(tokens: readonly number[]): Promise<Float64Array>;
}

function reader(model: DecoderModel, shape: Shape): Reader {
  const all: number[] = [];
  let past = new Map<string, FeedTensor>(
    shape.cache.map(({ input }) => [input.name, randomTensor(input, inputDims(input, {}, 0, 0), undefined, () => 0)]),
  );
  return {
    async read(tokens) {
      all.push(...tokens);
      const cached = shape.cache.length > 0;
      const now = cached ? tokens : all;
      const first = all.length - now.length;
      const feeds: Record<string, FeedTensor> = Object.fromEntries(past);
      feeds[shape.ids.name] = integers(shape.ids, now);
      if (shape.mask)
        feeds[shape.mask.name] = integers(
          shape.mask,
          all.map(() => 1),
        );
      if (shape.positions)
        feeds[shape.positions.name] = integers(
          shape.positions,
          now.map((_, i) => first + i),
        );
      if (shape.flag) feeds[shape.flag.name] = { type: "bool", data: Uint8Array.of(first > 0 ? 1 : 0), dims: [1] };
      const outputs = await model.run(feeds);
      const kept = new Map<string, FeedTensor>();
      for (const { input, output } of shape.cache) {
        const value = outputs.get(output);
        if (value) kept.set(input.name, value);
      }
      past = kept;
      return lastLogits(outputs.get(shape.logits), model.label);
    },
  };
}

/** The logits of the last position. */
function lastLogits(value: OutputTensor | null | undefined, label: string): Float64Array {
  const size = value?.dims.at(-1) ?? 0;
  if (value === null || value === undefined || value.dims.length < 2 || size < 2)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `${label}: expected logits [batch, sequence, vocabulary], got [${value?.dims.join(", ") ?? "none"}]. Leave --generate out.`,
    );
  const data = value.data as ArrayLike<number>;
  const from = data.length - size;
  const table = value.type === "float16" && data instanceof Uint16Array ? halfTable() : undefined;
  return Float64Array.from({ length: size }, (_, i) => (table === undefined ? Number(data[from + i]) : table[data[from + i]]));
}

const argmax = (values: Float64Array): number => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

function logSoftmax(logits: Float64Array): Float64Array {
  let max = -Infinity;
  for (const value of logits) if (value > max) max = value;
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - max);
  return logits.map((value) => value - max - Math.log(sum));
}

/** sum p log(p / q) in nats. */
function divergence(reference: Float64Array, model: Float64Array): number {
  const [p, q] = [logSoftmax(reference), logSoftmax(model)];
  let sum = 0;
  for (let i = 0; i < p.length; i++) if (p[i] > -Infinity) sum += Math.exp(p[i]) * (p[i] - q[i]);
  return Math.max(0, sum);
}

/** Prompts: rows of the token ids of given inputs, or random tokens. */
export function promptsOf(
  ids: InputMetadata,
  inputs: readonly Feeds[] | null,
  options: { readonly samples: number; readonly seed: number; readonly hint: InputHint | undefined },
): number[][] {
  if (inputs !== null)
    return inputs.slice(0, options.samples).map((feed) => {
      const { data, dims } = feed[ids.name];
      return Array.from({ length: dims.at(-1) ?? 0 }, (_, i) => Number((data as ArrayLike<number | bigint>)[i]));
    });
  const random = randomSource(options.seed);
  const below = Math.min(options.hint?.below ?? 1000, 2 ** 31);
  return Array.from({ length: options.samples }, () => Array.from({ length: PROMPT }, () => Math.floor(random() * below)));
}

/**
 * Writes greedily after a random prompt.
 * @param begin called when the prompt is read: what comes then is writing
 * @returns the tokens
 */
export async function greedyTokens(
  model: DecoderModel,
  hints: ReadonlyMap<string, InputHint>,
  count: number,
  begin: () => void = () => undefined,
): Promise<number[]> {
  const shape = shapeOf(model);
  const [prompt] = promptsOf(shape.ids, null, { samples: 1, seed: 1, hint: hints.get(shape.ids.name) });
  const text = reader(model, shape);
  let next = argmax(await text.read(prompt));
  begin();
  const written: number[] = [];
  for (let i = 0; i < count; i++) {
    written.push(next);
    next = argmax(await text.read([next]));
  }
  return written;
}

/**
 * Greedy tokens of two decoders compared.
 * @throws LowbitError E_UNSUPPORTED for models that are no decoders, E_RUNTIME
 */
export async function compareGeneration(
  reference: DecoderModel,
  model: DecoderModel,
  options: {
    readonly tokens: number;
    readonly inputs: readonly Feeds[] | null;
    readonly samples: number;
    readonly seed: number;
    readonly hints: ReadonlyMap<string, InputHint>;
  },
): Promise<Generation> {
  const [left, right] = [shapeOf(reference), shapeOf(model)];
  const prompts = promptsOf(left.ids, options.inputs, { ...options, hint: options.hints.get(left.ids.name) });
  let [same, sameTexts, klSum, klMax] = [0, 0, 0, 0];
  let firstDivergence: number | null = null;
  let text: Generation["text"] | undefined;
  for (const prompt of prompts) {
    const [a, b] = [reader(reference, left), reader(model, right)];
    const [written, other]: number[][] = [[], []];
    let next: readonly number[] = prompt;
    for (let i = 0; i < options.tokens; i++) {
      const [p, q] = [await a.read(next), await b.read(next)];
      const kl = divergence(p, q);
      klSum += kl;
      klMax = Math.max(klMax, kl);
      written.push(argmax(p));
      other.push(argmax(q));
      next = written.slice(-1);
    }
    const parts = written.findIndex((token, i) => token !== other[i]);
    same += written.filter((token, i) => token === other[i]).length;
    if (parts < 0) sameTexts++;
    else firstDivergence = Math.min(firstDivergence ?? Infinity, parts);
    text ??= { prompt, reference: written, model: other };
  }
  const positions = prompts.length * options.tokens;
  return {
    tokens: options.tokens,
    prompts: prompts.length,
    random: options.inputs === null,
    agreement: same / positions,
    firstDivergence,
    sameTexts,
    klMean: klSum / positions,
    klMax,
    text: text!,
  };
}
