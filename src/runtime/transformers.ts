// lowbit/transformers: imported before (or beside) transformers.js, it makes that library's pipelines run on this
// runtime, the user's code unchanged.
//
// transformers.js makes its sessions by `InferenceSession.create` of the onnxruntime that it imports. This module
// replaces that function: sessions for the processor are this runtime's, in an InferenceSession of that same class, so
// that names, metadata, tensors and checks are onnxruntime's own. Parts that cannot run here, or the whole, go to the
// function as it was, and the console says so once. `globalThis[Symbol.for("onnxruntime")]`, which transformers.js also
// reads, is left alone: with it, transformers.js 4.3 knows no device, not even its default one.
import { LowbitError } from "../../formats/core/errors.ts";
import type { Backend, SyncLayer } from "../backends/types.ts";
import { builtin } from "../files/node.ts";
import { loadForeign } from "./load.ts";
import { isHeld } from "./session-caches.ts";
import type { Session } from "./session.ts";
import { narrow, type RuntimeTensor } from "./value.ts";

/** How sessions of transformers.js are loaded. Change it before a pipeline is made. */
export interface TransformersSettings {
  /** Where products run. Default "wasm": one thread. */
  backend: "wasm" | Backend<SyncLayer>;
  /** Takes what is said on the console, once each. */
  say: (message: string) => void;
}

/** What pipelines that run on lowbit do; change its fields before they are made. */
export const settings: TransformersSettings = {
  backend: "wasm",
  // the one thing that this library says by itself: where a user's pipelines run
  // eslint-disable-next-line no-console
  say: (message) => console.warn(message),
};

/** What transformers.js asks of a session, behind onnxruntime's class. */
interface Handler {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputMetadata: Session["inputMetadata"];
  readonly outputMetadata: Session["outputMetadata"];
  run(feeds: Record<string, RuntimeTensor>, fetches: Record<string, unknown>, options: unknown): Promise<Record<string, unknown>>;
  dispose(): Promise<void>;
  startProfiling(): void;
  endProfiling(): void;
}

interface OrtSession {
  run(feeds: unknown, fetches: readonly string[]): Promise<Record<string, unknown>>;
  release(): Promise<void>;
}

interface OrtClass {
  new (handler: Handler): OrtSession;
  create(...args: unknown[]): Promise<OrtSession>;
}

type OrtTensor = new (type: string, data: unknown, dims: readonly number[]) => RuntimeTensor;

interface Runtime {
  readonly InferenceSession: OrtClass;
  readonly Tensor: OrtTensor;
  /** Says which of the two it is. */
  readonly env: unknown;
}

/** Caches that stay in the backend's memory, by the tensors of onnxruntime that stand for them. */
const stand = new WeakMap<object, RuntimeTensor>();

/** A tensor of onnxruntime's class whose data is copied when it is read. */
function standIn(Tensor: OrtTensor, held: RuntimeTensor): RuntimeTensor {
  const size = held.dims.reduce((a, b) => a * b, 1);
  const none = new Float32Array(0);
  const tensor = new Tensor(held.type, held.type === "float16" ? narrow(none) : none, [0]);
  const own = { enumerable: true, configurable: true };
  const data = { ...own, get: () => held.data };
  Object.defineProperties(tensor, {
    dims: { ...own, value: held.dims, writable: true },
    size: { ...own, value: size, writable: true },
    data,
    // `dispose` clears it
    cpuData: { ...data, set: () => void stand.delete(tensor) },
  });
  stand.set(tensor, held);
  return tensor;
}

/** What a feed stands for while it was not read nor given another shape, or the feed with its data at hand. */
const fedOf = (feed: RuntimeTensor): RuntimeTensor => {
  const held = stand.get(feed);
  return held !== undefined && isHeld(held) && feed.dims.join() === held.dims.join() ? held : feed;
};

const originals = new Map<OrtClass, OrtClass["create"]>();
const said = new Set<string>();

function sayOnce(message: string): void {
  if (said.has(message)) return;
  said.add(message);
  settings.say(message);
}

interface SessionOptions {
  readonly executionProviders?: readonly (string | { readonly name: string })[];
  readonly externalData?: unknown;
}

/** Devices of the processor: others are asked for by name, and stay onnxruntime's. */
const PROCESSOR = new Set(["cpu", "wasm"]);

/** The model and the options of a call of `create`; null for calls that are onnxruntime's. */
function ofCall(args: readonly unknown[]): string | Uint8Array | null {
  const [source, ...rest] = args;
  const options = (rest.findLast((arg) => typeof arg === "object" && arg !== null) ?? {}) as SessionOptions;
  const providers = (options.executionProviders ?? []).map((ep) => (typeof ep === "string" ? ep : ep.name));
  if (options.externalData !== undefined || providers.some((name) => !PROCESSOR.has(name))) return null;
  if (typeof source === "string" || source instanceof Uint8Array) return source;
  const [start, length] = rest;
  if (!(source instanceof ArrayBuffer)) return null;
  return new Uint8Array(source, typeof start === "number" ? start : 0, typeof length === "number" ? length : undefined);
}

