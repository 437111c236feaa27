// Checks and conversions of calibration data against the inputs of a model: arrays of many samples become feeds, every
// feed is checked before a run.
import { LowbitError } from "../../../formats/core/errors.ts";
import { encodeHalf, halfTable } from "../file/half.ts";
import type { OnnxModel } from "../file/model.ts";
import { dataTypeName } from "../file/types.ts";
import { tensorElementType } from "../graph/infer.ts";
import type { FeedTensor, Feeds, InputMetadata } from "../verify/feeds.ts";

const RUNTIME_TYPES: ReadonlyMap<string, string> = new Map([
  ["float", "float32"],
  ["double", "float64"],
]);

/** Inputs of a model that must be fed. */
export function modelInputs(model: OnnxModel): InputMetadata[] {
  const graph = model.proto.graph!;
  const constants = new Set(graph.initializer.map((tensor) => tensor.name));
  return graph.input
    .filter((input) => !constants.has(input.name))
    .map((input) => {
      const type = dataTypeName(tensorElementType(input.type));
      const tensor = input.type?.value.case === "tensorType" ? input.type.value.value : undefined;
      const shape = (tensor?.shape?.dim ?? []).map((dim) =>
        dim.value.case === "dimValue" ? Number(dim.value.value) : dim.value.case === "dimParam" ? dim.value.value || "?" : "?",
      );
      return { name: input.name, type: RUNTIME_TYPES.get(type) ?? type, shape };
    });
}

type Maker = { from(values: Iterable<never>): FeedTensor["data"] };
const ARRAYS: ReadonlyMap<string, Maker> = new Map<string, Maker>(
  Object.entries({
    float32: Float32Array,
    float64: Float64Array,
    float16: Uint16Array,
    int64: BigInt64Array,
    uint64: BigUint64Array,
    int32: Int32Array,
    uint32: Uint32Array,
    int16: Int16Array,
    uint16: Uint16Array,
    int8: Int8Array,
    uint8: Uint8Array,
    bool: Uint8Array,
  }) as unknown as [string, Maker][],
);
const isFloat = (type: string): boolean => type.startsWith("float");
const isWide = (type: string): boolean => type === "int64" || type === "uint64";

const complain = (at: string, expected: string, got: string, remedy: string): LowbitError =>
  new LowbitError("E_CALIBRATION", `calibration data ${at}: expected ${expected}, got ${got}. ${remedy}`);

/** Numbers of a tensor, float16 codes decoded. */
function numbersOf(tensor: FeedTensor): readonly (number | bigint)[] | ArrayLike<number | bigint> {
  if (tensor.type !== "float16" || !(tensor.data instanceof Uint16Array)) return tensor.data as ArrayLike<number | bigint>;
  const table = halfTable();
  return Float32Array.from(tensor.data, (code) => table[code]);
}

/**
 * A tensor in the type that an input has: floats to floats, integers to integers of another width where every value
 * fits. Nothing else.
 * @throws LowbitError E_CALIBRATION
 */
export function convertTensor(tensor: FeedTensor, type: string, at: string): FeedTensor {
  if (tensor.type === type) return tensor;
  const make = ARRAYS.get(type);
  if (make === undefined || !ARRAYS.has(tensor.type) || isFloat(tensor.type) !== isFloat(type))
    throw complain(at, `${type} data`, tensor.type, "Convert it where the data is made: values may need scaling.");
  const values = numbersOf(tensor);
  const convert = (value: number | bigint): number | bigint =>
    type === "float16" ? encodeHalf(Number(value)) : isWide(type) ? BigInt(value) : Number(value);
  const data = make.from(Array.from(values as ArrayLike<number | bigint>, convert) as never);
  if (!isFloat(type))
    for (let i = 0; i < values.length; i++)
      if (BigInt(values[i]) !== BigInt((data as ArrayLike<number | bigint>)[i]))
        throw complain(at, `values that fit ${type}`, `${values[i]} at index ${i}`, "Was the data made for another model?");
  return { type, data, dims: tensor.dims };
}

/**
 * Checks the feeds of one run: names, types, shapes, lengths, and that floats are finite.
 * @throws LowbitError E_CALIBRATION
 */
