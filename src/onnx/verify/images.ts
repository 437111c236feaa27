// Images as inputs: files of a folder decoded (sharp, or the pure decoders pngjs and jpeg-js, all optional), resized
// and normalized as the presets of common models do it. Resizing is ours and the same whatever decodes: separable, with
// the filter stretched where an image shrinks (as PIL and torchvision's antialias).
import { LowbitError } from "../../../formats/core/errors.ts";
import { encodeHalf } from "../file/half.ts";
import { needBuiltin } from "../../files/node.ts";
import { nodePath } from "../../files/calls.ts";
import { readFile } from "../../files/open.ts";
import type { FeedTensor, Feeds, InputMetadata } from "./feeds.ts";

/** How pixels become numbers: (value / 255 - mean) / deviation; raw keeps 0..255. */
export interface Preset {
  readonly mean: readonly [number, number, number];
  readonly deviation: readonly [number, number, number];
  /**
   * The shorter side is scaled to size / crop, then the middle is cut out; null: the whole image is stretched to the
   * size.
   */
  readonly crop: number | null;
  /** Side where the model does not say it. */
  readonly size: number;
  readonly filter: "linear" | "cubic";
  readonly raw?: boolean;
}

const HALF = [0.5, 0.5, 0.5] as const;
/**
 * Sources: torchvision's ImageNet transforms (256, 224); CLIP's (bicubic, its own mean); ViT and Inception (mean and
 * deviation 0.5).
 */
export const PRESETS: ReadonlyMap<string, Preset> = new Map<string, Preset>([
  ["imagenet", { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225], crop: 224 / 256, size: 224, filter: "linear" }],
  [
    "clip",
    { mean: [0.48145466, 0.4578275, 0.40821073], deviation: [0.26862954, 0.26130258, 0.27577711], crop: 1, size: 224, filter: "cubic" },
  ],
  ["half", { mean: HALF, deviation: HALF, crop: null, size: 224, filter: "linear" }],
  ["unit", { mean: [0, 0, 0], deviation: [1, 1, 1], crop: null, size: 224, filter: "linear" }],
  ["raw", { mean: [0, 0, 0], deviation: [1, 1, 1], crop: null, size: 224, filter: "linear", raw: true }],
]);

/** Pixels, three bytes each, rows from above. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

const IMAGES = /\.(png|jpe?g|webp|gif|tiff?|avif)$/i;

interface Sharp {
  (bytes: Uint8Array): {
    rotate(): ReturnType<Sharp>;
    removeAlpha(): ReturnType<Sharp>;
    toColourspace(name: string): ReturnType<Sharp>;
    raw(): {
      toBuffer(options: {
        resolveWithObject: true;
      }): Promise<{ data: Uint8Array; info: { width: number; height: number; channels: number } }>;
    };
  };
}

async function tryImport(name: string): Promise<unknown> {
  try {
    const module = (await import(/* @vite-ignore */ name)) as { default?: unknown };
    return module.default ?? module;
  } catch {
    return undefined;
  }
}

/**
 * Decodes a file with what is installed.
 * @throws LowbitError E_UNSUPPORTED without a decoder, E_CONTAINER for a damaged file
 */
export async function decodeImage(bytes: Uint8Array, path: string): Promise<Pixels> {
  const failed = (cause: unknown): LowbitError =>
    new LowbitError(
      "E_CONTAINER",
      `${path}: expected an image, got ${(cause as Error).message.split("\n")[0]}. Take it out of the folder.`,
      { cause },
    );
  const sharp = (await tryImport("sharp")) as Sharp | undefined;
  if (sharp !== undefined) {
    try {
      const { data, info } = await sharp(bytes).rotate().removeAlpha().toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
      return { width: info.width, height: info.height, data: rgb(data, info.channels) };
    } catch (cause) {
      throw failed(cause);
    }
  }
  const png = /\.png$/i.test(path);
  const name = png ? "pngjs" : "jpeg-js";
  const decoder = png || /\.jpe?g$/i.test(path) ? await tryImport(name) : undefined;
  if (decoder === undefined)
    throw new LowbitError("E_UNSUPPORTED", `${path}: expected a decoder of images, got none. Install one: npm install sharp (or ${name}).`);
  try {
    const image = png
      ? (decoder as { PNG: { sync: { read(bytes: Uint8Array): Pixels } } }).PNG.sync.read(Buffer.from(bytes))
      : (decoder as { decode(bytes: Uint8Array, options: object): Pixels }).decode(bytes, { useTArray: true, formatAsRGBA: true });
    return { width: image.width, height: image.height, data: rgb(image.data, 4) };
  } catch (cause) {
    throw failed(cause);
  }
}

