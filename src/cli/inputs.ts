// Inputs for `lowbit verify --inputs NAME=FILE.npy`.
import { readNpyTensor } from "../onnx/calibrate/npy.ts";
import type { FeedTensor, Feeds } from "../onnx/verify/feeds.ts";
import { usageError } from "./spec.ts";

/**
 * Feeds from NAME=FILE arguments: the i-th file of every name makes the i-th sample.
 * @throws LowbitError E_CLI, E_IO, E_CONTAINER
 */
export async function readFeeds(args: readonly string[]): Promise<Feeds[]> {
  const byName = new Map<string, FeedTensor[]>();
  for (const arg of args) {
    const [, name, path] = /^([^=]+)=(.+)$/s.exec(arg) ?? [];
    if (name === undefined)
      throw usageError(
        `--inputs: expected an existing path or NAME=FILE.npy, got ${JSON.stringify(arg)}. NAME is an input of the model, see lowbit inspect.`,
      );
    byName.set(name, [...(byName.get(name) ?? []), await readNpyTensor(path)]);
  }
  const samples = Math.max(...[...byName.values()].map((list) => list.length));
  for (const [name, list] of byName)
    if (list.length !== samples)
      throw usageError(
        `--inputs: expected ${samples} files for every input, got ${list.length} for ${name}. Give each sample all its inputs.`,
      );
  return Array.from({ length: samples }, (_, i) => Object.fromEntries([...byName].map(([name, list]) => [name, list[i]])));
}