export function checkFeeds(feeds: Feeds, inputs: readonly InputMetadata[], at: string): Feeds {
  const quoted = (names: readonly string[]): string => names.map((name) => JSON.stringify(name)).join(", ") || "none";
  const names = typeof feeds === "object" && feeds !== null ? Object.keys(feeds) : [];
  const missing = inputs.filter((input) => !names.includes(input.name)).map((input) => input.name);
  const unknown = names.filter((name) => !inputs.some((input) => input.name === name));
  if (missing.length > 0 || unknown.length > 0)
    throw complain(
      at,
      `arrays for the inputs ${quoted(inputs.map((input) => input.name))}`,
      quoted(names),
      missing.length > 0 ? `Missing: ${quoted(missing)}.` : `Not an input of the model: ${quoted(unknown)}.`,
    );
  return Object.fromEntries(
    inputs.map((input) => [input.name, checkTensor(feeds[input.name], input, `${at}, input ${JSON.stringify(input.name)}`)]),
  );
}

function checkTensor(given: FeedTensor, input: InputMetadata, at: string): FeedTensor {
  const dims = given?.dims;
  if (!Array.isArray(dims) || typeof given.type !== "string" || given.data === undefined)
    throw complain(
      at,
      "{ type, data, dims }",
      JSON.stringify(given)?.slice(0, 60) ?? String(given),
      "A feed holds a typed array, its type and its dims.",
    );
  const count = dims.reduce((a: number, b: number) => a * b, 1);
  if (count !== given.data.length)
    throw complain(at, `${count} values for [${dims.join(", ")}]`, String(given.data.length), "Were the dims given for another array?");
  const wants = `[${input.shape.join(", ")}]`;
  // No shape at all in the model says nothing about the rank.
  if (input.shape.length > 0 && dims.length !== input.shape.length)
    throw complain(at, `${input.shape.length} dimensions ${wants}`, `[${dims.join(", ")}]`, "Add or take away a batch dimension.");
  input.shape.forEach((dim, axis) => {
    if (typeof dim === "number" && dim >= 0 && dim !== dims[axis])
      throw complain(at, `shape ${wants}`, `[${dims.join(", ")}]`, `Dimension ${axis} is ${dim} in the model.`);
  });
  const tensor = convertTensor(given, input.type, at);
  // An empty array is right for a past of length 0 only.
  if (count === 0 && !/past|cache|state/i.test(input.name))
    throw complain(at, "values", `an empty array [${dims.join(", ")}]`, "Leave the sample out.");
  if (isFloat(tensor.type)) {
    const values = numbersOf(tensor) as ArrayLike<number>;
    for (let i = 0; i < values.length; i++)
      if (!Number.isFinite(values[i]))
        throw complain(at, "finite values", `${values[i]} at index ${i}`, "Repair the data, or leave the sample out.");
  }
  return tensor;
}

/** Elements of a batch up to which samples are put together, and samples at most. */
const BATCH_ELEMENTS = 1 << 18;
const BATCH_MAX = 8;

function slice(tensor: FeedTensor, from: number, count: number, keepAxis: boolean): FeedTensor {
  const each = tensor.dims.slice(1).reduce((a, b) => a * b, 1);
  const data = (tensor.data as Float32Array).slice(from * each, (from + count) * each);
  return { type: tensor.type, data, dims: keepAxis ? [count, ...tensor.dims.slice(1)] : tensor.dims.slice(1) };
}

/**
 * Feeds from arrays that hold samples along their first axis. An array of as many dimensions as its input is cut along
 * the batch: into pieces of the size that the model fixes, or of up to 8 samples. One with a dimension more holds whole
 * inputs. An array of one sample goes with every feed.
 * @throws LowbitError E_CALIBRATION
 */
