// Runtimes in a child process of Node: onnxruntime-node, onnxruntime-web's WebAssembly, and lowbit/runtime.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import { readModel } from "../file/io.ts";
import { locationsOf } from "../file/model.ts";
import { builtin } from "../../files/node.ts";
import { hello, hostedSession, type OpenReply } from "./hosted.ts";
import type { Child } from "./process.ts";
import { requirePackage, resolvePackage, startChild } from "./process.ts";
import type { Runtime, RuntimeSession, StartOptions } from "./runtimes.ts";

/** A child that waits for the next comparison, so that many small ones do not start a process each. */
let waiting: Child | undefined;

/** What a process is told of a model: its place in full, for a process that waits stays in the folder it began in. */
const placed = (model: string | Uint8Array): string | Uint8Array =>
  typeof model === "string" ? builtin("node:path")!.resolve(model) : model;

const again = (name: string): string => `Install it again: npm install ${name}`;

/** onnxruntime-node. `fresh`: a process of its own, whose memory is its own too. */
export async function startNode(name: string, optimization: "all" | "disabled", fresh: boolean): Promise<Runtime> {
  const child = !fresh && waiting?.alive ? waiting : startChild(requirePackage("onnxruntime-node"), { versionOf: "node" });
  if (child === waiting) waiting = undefined;
  const { version } = (await hello(child, "onnxruntime-node", again("onnxruntime-node"))) as { version: string | null };
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
      const session = hostedSession(child, (await child.request("open", placed(model), options)) as OpenReply);
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

/** The folder of onnxruntime-web's builds. @throws LowbitError E_RUNTIME */
export function webBuilds(): string {
  return builtin("node:path")!.dirname(requirePackage("onnxruntime-web"));
}

/** External data of a model file by the location that its tensors name. */
export function externalData(model: string | Uint8Array): { path: string; file: string }[] {
  if (typeof model !== "string") return [];
  try {
    const opened = readModel(model);
    try {
      return locationsOf(opened.proto).map((path) => ({ path, file: opened.external(path).label }));
    } finally {
      opened.close();
    }
  } catch (error) {
    // The runtime says what is wrong with it.
    if (isLowbitError(error)) return [];
    throw error;
  }
}

/** onnxruntime-web's WebAssembly in Node. */
export async function startWeb({ threads }: StartOptions): Promise<Runtime> {
  const file = builtin("node:path")!.join(webBuilds(), "ort.node.min.mjs");
  const child = startChild(file, { versionOf: "web", threads, session: { executionProviders: ["wasm"], logSeverityLevel: 4 } });
  const { version } = (await hello(child, "onnxruntime-web", again("onnxruntime-web"))) as { version: string | null };
  return {
    name: "web",
    version: version ?? "unknown",
    async open(model) {
      const external = externalData(model).map(({ path, file: data }) => ({ path, data }));
      return hostedSession(
        child,
        (await child.request("open", placed(model), {}, external.length === 0 ? undefined : external)) as OpenReply,
      );
    },
    peakBytes: async () => (await child.request("memory")) as number,
    close: () => child.stop(),
  };
}

/**
 * Where this module is, a path or an address: CommonJS has __filename, a module its place in a stack. (`import.meta`
 * would be plainer; bundlers for scripts warn of it.)
 */
function here(): string | undefined {
  if (typeof __filename === "string") return __filename;
  const { prepareStackTrace } = Error;
  try {
    Error.prepareStackTrace = (_, [site]) => site?.getFileName();
    return (new Error().stack as string | null | undefined) ?? undefined;
  } finally {
    Error.prepareStackTrace = prepareStackTrace;
  }
}

/** The file of lowbit/runtime and this package's version. @throws LowbitError E_RUNTIME */
export function ownRuntime(): { readonly file: string; readonly version: string } {
  const [fs, module] = [builtin("node:fs"), builtin("node:module")];
  const paths = ["lowbit/runtime", "lowbit/package.json"].map((name) => {
    try {
      // A package finds itself by its own name.
      return module!.createRequire(here()!).resolve(name);
    } catch {
      return resolvePackage(name);
    }
  });
  const [file, description] = paths;
  if (fs === undefined || file === undefined || !fs.existsSync(file) || description === undefined)
    throw new LowbitError(
      "E_RUNTIME",
      "verify: expected the package lowbit with its entry lowbit/runtime, got none. Install it: npm install lowbit",
    );
  return { file, version: (JSON.parse(fs.readFileSync(description, "utf8")) as { version: string }).version };
}

/** This package's runtime; a model with operators that it lacks does not load. */
export async function startOwn(): Promise<Runtime> {
  const { file, version } = ownRuntime();
  const child = startChild(file, { versionOf: "lowbit" });
  await hello(child, "lowbit/runtime", again("lowbit"));
  return {
    name: "lowbit",
    version,
    open: async (model) => hostedSession(child, (await child.request("open", placed(model), {})) as OpenReply),
    peakBytes: async () => (await child.request("memory")) as number,
    close: () => child.stop(),
  };
}
