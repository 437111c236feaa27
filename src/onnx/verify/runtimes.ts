// The runtimes that verification knows, as a table: a name, what it takes to start one, and a session behind one interface. A new runtime is a
// row and a `start`.
import { LowbitError } from "../../../formats/core/errors.ts";
import type { FeedTensor, Feeds, InputMetadata } from "./feeds.ts";
import type { Child } from "./process.ts";
import { requirePackage, startChild } from "./process.ts";

/** A result of a session; null is no tensor (a sequence, a map). */
export interface OutputTensor {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: FeedTensor["data"];
}

export interface RunResult {
  /** Milliseconds of the run alone. */
  readonly ms: number;
  readonly outputs: ReadonlyMap<string, OutputTensor | null>;
}

export interface RuntimeSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Undefined where the runtime does not describe them. */
  readonly inputs: readonly InputMetadata[] | undefined;
  readonly outputs: readonly InputMetadata[] | undefined;
  /** Milliseconds of loading. */
  readonly loadMs: number;
  /** @param fetches the outputs wanted; default all */
  run(feeds: Feeds, fetches?: readonly string[]): Promise<RunResult>;
  close(): Promise<void>;
}

export interface SessionOptions {
  /** Threads inside an operator. Default: the runtime's own choice. */
  readonly threads?: number;
}

export interface StartOptions {
  /** A process of its own, not one that waited: its memory is what the work took. */
  readonly fresh?: boolean;
}

/** A started runtime. Its errors are plain Errors in its own words; a CrashError where its process ended. */
export interface Runtime {
  readonly name: string;
  readonly version: string;
  /** What must be known of this one, such as a software adapter. */
  readonly note?: string;
  /** @param model path or bytes */
  open(model: string | Uint8Array, options?: SessionOptions): Promise<RuntimeSession>;
  /** Largest resident memory of its process so far in bytes; null where nobody knows. */
  peakBytes(): Promise<number | null>;
  close(): Promise<void>;
}

/** A row of the table. */
export interface RuntimeEntry {
  readonly name: string;
  readonly about: string;
  /** @throws LowbitError E_RUNTIME or E_UNSUPPORTED where it is missing, with what to install */
  start(options: StartOptions): Promise<Runtime>;
}

interface OpenReply {
  readonly id: number;
  readonly ms: number;
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  readonly inputs?: readonly InputMetadata[];
  readonly outputs?: readonly InputMetadata[];
}

/** A session over requests to a `host`. */
function hostedSession(child: Child, reply: OpenReply): RuntimeSession {
  return {
    inputNames: reply.inputNames,
    outputNames: reply.outputNames,
    inputs: reply.inputs,
    outputs: reply.outputs,
    loadMs: reply.ms,
    async run(feeds, fetches) {
      const { ms, outputs } = (await child.request("run", reply.id, Object.entries(feeds), fetches)) as {
        ms: number;
        outputs: [string, OutputTensor | null][];
      };
      return { ms, outputs: new Map(outputs) };
    },
    close: async () => void (await child.request("close", reply.id)),
  };
}

/** A child that waits for the next comparison, so that many small ones do not start a process each. */
let waiting: Child | undefined;

/** onnxruntime-node in a child process. `fresh`: one of its own, whose memory is its own too. */
async function startNode(name: string, optimization: "all" | "disabled", fresh: boolean): Promise<Runtime> {
  const child = !fresh && waiting?.alive ? waiting : startChild(requirePackage("onnxruntime-node"), { versionOf: "node" });
  if (child === waiting) waiting = undefined;
  const { version } = (await hello(child, "onnxruntime-node")) as { version: string | null };
  const sessions: RuntimeSession[] = [];
  return {
    name,
    version: version ?? "unknown",
    async open(model, { threads } = {}) {
      const options = {
        logSeverityLevel: 4,
        graphOptimizationLevel: optimization,
        ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
      };
      const session = hostedSession(child, (await child.request("open", model, options)) as OpenReply);
      sessions.push(session);
      return session;
    },
    peakBytes: async () => (await child.request("memory")) as number,
    async close() {
      if (fresh || !child.alive || waiting !== undefined) return child.stop();
      for (const session of sessions) await session.close();
      child.rest();
      waiting = child;
    },
  };
}

async function hello(child: Child, packageName: string): Promise<unknown> {
  try {
    return await child.request("hello");
  } catch (cause) {
    await child.stop();
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected ${packageName} to start, got ${(cause as Error).message}. Install it again: npm install ${packageName}`,
      { cause },
    );
  }
}

export const RUNTIMES: readonly RuntimeEntry[] = [
  { name: "node", about: "onnxruntime-node, optimisation level all", start: ({ fresh }) => startNode("node", "all", fresh ?? false) },
  {
    name: "node-disabled",
    about: "onnxruntime-node, optimisation level disabled",
    start: () => startNode("node-disabled", "disabled", true),
  },
];

/** The row of a name. @throws RangeError */
export function runtimeEntry(name: string): RuntimeEntry {
  const found = RUNTIMES.find((entry) => entry.name === name);
  if (found === undefined)
    throw new RangeError(`runtimes: expected one of ${RUNTIMES.map((entry) => entry.name).join(", ")}, got ${JSON.stringify(name)}`);
  return found;
}