export function* sampleFeeds(arrays: ReadonlyMap<string, FeedTensor>, inputs: readonly InputMetadata[], at: string): Generator<Feeds> {
  const byName = new Map(inputs.map((input) => [input.name, input]));
  const entries = [...arrays].map(([name, tensor]) => {
    const input = byName.get(name);
    if (input === undefined)
      throw complain(
        at,
        `arrays named after the inputs ${inputs.map((i) => JSON.stringify(i.name)).join(", ")}`,
        JSON.stringify(name),
        "Rename the array.",
      );
    const where = `${at}, array ${JSON.stringify(name)}`;
    const rank = input.shape.length;
    const [samples = 0] = tensor.dims;
    if (tensor.dims.length !== rank && tensor.dims.length !== rank + 1)
      throw complain(
        where,
        `samples along the first of ${rank} or ${rank + 1} dimensions (input [${input.shape.join(", ")}])`,
        `[${tensor.dims.join(", ")}]`,
        "Stack the samples of an input.",
      );
    if (samples === 0) throw complain(where, "samples", `an empty array [${tensor.dims.join(", ")}]`, "Give at least one sample.");
    const batched = tensor.dims.length === rank;
    const [first] = input.shape;
    const fixed = batched && typeof first === "number" && first >= 0 ? first : undefined;
    return { name, where, batched, fixed, samples, tensor: convertTensor(tensor, input.type, where) };
  });
  const most = Math.max(...entries.map((entry) => entry.samples));
  for (const { where, samples } of entries)
    if (samples !== most && samples !== 1)
      throw complain(where, `${most} samples as the other arrays`, String(samples), "Give every input the same number of samples.");
  const cut = entries.filter((entry) => entry.samples === most);
  const each = Math.max(1, ...cut.map((entry) => entry.tensor.data.length / most));
  const fixed = cut.find((entry) => entry.fixed !== undefined)?.fixed;
  const size = cut.some((entry) => !entry.batched)
    ? 1
    : (fixed ?? Math.max(1, Math.min(BATCH_MAX, most, Math.floor(BATCH_ELEMENTS / each))));
  if (size < 1 || most < size) throw complain(at, `at least ${size} samples, the batch of the model`, String(most), "Give more samples.");
  for (let from = 0; from < most; from += size) {
    const count = Math.min(size, most - from);
    if (fixed !== undefined && count < size) return; // the rest of a fixed batch
    yield Object.fromEntries(
      entries.map(({ name, batched, samples, tensor }) => [
        name,
        samples === most ? slice(tensor, from, count, batched) : batched ? tensor : slice(tensor, 0, 1, false),
      ]),
    );
  }
}

/** Arrays within arrays that no input has. */
const RANK_MAX = 32;

/**
 * A feed from nested arrays, as a line of JSON has them; one dimension short of the input's means a batch of one.
 * @throws LowbitError E_CALIBRATION
 */
export function nestedFeed(object: unknown, inputs: readonly InputMetadata[], at: string): Feeds {
  if (typeof object !== "object" || object === null || Array.isArray(object))
    throw complain(
      at,
      "an object of arrays by input name",
      Array.isArray(object) ? "an array" : typeof object,
      `Write {"input": [[1, 2]]} a line.`,
    );
  const byName = new Map(inputs.map((input) => [input.name, input]));
  return Object.fromEntries(
    Object.entries(object).map(([name, nested]) => {
      const input = byName.get(name);
      const where = `${at}, ${JSON.stringify(name)}`;
      const dims: number[] = [];
      for (let level: unknown = nested; Array.isArray(level) && dims.length <= RANK_MAX; level = level[0]) dims.push(level.length);
      // every array of a level is as long as its first one
      const fits = (level: unknown, axis: number): boolean =>
        axis === dims.length
          ? typeof level === "number" || typeof level === "boolean"
          : Array.isArray(level) && level.length === dims[axis] && level.every((one) => fits(one, axis + 1));
      if (dims.length > RANK_MAX || !fits(nested, 0))
        throw complain(
          where,
          "numbers in arrays of equal lengths",
          "a ragged array or another type",
          "Pad the rows, or write a line for each.",
        );
      const values = dims.length === 0 ? [nested] : (nested as unknown[]).flat(dims.length - 1);
      if (input === undefined) return [name, { type: "float32", data: new Float32Array(0), dims }]; // refused with the names that there are
      const floats = isFloat(input.type);
      if (!floats && values.some((value) => !Number.isInteger(Number(value))))
        throw complain(where, `${input.type} data`, "fractions", "Was another input meant?");
      const shape = dims.length === input.shape.length - 1 ? [1, ...dims] : dims;
      const wide: FeedTensor = floats
        ? { type: "float64", data: Float64Array.from(values as number[]), dims: shape }
        : { type: "int64", data: BigInt64Array.from(values as number[], (v) => BigInt(Number(v))), dims: shape };
      return [name, convertTensor(wide, input.type, where)];
    }),
  );
}
