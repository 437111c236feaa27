// Which share of the work a run does, and the files of shards.
import { LowbitError } from "../../../formats/core/errors.ts";
import { disk, nodePath } from "../../files/calls.ts";
import { outputPath } from "../../files/outputs.ts";

export interface Shard {
  /** From 1. */
  readonly index: number;
  readonly count: number;
}

/** "3/8" as a shard. @throws RangeError */
export function parseShard(text: string): Shard {
  const [, index, count] = (/^(\d{1,6})\/(\d{1,6})$/.exec(text) ?? []).map(Number);
  if (!(index >= 1 && index <= count && count <= 10_000))
    throw new RangeError(`shard: expected I/N with 1 <= I <= N <= 10000, such as 3/8, got ${JSON.stringify(text)}`);
  return { index, count };
}

export const shardPath = (output: string, { index, count }: Shard): string => `${outputPath(output)}.${index}-of-${count}.shard`;

const PATTERN = /\.(\d+)-of-(\d+)\.shard$/;

/**
 * Numbers and count of the shards beside an output.
 * @throws LowbitError E_IO where some are missing, E_CONTAINER where counts differ
 */
export function shardsBeside(output: string): { path: string; index: number }[] {
  const path = nodePath();
  const target = outputPath(output);
  const [folder, name] = [path.dirname(target), path.basename(target)];
  let names: string[] = [];
  try {
    names = disk.readdir(folder);
  } catch {
    // said below
  }
  const found = names.flatMap((file) => {
    const match = PATTERN.exec(file);
    return match !== null && file.slice(0, match.index) === name
      ? [{ path: path.join(folder, file), index: Number(match[1]), count: Number(match[2]) }]
      : [];
  });
  if (found.length === 0)
    throw new LowbitError(
      "E_IO",
      `${output}: expected shards beside it (${name}.1-of-N.shard ...), got none. Make them with --shard I/N and this output.`,
    );
  const counts = [...new Set(found.map(({ count }) => count))];
  if (counts.length > 1)
    throw new LowbitError(
      "E_CONTAINER",
      `${output}: expected shards of one division, got of ${counts.sort((a, b) => a - b).join(" and of ")}. Remove those that are not meant.`,
    );
  const [count] = counts;
  const there = new Set(found.map(({ index }) => index));
  const missing = Array.from({ length: count }, (_, i) => i + 1).filter((i) => !there.has(i));
  if (missing.length > 0)
    throw new LowbitError(
      "E_IO",
      `${output}: expected ${count} shards, got none of ${missing
        .slice(0, 8)
        .map((i) => `${name}.${i}-of-${count}.shard`)
        .join(
          ", ",
        )}${missing.length > 8 ? ` and ${missing.length - 8} more` : ""}. Run ${missing.length === 1 ? "it" : "them"} again (--shard ${missing[0]}/${count} --resume).`,
    );
  return found.sort((a, b) => a.index - b.index);
}
