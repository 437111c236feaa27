// A decoder for models whose attention is spelled out, or takes what the kernel over a cache does not: the caches go in
// as past and come out as present, as the model has them. Where a Concat joins both, tokens are appended to a cache
// that stays (machine/sequence.ts), which attention reads in place; else each token copies it. Steps are not recorded,
// as decoder-kernels.ts does: lengths and masks are those of each run.
import { biasOf } from "./compile/step.ts";
import { executeNow, type Execution } from "./machine/execute.ts";
import { emitProduct } from "./machine/kernels.ts";
import { isHead, unsupported, type Core, type DecoderModel, type Input } from "./decoder-model.ts";
import type { Machine } from "./machine/machine.ts";
import { createSequence, presentOf, type CachePair } from "./machine/sequence.ts";
import type { Value } from "./value.ts";

const integer = (type: string, values: readonly bigint[], dims: readonly number[]): Value =>
  type === "int32" ? { type, dims, data: Int32Array.from(values, Number) } : { type: "int64", dims, data: BigInt64Array.from(values) };

interface Inputs {
  readonly ids: Input;
  readonly mask: Input | undefined;
  readonly positions: Input | undefined;
  readonly branch: Input | undefined;
  readonly caches: readonly CachePair[];
}

function sortInputs(inputs: readonly Input[], outputs: ReadonlySet<string>): Inputs {
  const caches: CachePair[] = [];
  const rest: Input[] = [];
  for (const input of inputs) {
    const output = presentOf(input.name, outputs);
    if (output === undefined) rest.push(input);
    else {
      const [, heads, , size] = input.shape;
      // float16 is computed, and kept, in float32
      const isFloat = input.type === "float32" || input.type === "float16";
      if (input.shape.length !== 4 || !isFloat || typeof heads !== "number" || typeof size !== "number")
        throw unsupported("caches [batch, heads, tokens, size] of floats", `${input.type} [${input.shape.join(", ")}] for ${input.name}`);
      caches.push({ input: input.name, output, heads, size });
    }
  }
  const take = (test: (input: Input) => boolean): Input | undefined => {
    const at = rest.findIndex(test);
    return at < 0 ? undefined : rest.splice(at, 1)[0];
  };
  const mask = take(({ name }) => /attention_mask/.test(name));
  const positions = take(({ name }) => /position_ids/.test(name));
  const branch = take(({ name, type }) => name === "use_cache_branch" && type === "bool");
  const ids = take(({ type }) => type === "int64" || type === "int32");
  if (caches.length === 0) throw unsupported("past keys and values as inputs", inputs.map(({ name }) => name).join(", "));
  if (ids === undefined || rest.length > 0)
    throw unsupported("one input of tokens beside the caches", [ids, ...rest].map((input) => input?.name ?? "none").join(", "));
  return { ids, mask, positions, branch, caches };
}

/** What a model takes and gives from run to run. */
export interface Carried {
  readonly caches: readonly CachePair[];
  readonly logits: string;
  /** What it is fed for tokens behind `past` others, but for the caches. */
  feeds(tokens: readonly bigint[], past: number): Map<string, Value>;
  /** @throws LowbitError E_UNSUPPORTED where caches are not of all tokens */
  check(cache: CachePair, value: Held | undefined, total: number): void;
}

type Held = Pick<Value, "type" | "dims">;

/** @throws LowbitError E_UNSUPPORTED for inputs that it does not know */
export function carriedModel({ inputs, outputNames }: DecoderModel): Carried {
  const outputs = new Set(outputNames);
  const { ids, mask, positions, branch, caches } = sortInputs(inputs, outputs);
  const presents = new Set(caches.map(({ output }) => output));
  const logits = outputNames.find((name) => name === "logits") ?? outputNames.find((name) => !presents.has(name));
  if (logits === undefined) throw unsupported("an output beside the caches", "none");
  return {
    caches,
    logits,
    feeds(tokens, past) {
      const total = past + tokens.length;
      const fed = new Map([[ids.name, integer(ids.type, tokens, [1, tokens.length])]]);
      if (mask !== undefined) fed.set(mask.name, integer(mask.type, new Array<bigint>(total).fill(1n), [1, total]));
      if (positions !== undefined)
        fed.set(positions.name, integer(positions.type, tokens.map((_, i) => BigInt(past + i)), [1, tokens.length])); // prettier-ignore
      if (branch !== undefined) fed.set(branch.name, { type: "bool", dims: [1], data: Uint8Array.of(past > 0 ? 1 : 0) });
      return fed;
    },
    check({ output, heads, size }, value, total) {
      if (value?.type !== "float32" || value.dims.join() !== [1, heads, total, size].join())
        throw unsupported(`caches of ${total} tokens`, `[${value?.dims.join(", ") ?? ""}] for ${output}`);
    },
  };
}

/** @throws LowbitError E_UNSUPPORTED for inputs that it does not know */
export function carriedCore(init: DecoderModel & { readonly machine: Machine }, capacity: number, count: number): Core {
  const { machine, plan } = init;
  const model = carriedModel(init);
  const { caches, logits: logitsName } = model;
  const sequences = Array.from({ length: count }, () => createSequence(machine, plan, caches, capacity));
  const run = (tokens: readonly bigint[], past: number, s: number): Float32Array => {
    const sequence = sequences[s];
    const total = past + tokens.length;
    sequence.truncate(past);
    const fed = new Map([...sequence.past(), ...model.feeds(tokens, past)]);
    const instead: Execution["instead"] = (step, read) => {
      const joined = sequence.instead(step, read);
      if (joined !== undefined) return joined;
      if (!isHead(step, logitsName)) return undefined;
      const given = step.node.input.map((name) => (name === "" ? undefined : read(name)));
      const y = emitProduct(machine, step.layer, given[0], biasOf(step, given), true);
      return y && [y];
    };
    try {
      const read = executeNow({ machine, plan, fed, instead });
      const logits = read(logitsName)!;
      const width = logits.dims.at(-1)!;
      const row = (logits.data as Float32Array).slice(-width);
      for (const cache of caches) model.check(cache, read(cache.output), total);
      sequence.take(read);
      return row;
    } finally {
      machine.reset();
    }
  };
  return {
    run,
    step: (id, past, s) => run([BigInt(id)], past, s),
    truncate: (n, s) => sequences[s].truncate(n),
    explain: () => [],
    dispose: () => sequences.forEach((sequence) => sequence.free()),
    bytes: () => sequences.reduce((sum, { bytes }) => sum + bytes, 0),
  };
}
