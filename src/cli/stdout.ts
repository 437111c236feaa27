// Results on stdout. A reader that stops early (`lowbit formats | head`) takes nothing from the exit code; a disk that
// is full, or any other failure to write a result, is a failure of the command.
import { LowbitError } from "../../formats/core/errors.ts";

export interface Output {
  print(text: string): void;
  /** Waits until all is written. Returns what went wrong, but for a reader that stopped. */
  settled(): Promise<LowbitError | undefined>;
}

const REASONS: ReadonlyMap<string, string> = new Map([
  ["ENOSPC", "a full disk"],
  ["EDQUOT", "a full quota"],
  ["EIO", "an error of the device"],
]);

export function standardOutput(stream: NodeJS.WriteStream = process.stdout, errors: NodeJS.WriteStream = process.stderr): Output {
  let failure: NodeJS.ErrnoException | undefined;
  stream.on("error", (error: NodeJS.ErrnoException) => (failure ??= error));
  // Nobody hears what is said there: the exit code still tells.
  errors.on("error", () => undefined);
  return {
    print(text) {
      if (failure === undefined) stream.write(text);
    },
    async settled() {
      if (failure === undefined) await new Promise<void>((resolve) => stream.write("", () => resolve()));
      // The event of an error comes after the callback of its write.
      await new Promise((resolve) => setImmediate(resolve));
      if (failure === undefined || failure.code === "EPIPE") return undefined;
      const reason = REASONS.get(failure.code ?? "") ?? failure.message;
      return new LowbitError("E_IO", `stdout: expected to write the result, got ${reason}. Make room, or send it elsewhere.`, {
        cause: failure,
      });
    },
  };
}
