// Outputs: whether they may be written.
import { LowbitError } from "../../formats/core/errors.ts";
import { disk, idOf, ioError, kindOfFile, nodePath, statOf } from "./calls.ts";
import { recover } from "./commit.ts";

/**
 * What identifies the file at a path, links followed, and whether the path is that file itself; undefined where there
 * is none.
 */
export function fileId(path: string): { readonly id: string; readonly plain: boolean } | undefined {
  const stat = statOf(path);
  return stat === undefined ? undefined : { id: idOf(stat), plain: statOf(path, false)?.isFile() === true };
}

/** The file that an output path stands for: where it is a link, the file that the link leads to. */
export function outputPath(output: string): string {
  if (statOf(output, false)?.isSymbolicLink() !== true) return output;
  try {
    return disk.realpath(output);
  } catch (cause) {
    throw ioError("follow the link to a file", output, cause);
  }
}

export const outputFolder = (output: string): string => nodePath().dirname(outputPath(output));

/** How an output may be written. */
export interface OutputRules {
  /** Over a file that exists. */
  readonly force?: boolean;
  /** An output that is a link: true (default) writes the file that it leads to, false refuses it. */
  readonly followLinks?: boolean;
}

/**
 * Checks that `output` may be written: not one of the inputs, no folder, device or FIFO, and new unless `force`. What a
 * killed run left beside it is removed first.
 * @throws LowbitError E_EXISTS, E_IO
 */
export function checkOutput(output: string, inputs: readonly string[], rules: OutputRules | boolean): void {
  const { force = false, followLinks = true } = typeof rules === "boolean" ? { force: rules } : rules;
  const isLink = statOf(output, false)?.isSymbolicLink() === true;
  if (isLink && !followLinks)
    throw new LowbitError("E_EXISTS", `${output}: expected a file or a new name, got a link. Name the file that it leads to.`);
  if (isLink && statOf(output) === undefined)
    throw new LowbitError("E_IO", `${output}: expected a file or a new name, got a link that leads nowhere. Remove the link.`);
  recover(outputFolder(output));
  const stat = statOf(output);
  if (stat === undefined) return;
  for (const input of inputs) {
    const other = statOf(input);
    if (other !== undefined && idOf(other) === idOf(stat)) {
      throw new LowbitError(
        "E_EXISTS",
        `${output}: expected another file than the input, got ${input}. Choose another output; the input is never overwritten.`,
      );
    }
  }
  if (!stat.isFile()) throw new LowbitError("E_IO", `${output}: expected a file name, got ${kindOfFile(stat)}. Name the file to write.`);
  if (!force)
    throw new LowbitError("E_EXISTS", `${output}: expected a new file, got one that exists. Pass force (--force) to overwrite it.`);
}

/** Makes a folder, and those above it, where there is none. @throws LowbitError E_IO */
export function makeFolder(folder: string): void {
  if (statOf(folder)?.isDirectory() === true) return;
  const above = nodePath().dirname(folder);
  if (above !== folder) makeFolder(above);
  try {
    disk.mkdir(folder, 0o777);
  } catch (cause) {
    throw ioError("make a folder", folder, cause);
  }
}
