// A decoder for models whose attention is spelled out, or takes what the kernel over a cache does not: the caches go in
// as past and come out as present, as the model has them, and are carried from run to run. Each token copies them;
// `decoder.ts` does not.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Plan } from "./compile/plan.ts";
import { executeNow } from "./machine/execute.ts";
import type { Core, Input } from "./decoder-model.ts";
import type { Machine } from "./machine/machine.ts";
import type { Value } from "./value.ts";
import { floats, sizeOf } from "./value.ts";

const PAST = /^past_key_values?\.|^past_/;

/** The output that becomes an input: past_key_values.0.key from present.0.key or present_key_values.0.key. */
const presentOf = (name: string, outputs: ReadonlySet<string>): string | undefined =>
  [name.replace("past_key_values", "present"), name.replace("past", "present"), name.replace(/^past_/, "present_")].find(
    (other) => other !== name && outputs.has(other),
  );

const integer = (type: string, values: readonly bigint[], dims: readonly number[]): Value =>
  type === "int32" ? { type, dims, data: Int32Array.from(values, Number) } : { type: "int64", dims, data: BigInt64Array.from(values) };

interface Inputs {
  readonly ids: Input;
  readonly mask: Input | undefined;
  readonly positions: Input | undefined;
  readonly branch: Input | undefined;
  readonly caches: readonly { readonly input: Input; readonly output: string }[];
}

const refuse = (expected: string, got: string): LowbitError =>
  new LowbitError("E_UNSUPPORTED", `decoder: expected ${expected}, got ${got}. Run the session with feeds of its own.`);

function sortInputs(inputs: readonly Input[], outputs: ReadonlySet<string>): Inputs {
  const caches: { input: Input; output: string }[] = [];
  const rest: Input[] = [];
  for (const input of inputs) {
    const output = PAST.test(input.name) ? presentOf(input.name, outputs) : undefined;
    if (output === undefined) rest.push(input);
    else {
      if (input.shape.length !== 4 || input.type !== "float32" || typeof input.shape[1] !== "number" || typeof input.shape[3] !== "number")
        throw refuse("caches [batch, heads, tokens, size] of float32", `${input.type} [${input.shape.join(", ")}] for ${input.name}`);
      caches.push({ input, output });
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
  if (caches.length === 0) throw refuse("past keys and values as inputs", inputs.map(({ name }) => name).join(", "));
  if (ids === undefined || rest.length > 0)
    throw refuse("one input of tokens beside the caches", [ids, ...rest].map((input) => input?.name ?? "none").join(", "));
  return { ids, mask, positions, branch, caches };
}

/** @throws LowbitError E_UNSUPPORTED for inputs that it does not know */
export function carriedCore(machine: Machine, plan: Plan, inputs: readonly Input[], outputNames: readonly string[]): Core {
  const outputs = new Set(outputNames);
  const { ids, mask, positions, branch, caches } = sortInputs(inputs, outputs);
  const presents = new Set(caches.map(({ output }) => output));
  const logitsName = outputNames.find((name) => name === "logits") ?? outputNames.find((name) => !presents.has(name));
  if (logitsName === undefined) throw refuse("an output beside the caches", "none");
  const empty = (): Map<string, Value> =>
    new Map(caches.map(({ input: { name, shape } }) => [name, floats([1, shape[1] as number, 0, shape[3] as number])]));
  let kept = empty();
  const run = (tokens: readonly bigint[], past: number): Float32Array => {
    const total = past + tokens.length;
    const fed = new Map(kept);
    fed.set(ids.name, integer(ids.type, tokens, [1, tokens.length]));
    if (mask !== undefined) fed.set(mask.name, integer(mask.type, new Array<bigint>(total).fill(1n), [1, total]));
    if (positions !== undefined)
        fed.set(positions.name, integer(positions.type, tokens.map((_, i) => BigInt(past + i)), [1, tokens.length])); // prettier-ignore
    if (branch !== undefined) fed.set(branch.name, { type: "bool", dims: [1], data: Uint8Array.of(past > 0 ? 1 : 0) });
    try {
      const read = executeNow({ machine, plan, fed });
      const logits = read(logitsName)!;
      const width = logits.dims.at(-1)!;
      const row = (logits.data as Float32Array).slice(-width);
      const next = new Map<string, Value>();
      for (const { input, output } of caches) {
        const value = read(output)!;
        if (value.dims[2] !== total) throw refuse(`caches of ${total} tokens`, `[${value.dims.join(", ")}] for ${output}`);
        next.set(input.name, { type: "float32", dims: value.dims, data: value.data.slice() });
      }
      kept = next;
      return row;
    } finally {
      machine.reset();
    }
  };
  return {
    run,
    step: (id, past) => run([BigInt(id)], past),
    truncate(n) {
      if (n === 0) kept = empty();
      for (const [name, { dims, data }] of kept) {
        const [, heads, tokens, size] = dims;
        if (tokens <= n) continue;
        const cut = floats([1, heads, n, size]);
        for (let h = 0; h < heads; h++)
          cut.data.set((data as Float32Array).subarray(h * tokens * size, (h * tokens + n) * size), h * n * size);
        kept.set(name, cut);
      }
    },
    explain: () => [],
    dispose() {
      kept = new Map();
    },
    bytes: () => [...kept.values()].reduce((sum, { dims }) => sum + 4 * sizeOf(dims), 0),
  };
}