/** Three bytes a pixel, of one (grey), two (grey, alpha), three or four. */
function rgb(data: Uint8Array, channels: number): Uint8Array {
  if (channels === 3) return new Uint8Array(data.buffer, data.byteOffset, data.length);
  const count = data.length / channels;
  const out = new Uint8Array(3 * count);
  for (let i = 0; i < count; i++) for (let c = 0; c < 3; c++) out[3 * i + c] = data[i * channels + (channels < 3 ? 0 : c)];
  return out;
}

const KERNELS = {
  linear: { support: 1, at: (x: number): number => Math.max(0, 1 - Math.abs(x)) },
  // Keys, a = -0.5, as PIL
  cubic: {
    support: 2,
    at: (x: number): number => {
      const t = Math.abs(x);
      return t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
    },
  },
};

/** Weights of the source pixels from `from` on for each target pixel. */
function taps(from: number, to: number, filter: Preset["filter"]): { first: number; weights: Float64Array }[] {
  const { support, at } = KERNELS[filter];
  const scale = from / to;
  const stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - support * stretch + 0.5));
    const last = Math.min(from, Math.floor(center + support * stretch + 0.5));
    const weights = Float64Array.from({ length: Math.max(1, last - first) }, (_, j) => at((first + j + 0.5 - center) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0) || 1;
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Resizes to width x height; floats 0..255, interleaved. */
export function resize(image: Pixels, width: number, height: number, filter: Preset["filter"]): Float32Array {
  const [across, down] = [taps(image.width, width, filter), taps(image.height, height, filter)];
  const rows = new Float32Array(width * image.height * 3);
  for (let y = 0; y < image.height; y++)
    across.forEach(({ first, weights }, x) => {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * image.data[(y * image.width + first + j) * 3 + c];
        rows[(y * width + x) * 3 + c] = sum;
      }
    });
  const out = new Float32Array(width * height * 3);
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < width * 3; x++) {
      let sum = 0;
      for (let j = 0; j < weights.length; j++) sum += weights[j] * rows[(first + j) * width * 3 + x];
      out[y * width * 3 + x] = Math.min(255, Math.max(0, sum));
    }
  });
  return out;
}

interface Layout {
  readonly channels: number;
  readonly width: number;
  readonly height: number;
  /** Channels before rows, or last. */
  readonly first: boolean;
}

function layoutOf(input: InputMetadata, preset: Preset): Layout {
  const { shape, name } = input;
  const colors = (dim: unknown): boolean => dim === 3 || dim === 1;
  const first = shape.length === 4 && (colors(shape[1]) || !colors(shape[3]));
  const [channels, height, width] = first ? [shape[1], shape[2], shape[3]] : [shape[3], shape[1], shape[2]];
  if (shape.length !== 4 || (typeof channels === "number" && !colors(channels)))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `input ${name}: expected an image [batch, 3, height, width] or [batch, height, width, 3], got [${shape.join(", ")}]. Give --inputs instead of --images.`,
    );
  const side = (dim: unknown): number => (typeof dim === "number" && dim > 0 ? dim : preset.size);
  return { channels: typeof channels === "number" ? channels : 3, width: side(width), height: side(height), first };
}

