// A runtime in a process of its own: what crashes there (a fault of the runtime, too little memory) is a finding here,
// not the end of this process. The child is plain Node with HOST_SOURCE; requests and tensors go over its channel
// (structured clone).
import { LowbitError } from "../../../formats/core/errors.ts";
import { builtin } from "../../files/node.ts";
import { CHILD_SOURCE } from "./host.ts";

/**
 * The file that `name` means to this program, or undefined: looked for from its main script (for `lowbit`, this
 * package). The working folder counts only where there is no script (node -e, a REPL): code of a folder that a user
 * merely stands in is not run.
 */
export function resolvePackage(name: string): string | undefined {
  const [fs, module, path] = [builtin("node:fs"), builtin("node:module"), builtin("node:path")];
  if (fs === undefined || module === undefined || path === undefined) return undefined;
  const script = process.argv.at(1);
  const real = (file: string): string[] => (fs.existsSync(file) ? [file, fs.realpathSync(file)] : []);
  for (const base of script === undefined ? [path.join(process.cwd(), "package.json")] : real(script)) {
    try {
      return module.createRequire(base).resolve(name);
    } catch {
      // not there: the next one
    }
  }
  return undefined;
}

/** @throws LowbitError E_RUNTIME where the package is not installed */
export function requirePackage(name: string): string {
  const found = resolvePackage(name);
  if (found === undefined)
    throw new LowbitError(
      "E_RUNTIME",
      `verify: expected the package ${name}, got none beside this program. Install it: npm install ${name}`,
    );
  return found;
}

/** The child ended in the middle of its work. */
export class CrashError extends Error {
  /** @param how what ended it: "SIGSEGV", "exit code 134" */
  constructor(how: string, stderr: string) {
    super(stderr === "" ? how : `${how}: ${stderr}`);
    this.name = "CrashError";
  }
}

export interface Child {
  /** @throws Error as the runtime says it, CrashError where the process ended */
  request(op: string, ...args: readonly unknown[]): Promise<unknown>;
  stop(): Promise<void>;
  /** Lets this process end while the child waits. */
  rest(): void;
  readonly alive: boolean;
}

/** Options of the child, as JSON: what a session is created with, threads of WebAssembly, where the version stands. */
export interface ChildOptions {
  readonly session?: object;
  readonly threads?: number;
  readonly versionOf: string;
}

/** The last words of a process, one line. */
const lastWords = (text: string): string => text.trim().split("\n").slice(-3).join(" ").slice(-300);

/** Starts a process with the runtime's module at `file`. */
export function startChild(file: string, options: ChildOptions): Child {
  const [children, url] = [builtin("node:child_process")!, builtin("node:url")!];
  const args = ["--input-type=module", "-e", CHILD_SOURCE, "--", url.pathToFileURL(file).href, JSON.stringify(options)];
  const child = children.spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe", "ipc"], serialization: "advanced" });
  const pending = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  const kill = (): void => void child.kill("SIGKILL");
  // A process that ends by a signal or by process.exit() takes its child along.
  process.once("exit", kill);
  let ended: CrashError | undefined;
  let stderr = "";
  let next = 0;
  const end = (how: string): void => {
    ended ??= new CrashError(how, lastWords(stderr));
    for (const { reject } of pending.values()) reject(ended);
    pending.clear();
  };
  child.stderr!.setEncoding("utf8").on("data", (text: string) => (stderr = (stderr + text).slice(-4000)));
  child.on("message", ({ id, value, error }: { id: number; value?: unknown; error?: string }) => {
    const call = pending.get(id);
    pending.delete(id);
    if (error === undefined) call?.resolve(value);
    else call?.reject(new Error(error));
  });
  child.on("error", (error) => end(error.message));
  // Not "close": after disconnect() Node does not emit it. What was written last arrives after the exit.
  const words = new Promise<void>((resolve) => child.stderr!.on("end", resolve));
  const closed = new Promise<void>((resolve) =>
    child.on("exit", (code, signal) => {
      process.removeListener("exit", kill);
      void words.then(() => {
        end(signal ?? `exit code ${code}`);
        resolve();
      });
    }),
  );
  const holds = [child, child.channel!, child.stderr as unknown as { ref(): void; unref(): void }];
  return {
    get alive() {
      return ended === undefined;
    },
    rest: () => holds.forEach((part) => part.unref()),
    request: (op, ...args) =>
      new Promise((resolve, reject) => {
        holds.forEach((part) => part.ref());
        if (ended !== undefined) {
          reject(ended);
          return;
        }
        const id = next++;
        pending.set(id, { resolve, reject });
        child.send({ id, op, args }, (error) => {
          if (error !== null && pending.delete(id)) reject(error);
        });
      }),
    async stop() {
      holds.forEach((part) => part.ref());
      if (ended === undefined) child.disconnect();
      // What hangs inside the runtime does not leave by itself.
      const timer = setTimeout(kill, 2000);
      await closed;
      clearTimeout(timer);
    },
  };
}
