// Statistics of calibration data as a file: sums over the data, by what layers read. Data can be divided over machines,
// since sums add up; quantizing then needs no run of the model, and the memory of one layer's sums at a time. The sums
// of shards are added in the order of their numbers: equal to those of one run but for the rounding of float64 sums.
import { LowbitError } from "../../../formats/core/errors.ts";
import { disk, nodeCrypto, nodePath, statOf } from "../../files/calls.ts";
import { outputPath } from "../../files/outputs.ts";
import { openStaging } from "../../files/staging.ts";
import type { LayerStatistics } from "../../quantize/statistics.ts";
import { readModel } from "../file/io.ts";
import type { OnnxModel } from "../file/model.ts";
import type { Feeds } from "../verify/feeds.ts";
import { buildScopes } from "../graph/graph.ts";
import { nameFilter, type NamePattern } from "../patterns.ts";
import { layersOf } from "../primitives.ts";
import { hashFeeds, hashModel } from "../journal/hashes.ts";
import { openLog, readLog, type Log, type LogRecord } from "../journal/log.ts";
import { parseShard, shardPath, shardsBeside } from "../journal/shard.ts";
import { LIBRARY_VERSION } from "../journal/version.ts";
import { readFeeds, type CalibrationData } from "./sources.ts";
import { collectPasses, inputGroups, type CollectOptions, type InputGroup, type InputStatistics } from "./statistics.ts";

/** What `calibrateFile` looks at, and how much memory it takes. */
export interface CalibrateFileOptions extends Pick<
  CollectOptions,
  "maxTokens" | "every" | "holdOut" | "memory" | "threads" | "signal" | "onProgress"
> {
  /** Layers by name (globs or /regex/); default: all that multiply vectors. */
  readonly layers?: readonly NamePattern[];
  readonly maxBatches?: number;
  /** "3/8": look at this share of the batches only, and write `<output>.3-of-8.shard` for `mergeStatisticsFiles`. */
  readonly shard?: string;
  /** Overwrite a file that exists. */
  readonly force?: boolean;
}

/** What a file of statistics holds. */
export interface CalibrateFileReport {
  readonly output: string;
  /** Batches looked at, of how many. */
  readonly batches: number;
  readonly of: number;
  /** Different inputs of layers whose sums the file has. */
  readonly inputs: number;
  /** Layers that cannot be calibrated, by name, with the reason. */
  readonly refused: ReadonlyMap<string, string>;
}

/** What the sums of two files must share to be added. */
interface Head {
  readonly kind: "statistics";
  readonly version: string;
  readonly model: string;
  readonly calibration: string;
  readonly options: string;
  readonly shard: string;
}

const CHANNELS = ["sum", "sumAbs", "sumSquares", "min", "max"] as const;

const keyOf = ({ input, view }: InputGroup): string => JSON.stringify([input, view.key, view.k, view.groups]);