/** One image as the input of a model. */
export function imageTensor(image: Pixels, input: InputMetadata, preset: Preset): FeedTensor {
  const { channels, width, height, first } = layoutOf(input, preset);
  const { mean, deviation, crop, raw = false } = preset;
  const scale = crop === null ? 0 : Math.max(width / image.width, height / image.height) / crop;
  const [w, h] =
    crop === null
      ? [width, height]
      : [Math.max(width, Math.round(image.width * scale)), Math.max(height, Math.round(image.height * scale))];
  const pixels = resize(image, w, h, preset.filter);
  const [left, top] = [(w - width) >> 1, (h - height) >> 1];
  const values = new Float32Array(width * height * channels);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < channels; c++) {
        const at = ((y + top) * w + x + left) * 3;
        // grey: ITU-R BT.601
        const value = channels === 3 ? pixels[at + c] : 0.299 * pixels[at] + 0.587 * pixels[at + 1] + 0.114 * pixels[at + 2];
        const to = first ? (c * height + y) * width + x : (y * width + x) * channels + c;
        values[to] = raw ? Math.round(value) : (value / 255 - mean[c]) / deviation[c];
      }
  const dims = first ? [1, channels, height, width] : [1, height, width, channels];
  const data = input.type === "uint8" ? Uint8Array.from(values) : input.type === "float16" ? Uint16Array.from(values, encodeHalf) : values;
  return { type: input.type, data, dims };
}

/** An input with the sizes that were asked for, by the name of a dimension or as INPUT:AXIS. */
const sized = (input: InputMetadata, dims: Readonly<Record<string, number>>): InputMetadata => ({
  ...input,
  shape: input.shape.map((dim, axis) => {
    const name = [String(dim), `${input.name}:${axis}`].find((one) => Object.hasOwn(dims, one));
    return name === undefined ? dim : dims[name];
  }),
});

/**
 * Images of a folder (or one file) as inputs of a model with one input.
 * @param dims sizes of dimensions that the model leaves open; others are the preset's
 * @throws RangeError for a preset that is not known; LowbitError E_UNSUPPORTED for a model that takes no image, E_IO,
 * E_CONTAINER
 */
export async function imageFeeds(
  path: string,
  preprocess: string,
  inputs: readonly InputMetadata[],
  samples: number,
  dims: Readonly<Record<string, number>> = {},
): Promise<Feeds[]> {
  const preset = PRESETS.get(preprocess);
  if (preset === undefined)
    throw new RangeError(`preprocess: expected one of ${[...PRESETS.keys()].join(", ")}, got ${JSON.stringify(preprocess)}`);
  const found = inputs.find(({ shape }) => shape.length === 4);
  if (found === undefined || inputs.length > 1)
    throw new LowbitError(
      "E_UNSUPPORTED",
      `images: expected a model whose one input is an image, got ${inputs.map(({ name, shape }) => `${name} [${shape.join(", ")}]`).join("; ")}. Give --inputs instead.`,
    );
  const input = sized(found, dims);
  if (!["float32", "float16", "uint8"].includes(input.type) || (input.type === "uint8" && preset.raw !== true))
    throw new LowbitError(
      "E_UNSUPPORTED",
      `input ${input.name}: expected float32 or float16 for preprocess ${preprocess}, got ${input.type}. Bytes are taken as they are: --preprocess raw.`,
    );
  const files = imageFiles(path);
  const feeds: Feeds[] = [];
  for (const file of files.slice(0, samples))
    feeds.push({ [input.name]: imageTensor(await decodeImage(readFile(file), file), input, preset) });
  return feeds;
}

function imageFiles(path: string): string[] {
  const fs = needBuiltin("node:fs", "images", "Pass feeds instead.");
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  if (stat === undefined)
    throw new LowbitError("E_IO", `${path}: expected a folder of images, got no such file or folder. Check the path.`);
  if (!stat.isDirectory()) return [path];
  const files = fs
    .readdirSync(path)
    .filter((name) => IMAGES.test(name))
    .sort();
  if (files.length === 0) throw new LowbitError("E_IO", `${path}: expected images (.png, .jpg, .webp ...), got none. Check the folder.`);
  return files.map((name) => nodePath().join(path, name));
}