/** A session of this runtime; a run that it refuses, and those after it, are onnxruntime's. */
function handlerOf(session: Session, Tensor: OrtTensor, retry: () => Promise<OrtSession>): Handler {
  let other: Promise<OrtSession> | null = null;
  const { inputNames, outputNames, inputMetadata, outputMetadata } = session;
  return {
    ...{ inputNames, outputNames, inputMetadata, outputMetadata },
    async run(feeds, fetches) {
      const names = Object.keys(fetches);
      if (other === null)
        try {
          const given = Object.fromEntries(Object.entries(feeds).map(([name, feed]) => [name, fedOf(feed)]));
          const results = await session.run(given, names);
          return Object.fromEntries(Object.entries(results).map(([name, of]) => [name, isHeld(of) ? standIn(Tensor, of) : of]));
        } catch (error) {
          if (!(error instanceof LowbitError) || error.code === "E_DISPOSED") throw error;
          sayOnce(`lowbit: a session runs in onnxruntime from here on: ${error.message}`);
          other = retry();
        }
      const plain = Object.entries(feeds).map(([name, of]) => [name, stand.has(of) ? new Tensor(of.type, of.data, of.dims) : of]);
      return (await other).run(Object.fromEntries(plain), names);
    },
    async dispose() {
      await session.release();
      await (await other)?.release();
    },
    startProfiling() {},
    endProfiling() {},
  };
}

function install({ InferenceSession, Tensor, env }: Runtime): void {
  if (originals.has(InferenceSession)) return;
  const create = InferenceSession.create;
  originals.set(InferenceSession, create);
  /** For parts of models: its sessions are onnxruntime's. */
  const plain = { InferenceSession: { create: (...args: unknown[]) => create.apply(InferenceSession, args) }, Tensor, env };
  InferenceSession.create = async (...args) => {
    const source = ofCall(args);
    const original = (): Promise<OrtSession> => create.apply(InferenceSession, args);
    if (source === null) return original();
    try {
      const session = await loadForeign(source, { backend: settings.backend, fallback: plain as never });
      const { missing } = session.explain();
      if (missing.length > 0) sayOnce(`lowbit: parts of a session run in onnxruntime: ${missing.join(", ")}`);
      return new InferenceSession(handlerOf(session, Tensor, original));
    } catch (error) {
      if (!(error instanceof LowbitError)) throw error;
      sayOnce(`lowbit: a session runs in onnxruntime: ${error.message}`);
      return original();
    }
  };
}

/** The copies of onnxruntime-node that transformers.js may import: its own one, and the program's. */
function nodeRuntimes(): Runtime[] {
  const { createRequire } = builtin("node:module")!;
  const { argv, cwd } = (globalThis as unknown as { process: { argv: readonly string[]; cwd(): string } }).process;
  const found = new Set<Runtime>();
  for (const base of [`${cwd()}/lowbit`, argv[1]].filter((path) => typeof path === "string" && path !== "")) {
    const outer = createRequire(base);
    const take = (from: ReturnType<typeof createRequire>): void => {
      try {
        found.add(from("onnxruntime-node") as Runtime);
      } catch {
        // not installed there
      }
    };
    take(outer);
    try {
      take(createRequire(outer.resolve("@huggingface/transformers")));
    } catch {
      // not installed there
    }
  }
  return [...found];
}

async function start(): Promise<void> {
  if (builtin("node:module") === undefined) {
    install((await import("onnxruntime-web/webgpu")) as unknown as Runtime);
    return;
  }
  const runtimes = nodeRuntimes();
  if (runtimes.length === 0)
    throw new LowbitError(
      "E_RUNTIME",
      "lowbit/transformers: expected @huggingface/transformers with its onnxruntime-node, got neither. Install it: npm install @huggingface/transformers",
    );
  runtimes.forEach(install);
}

/**
 * Settled once pipelines run here: in Node at once, in browsers when onnxruntime-web has loaded.
 * @throws LowbitError E_RUNTIME where transformers.js is not installed
 */
export const ready: Promise<void> = start();
// who does not wait for it hears of it
ready.catch((error: unknown) => sayOnce((error as Error).message));

/**
 * Gives transformers.js its own runtime back; sessions that are open stay.
 * @example
 * import "lowbit/transformers"; // pipelines run on lowbit from here
 * uninstall(); // and on onnxruntime again
 */
export function uninstall(): void {
  for (const [owner, create] of originals) owner.create = create;
  originals.clear();
}
