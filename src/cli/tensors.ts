// One tensor of a file of any container that this package reads.
import { LowbitError } from "../../formats/core/errors.ts";
import { nearest } from "../../formats/registry.ts";
import { readGguf, readSafetensors } from "../interop/index.ts";
import { readNpyTensor } from "../onnx/calibrate/npy.ts";
import { modelLayers, readModel, readWeight } from "../onnx/index.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";
import { usageError } from "./spec.ts";

/** A tensor as a matrix: dimensions but the last are rows. */
export interface FileTensor {
  readonly name: string;
  readonly tensor: Tensor;
  /** How many others the file has. */
  readonly others: number;
}

/**
 * The tensor called `name`, or the one with most values.
 * @throws LowbitError E_IO, E_CONTAINER, E_ONNX; E_CLI for a name where there is one tensor; E_UNSUPPORTED for names of
 * files that are none of these
 */
export async function readTensor(path: string, name?: string): Promise<FileTensor> {
  const extension = /\.([a-z]+)$/i.exec(path)?.[1].toLowerCase();
  switch (extension) {
    case "npy":
      if (name !== undefined) throw usageError(`--tensor: expected a file of named tensors, got ${path}, which holds one. Leave it out.`);
      return fromNpy(path);
    case "safetensors":
      return fromContainer(path, await readSafetensors(path), name);
    case "gguf":
      return fromContainer(path, await readGguf(path), name);
    case "onnx":
      return fromModel(path, name);
    default:
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${path}: expected a file called .npy, .safetensors, .gguf or .onnx, got another name. Rename or convert it.`,
      );
  }
}

const matrix = (data: Float32Array, shape: readonly number[]): Tensor => {
  const k = shape.length === 0 ? 1 : shape[shape.length - 1];
  return tensor(data, [k === 0 ? 0 : data.length / k, k]);
};

async function fromNpy(path: string): Promise<FileTensor> {
  const { type, data, dims } = await readNpyTensor(path);
  if (!type.startsWith("float"))
    throw new LowbitError("E_CONTAINER", `${path}: expected floats, got ${type}. Write it with numpy.save(path, x.astype("float32")).`);
  return { name: path, tensor: matrix(Float32Array.from(data as ArrayLike<number>), dims), others: 0 };
}

interface Container {
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[]; values(): Promise<Float32Array> }>;
  close(): Promise<void>;
}

const elements = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

function choose<T>(path: string, all: ReadonlyMap<string, T>, name: string | undefined, sizeOf: (one: T) => number): [string, T] {
  const known = [...all];
  if (name === undefined) {
    const largest = known.reduce<[string, T] | null>((best, one) => (best === null || sizeOf(one[1]) > sizeOf(best[1]) ? one : best), null);
    if (largest === null) throw new LowbitError("E_CONTAINER", `${path}: expected a file with tensors, got none. Is it the right file?`);
    return largest;
  }
  const found = all.get(name);
  if (found !== undefined) return [name, found];
  const near = nearest(name, [...all.keys()]).join(", ");
  throw new LowbitError(
    "E_CONTAINER",
    `${path}: expected the name of one of its ${known.length} tensors, got ${JSON.stringify(name)}. Nearest: ${near}.`,
  );
}

async function fromContainer(path: string, file: Container, name: string | undefined): Promise<FileTensor> {
  try {
    const [found, one] = choose(path, file.tensors, name, ({ shape }) => elements(shape));
    return { name: found, tensor: matrix(await one.values(), one.shape), others: file.tensors.size - 1 };
  } finally {
    await file.close();
  }
}

function fromModel(path: string, name: string | undefined): FileTensor {
  const model = readModel(path);
  try {
    const layers = new Map(modelLayers(model).map((layer) => [layer.name, layer]));
    const [found, layer] = choose(path, layers, name, ({ rows, k }) => rows * k);
    const weight = readWeight(model, layer);
    return { name: found, tensor: { ...weight, data: weight.data.slice() }, others: layers.size - 1 };
  } finally {
    model.close();
  }
}
