// Models, and parts of them, that this runtime does not run, in onnxruntime: onnxruntime-node in Node, onnxruntime-web
// elsewhere.
import { LowbitError } from "../../formats/core/errors.ts";
import { builtin } from "../files/node.ts";
import { runtimeTensor, type TensorMaker } from "../onnx/runtime-tensor.ts";
import { checkFetches, disposed, type Described, type Session } from "./session.ts";
import type { RuntimeTensor } from "./value.ts";

interface Opened {
  readonly outputNames: readonly string[];
  run(feeds: Record<string, unknown>, fetches: readonly string[]): Promise<Record<string, RuntimeTensor>>;
  release(): Promise<void>;
}

/** The module onnxruntime-node or onnxruntime-web: what of it is used. */
export interface OnnxRuntime {
  readonly InferenceSession: { create(model: never, options?: never): Promise<unknown> };
  readonly Tensor: new (...args: never) => unknown;
}

interface Known extends TensorMaker {
  readonly InferenceSession: { create(model: string | Uint8Array, options: object): Promise<Opened> };
}

const firstLine = (error: unknown): string => String((error as Error).message ?? error).split("\n")[0];

/** @throws LowbitError E_RUNTIME with the operators that need it */
export async function importRuntime(missing: readonly string[]): Promise<OnnxRuntime> {
  const names = builtin("node:module") === undefined ? ["onnxruntime-web"] : ["onnxruntime-node", "onnxruntime-web"];
  let first: unknown;
  for (const name of names) {
    try {
      // a variable, so that bundlers leave the optional peer alone
      const module = (await import(/* @vite-ignore */ name)) as OnnxRuntime & { default?: OnnxRuntime };
      return module.InferenceSession === undefined ? module.default! : module;
    } catch (cause) {
      first ??= cause;
    }
  }
  throw new LowbitError(
    "E_RUNTIME",
    `model: expected ${names.join(" or ")} for the operators ${missing.join(", ")}, got ${firstLine(first)}. Install it (npm install ${names[0]}), or give its module: { fallback: await import("${names[0]}") }.`,
    { cause: first },
  );
}

interface ForeignOptions {
  /** What errors begin with. */
  readonly label?: string;
  readonly files?: ReadonlyMap<string, Uint8Array> | undefined;
}

/**
 * A session of onnxruntime behind this runtime's interface.
 * @throws LowbitError E_RUNTIME where it refuses the model
 */
export async function foreignSession(
  described: Omit<Described, "agree">,
  source: string | Uint8Array,
  missing: readonly string[],
  runtime: OnnxRuntime,
  { label = "model", files = new Map() }: ForeignOptions,
): Promise<Session> {
  const known = runtime as unknown as Known;
  const externalData = [...files].map(([path, data]) => ({ path, data }));
  const options = { logSeverityLevel: 4, ...(files.size === 0 ? {} : { externalData }) };
  const session = await known.InferenceSession.create(source, options).catch((cause: unknown) => {
    throw new LowbitError(
      "E_RUNTIME",
      `${label}: expected one that onnxruntime loads, for the operators ${missing.join(", ")}, got ${firstLine(cause)}. Check the model with lowbit inspect.`,
      { cause },
    );
  });
  const { inputNames, outputNames, inputMetadata, outputMetadata } = described;
  let released = false;
  return {
    ...{ inputNames, outputNames, inputMetadata, outputMetadata },
    async run(feeds, fetches = outputNames) {
      if (released) throw disposed();
      checkFetches(outputNames, fetches);
      try {
        const tensors = Object.entries(feeds).map(([name, { type, data, dims }]) => [name, runtimeTensor(known, type, data, dims)]);
        return await session.run(Object.fromEntries(tensors) as Record<string, unknown>, fetches);
      } catch (cause) {
        const given = Object.entries(feeds).map(([name, { type, dims }]) => `${name} ${type}[${dims.join(", ")}]`);
        throw new LowbitError(
          "E_RUNTIME",
          `${label}: expected a run in onnxruntime with ${given.join("; ")}, got ${firstLine(cause)}. Give other feeds.`,
          { cause },
        );
      }
    },
    decoder() {
      throw new LowbitError(
        "E_UNSUPPORTED",
        `decoder: expected operators of the runtime, got also ${missing.join(", ")}. Call run with the caches as feeds.`,
      );
    },
    explain: () => ({ runtime: "onnxruntime", missing, steps: [], folded: 0, dead: 0 }),
    async release() {
      if (released) return;
      released = true;
      await session.release();
    },
  };
}