/** Numbers of one list of statistics: rows, weight, channels, the lower triangle of the Hessian. */
function encode(list: readonly LayerStatistics[]): Uint8Array[] {
  return list.flatMap((one) => {
    const { k, hessian } = one;
    const parts: Float64Array[] = [Float64Array.of(one.rows, one.weight), ...CHANNELS.map((name) => one[name])];
    const triangle = new Float64Array((k * (k + 1)) / 2);
    for (let i = 0, at = 0; i < k; i++) for (let j = 0; j <= i; j++) triangle[at++] = hessian![i * k + j];
    return [...parts, triangle].map((array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  });
}

const bytesOf = (k: number): number => 8 * (2 + 5 * k + (k * (k + 1)) / 2);

function decode(bytes: Uint8Array<ArrayBuffer>, k: number, count: number, from: number): LayerStatistics[] {
  return Array.from({ length: count }, (_, g) => {
    const numbers = new Float64Array(bytes.buffer, bytes.byteOffset + from + g * bytesOf(k), bytesOf(k) / 8);
    const channel = (i: number): Float64Array<ArrayBuffer> => numbers.slice(2 + i * k, 2 + (i + 1) * k);
    const hessian = new Float64Array(k * k);
    for (let i = 0, at = 2 + 5 * k; i < k; i++) for (let j = 0; j <= i; j++) hessian[i * k + j] = hessian[j * k + i] = numbers[at++];
    const [sum, sumAbs, sumSquares, min, max] = CHANNELS.map((_name, i) => channel(i));
    return { k, rows: numbers[0], weight: numbers[1], hessian, sum, sumAbs, sumSquares, min, max };
  });
}

/** A file that gets its name when it is whole. @throws LowbitError E_EXISTS */
function writeLog(output: string, force: boolean, write: (log: Log) => Promise<void> | void): Promise<void> {
  return (async () => {
    if (!force && statOf(output, false) !== undefined)
      throw new LowbitError("E_EXISTS", `${output}: expected a new file, got one that exists. Pass force (--force) to overwrite it.`);
    const staging = openStaging(nodePath().dirname(outputPath(output)));
    try {
      const log = openLog(staging.file("statistics"), false);
      try {
        await write(log);
        log.sync();
      } finally {
        log.close();
      }
      disk.rename(staging.file("statistics"), outputPath(output));
    } finally {
      staging.remove();
    }
  })();
}

function addGroup(log: Log, group: { key: string; name: string; k: number; groups: number }, statistics: InputStatistics): void {
  const held = statistics.heldOut ?? [];
  log.add({ kind: "input", ...group, range: [statistics.range.min, statistics.range.max].map(String), held: held.length > 0 }, [
    ...encode(statistics.statistics),
    ...encode(held),
  ]);
}

/**
 * Runs a model on calibration data and writes the statistics of its layers' inputs to a file, for `quantizeModel({
 * statistics })`.
 * @throws LowbitError E_CALIBRATION, E_EXISTS, E_IO, E_RUNTIME, E_ABORTED; RangeError for a shard
 * @example await calibrateToFile("model.onnx", "data.npz", "model.stats"); // for --calibration-stats
 */
export async function calibrateToFile(
  input: string,
  data: CalibrationData,
  output: string,
  options: CalibrateFileOptions = {},
): Promise<CalibrateFileReport> {
  const { shard: text, layers: patterns, maxBatches, signal, force = false, ...collecting } = options;
  const shard = text === undefined ? { index: 1, count: 1 } : parseShard(text);
  const model = readModel(input);
  try {
    const all = layersOf(buildScopes(model), model);
    const filter = nameFilter(patterns === undefined ? {} : { include: patterns }, [...new Set(all.map(({ name }) => name))]);
    const { groups, refused } = inputGroups(
      model,
      all.filter(({ name }) => filter(name) === undefined),
    );
    if (groups.length === 0) throw new LowbitError("E_CALIBRATION", `${input}: expected layers that multiply vectors, got none.`);
    const feeds = await readFeeds(model, data, {
      ...(maxBatches === undefined ? {} : { maxBatches }),
      ...(signal === undefined ? {} : { signal }),
    });
    const index = (batch: number): number => shard.index - 1 + batch * shard.count;
    const mine: readonly Feeds[] = feeds.filter((_, i) => i % shard.count === shard.index - 1);
    if (mine.length === 0)
      throw new LowbitError(
        "E_CALIBRATION",
        `shard ${text}: expected a batch of the data, got none: there are ${feeds.length}. Divide by fewer.`,
      );
    const { onProgress: _, memory: __, threads: ___, ...compared } = collecting;
    const head: Head = {
      kind: "statistics",
      version: LIBRARY_VERSION,
      model: hashModel(model),
      calibration: hashFeeds(feeds),
      options: JSON.stringify({ ...compared, layers: patterns?.map(String) }),
      shard: `${shard.index}/${shard.count}`,
    };
    const path = text === undefined ? output : shardPath(output, shard);
    await writeLog(path, force, async (log) => {
      log.add({ ...head });
      const share = { total: feeds.length, index };
      for await (const pass of collectPasses(model, mine, groups, { ...collecting, ...(signal === undefined ? {} : { signal }), share }))
        for (const [group, statistics] of pass) {
          const { view, layers } = group;
          addGroup(log, { key: keyOf(group), name: layers[0].name, k: view.k, groups: view.groups }, statistics);
        }
      log.add({ kind: "end" });
    });
    const names = new Map([...refused].map(([layer, reason]) => [layer.name, reason]));
    return { output: path, batches: mine.length, of: feeds.length, inputs: groups.length, refused: names };
  } finally {
    model.close();
  }
}

function headOf(path: string, log: Log): Head {
  const meta = log.records[0]?.meta as unknown as Head | undefined;
  if (meta?.kind !== "statistics" || log.records.at(-1)?.meta.kind !== "end")
    throw new LowbitError(
      "E_CONTAINER",
      `${path}: expected whole statistics of lowbit calibrate, got ${meta?.kind === "statistics" ? "an end too early" : "another file"}. Make them again.`,
    );
  return meta;
}

/** Adds b to a, in place. */
function add(a: LayerStatistics, b: LayerStatistics): LayerStatistics {
  for (const name of ["sum", "sumAbs", "sumSquares", "hessian"] as const) b[name]!.forEach((value, i) => (a[name]![i] += value));
  b.min.forEach((value, i) => (a.min[i] = Math.min(a.min[i], value)));
  b.max.forEach((value, i) => (a.max[i] = Math.max(a.max[i], value)));
  return { ...a, rows: a.rows + b.rows, weight: a.weight + b.weight };
}

function read(log: Log, record: LogRecord): InputStatistics {
  const { k, groups, held, range, name } = record.meta as unknown as {
    k: number;
    groups: number;
    held: boolean;
    range: string[];
    name: string;
  };
  const bytes = log.data(record);
  return {
    input: name,
    statistics: decode(bytes, k, groups, 0),
    heldOut: held ? decode(bytes, k, groups, groups * bytesOf(k)) : null,
    range: { min: Number(range[0]), max: Number(range[1]) },
    observer: null,
    drift: null,
    heldOutDrift: null,
  };
}

/**
 * Adds up the shards beside `output` that `calibrateToFile` wrote with `shard`.
 * @throws LowbitError E_IO for a missing shard, E_CONTAINER for one of other data, model or version, by name; E_EXISTS
 * @example
 * await calibrateToFile("model.onnx", "data.npz", "model.stats", { shard: "1/2" }); // each on a machine of its own
 * await calibrateToFile("model.onnx", "data.npz", "model.stats", { shard: "2/2" });
 * (await mergeStatisticsFiles("model.stats")).shards // 2
 */
export async function mergeStatisticsFiles(
  output: string,
  options: { readonly force?: boolean } = {},
): Promise<{ output: string; shards: number; inputs: number }> {
  const files = shardsBeside(output);
  const logs = files.map(({ path }) => readLog(path));
  try {
    const heads = files.map(({ path }, i) => headOf(path, logs[i]));
    heads.forEach((head, i) => {
      for (const key of ["version", "model", "calibration", "options"] as const)
        if (head[key] !== heads[0][key])
          throw new LowbitError(
            "E_CONTAINER",
            `${files[i].path}: expected the same ${key} as ${files[0].path}, got another. Make the stale one again (--shard ${files[i].index}/${files.length} --force).`,
          );
      if (head.shard !== `${files[i].index}/${files.length}`)
        throw new LowbitError(
          "E_CONTAINER",
          `${files[i].path}: expected shard ${files[i].index}/${files.length}, got ${head.shard} under this name.`,
        );
    });
    const inputs = logs[0].records.filter(({ meta }) => meta.kind === "input");
    await writeLog(output, options.force ?? false, (out) => {
      out.add({ ...heads[0], shard: "1/1" });
      inputs.forEach((record, at) => {
        const own = logs.map((log) => read(log, log.records.filter(({ meta }) => meta.kind === "input")[at]));
        const sum = (lists: readonly (readonly LayerStatistics[] | null)[]): LayerStatistics[] =>
          lists
            .flatMap((list) => (list === null ? [] : [list]))
            .reduce<LayerStatistics[]>((a, b) => (a.length === 0 ? [...b] : a.map((one, g) => add(one, b[g]))), []);
        const heldOut = sum(own.map((one) => one.heldOut));
        const { key, name, k, groups } = record.meta as unknown as { key: string; name: string; k: number; groups: number };
        const range = { min: Math.min(...own.map((one) => one.range.min)), max: Math.max(...own.map((one) => one.range.max)) };
        addGroup(
          out,
          { key, name, k, groups },
          { ...own[0], statistics: sum(own.map((one) => one.statistics)), heldOut: heldOut.length > 0 ? heldOut : null, range },
        );
      });
      out.add({ kind: "end" });
    });
    return { output, shards: files.length, inputs: inputs.length };
  } finally {
    for (const log of logs) log.close();
  }
}

export interface StatisticsFile {
  /** SHA-256 of what it says. */
  readonly hash: string;
  /** @throws LowbitError E_CALIBRATION where it has none for this input */
  of(group: InputGroup): InputStatistics;
  close(): void;
}

/**
 * Opens statistics for a model.
 * @throws LowbitError E_CONTAINER, E_IO, E_CALIBRATION where they are those of another model
 */
export function openStatistics(path: string, model: OnnxModel | null): StatisticsFile {
  const log = readLog(path);
  try {
    const head = headOf(path, log);
    if (model !== null && head.model !== hashModel(model))
      throw new LowbitError(
        "E_CALIBRATION",
        `${path}: expected statistics of this model, got those of another. Run lowbit calibrate on it.`,
      );
    const records = new Map(log.records.filter(({ meta }) => meta.kind === "input").map((record) => [String(record.meta.key), record]));
    const hash = nodeCrypto()
      .createHash("sha256")
      .update(log.records.map(({ sum }) => sum).join())
      .digest("hex");
    return {
      hash,
      of(group) {
        const record = records.get(keyOf(group));
        if (record === undefined)
          throw new LowbitError(
            "E_CALIBRATION",
            `${path}: expected statistics for layer ${group.layers[0].name}, got none. Calibrate that layer too (--layers).`,
          );
        const found = read(log, record);
        const { sparse } = group.view;
        if (!sparse && found.statistics.some(({ rows }) => rows === 0))
          throw new LowbitError(
            "E_CALIBRATION",
            `${path}: expected sums over data for layer ${group.layers[0].name}, got an unmerged shard. Run lowbit merge.`,
          );
        return { ...found, input: group.input, heldOut: sparse || found.heldOut?.every(({ rows }) => rows > 0) ? found.heldOut : null };
      },
      close: () => log.close(),
    };
  } catch (error) {
    log.close();
    throw error;
  }
}
