// Runs that go on where another stopped (--resume: a journal beside the output), and runs that make a share of the
// weights (--shard i/n: a file beside the output), put together by `mergeShards`.
import { LowbitError } from "../../../formats/core/errors.ts";
import { disk, nodePath, statOf } from "../../files/calls.ts";
import { outputPath } from "../../files/outputs.ts";
import { openStaging } from "../../files/staging.ts";
import type { OnnxModel } from "../file/model.ts";
import type { QuantizeModelOptions } from "../options.ts";
import type { Feeds } from "../verify/feeds.ts";
import { differenceOf, identityOf, readIdentity, type Identity } from "./identity.ts";
import { openLog, readLog, type Log } from "./log.ts";
import { parseShard, shardPath, shardsBeside, type Shard } from "./shard.ts";
import { logStore, type WeightStore } from "./store.ts";

export const journalPath = (output: string): string => `${outputPath(output)}.journal`;

const refused = (path: string, difference: string): LowbitError =>
  new LowbitError(
    "E_EXISTS",
    `${path}: expected the work of this run, got ${difference}. Give the same model, data and options, or remove that file to begin again.`,
  );

/** Opens a log of this run, begins it where it is new, refuses another run's. */
function openOwn(path: string, identity: Identity, resume: boolean, shard: Shard | undefined): Log {
  const log = openLog(path, resume);
  try {
    const [first] = log.records;
    if (first === undefined) log.add({ ...identity, ...(shard === undefined ? {} : { shard }) });
    else {
      const difference = differenceOf(readIdentity(path, first.meta), identity);
      if (difference !== undefined) throw refused(path, difference);
    }
    return log;
  } catch (error) {
    log.close();
    throw error;
  }
}

export interface Run {
  readonly store: WeightStore & { readonly taken: () => number };
  /** A file to remove together with the appearance of the output. */
  readonly path: string;
  /** A shard that an earlier run finished: its path. */
  readonly finished?: boolean;
  /** Of a shard: gives it its name. */
  finish(): string;
  /** After a failure: keeps the work for the next run with --resume, else removes it. */
  close(failed: boolean): void;
}

/** Weights of an algorithm on disk beside the output instead of in memory, for as long as a run lasts. */
export function spillStore(output: string): { readonly store: WeightStore; close(): void } {
  const staging = openStaging(nodePath().dirname(outputPath(output)));
  try {
    const log = openLog(staging.file("weights"), false, false);
    return {
      store: logStore([log], { keepsAll: false, remedy: "Run again." }),
      close() {
        log.close();
        staging.remove();
      },
    };
  } catch (error) {
    staging.remove();
    throw error;
  }
}

function remove(path: string): void {
  if (statOf(path, false) !== undefined) disk.unlink(path);
}

/**
 * The run that options ask for by resume or shard.
 * @throws LowbitError E_EXISTS where a journal or shard of another run is there, E_IO; TypeError, RangeError for
 * options
 */
export function openRunLog(model: OnnxModel, output: string, options: QuantizeModelOptions, data: readonly Feeds[] | string | null): Run {
  const shard = options.shard === undefined ? undefined : parseShard(options.shard);
  const resume = options.resume ?? false;
  const identity = identityOf(model, options, data);
  const final = shard === undefined ? undefined : shardPath(output, shard);
  const path = final === undefined ? journalPath(output) : `${final}.journal`;
  let finished = false;
  if (final !== undefined && statOf(final, false) !== undefined) {
    if (!resume && options.force !== true)
      throw new LowbitError(
        "E_EXISTS",
        `${final}: expected a new file, got one that exists. Pass resume (--resume) to leave a finished shard, or force (--force) to make it again.`,
      );
    finished = resume && isFinished(final, identity);
  }
  const log = finished ? readLog(final!) : openOwn(path, identity, resume, shard);
  const store = logStore([log], {
    ...(shard === undefined ? {} : { shard }),
    remedy: "Give the model of before, or remove that file to begin again.",
  });
  return {
    store,
    path,
    finished,
    finish() {
      if (finished) return final!;
      log.add({ kind: "end" });
      log.sync();
      disk.rename(path, final!);
      return final!;
    },
    close(failed) {
      log.close();
      if (failed && !resume && !finished) remove(path);
    },
  };
}

/** True for a whole shard of this run. @throws LowbitError E_EXISTS for one of another run */
function isFinished(path: string, identity: Identity): boolean {
  const log = readLog(path);
  try {
    const difference = differenceOf(readIdentity(path, log.records[0]?.meta), identity);
    if (difference !== undefined) throw refused(path, difference);
    return log.records.at(-1)?.meta.kind === "end";
  } finally {
    log.close();
  }
}

/** Shards of one output, opened and found to belong together. */
export interface Shards {
  readonly identity: Identity;
  readonly logs: readonly Log[];
  close(): void;
}

/** The identity that most shards have: the others are the stale ones. */
function mostCommon(identities: readonly Identity[]): Identity {
  const votes = (one: Identity): number => identities.filter((other) => differenceOf(other, one) === undefined).length;
  return identities.reduce((best, one) => (votes(one) > votes(best) ? one : best));
}

/**
 * Opens the shards beside an output.
 * @throws LowbitError E_IO for a missing one, E_CONTAINER for one unfinished or of another run, by name
 */
export function openShards(output: string): Shards {
  const logs: Log[] = [];
  const close = (): void => logs.forEach((log) => log.close());
  try {
    const files = shardsBeside(output);
    const identities: Identity[] = [];
    for (const { path, index } of files) {
      const log = readLog(path);
      logs.push(log);
      const own = readIdentity(path, log.records[0]?.meta);
      const again = `Make it again (--shard ${index}/${files.length} --force).`;
      if (log.records.at(-1)?.meta.kind !== "end")
        throw new LowbitError("E_CONTAINER", `${path}: expected a whole shard, got one that ends early. ${again}`);
      const shard = log.records[0].meta.shard as Shard | undefined;
      if (shard?.index !== index || shard.count !== files.length)
        throw new LowbitError(
          "E_CONTAINER",
          `${path}: expected shard ${index} of ${files.length}, got ${shard === undefined ? "none" : `shard ${shard.index} of ${shard.count}`} under this name. ${again}`,
        );
      identities.push(own);
    }
    const identity = mostCommon(identities);
    identities.forEach((own, i) => {
      const difference = differenceOf(own, identity);
      if (difference === undefined) return;
      const again = `Make it again (--shard ${files[i].index}/${files.length} --force).`;
      throw new LowbitError(
        "E_CONTAINER",
        `${files[i].path}: expected a shard of the same run as ${files[identities.indexOf(identity)].path}, got ${difference}. ${again}`,
      );
    });
    return { identity, logs, close };
  } catch (error) {
    close();
    throw error;
  }
}
