// Options and reports of the ONNX quantizer: the types that users and the command line share, and their checks.
import { LowbitError } from "../../formats/core/errors.ts";

/** Modes, named as transformers.js names its files: `model_q4.onnx`, `model_int8.onnx`, `model_quantized.onnx` (q8), ... */
export type OnnxDtype = "q4" | "int8" | "uint8" | "q8" | "fp16";

export const ONNX_DTYPES: readonly OnnxDtype[] = ["q4", "int8", "uint8", "q8", "fp16"];

/** A pattern on node names: a glob (`*` and `?`), a regular expression as `/source/flags`, or a RegExp. */
export type NamePattern = string | RegExp;

export interface QuantizeOptions {
  /** What to make: q4 (MatMulNBits), int8, uint8 and q8 (dynamic quantization), fp16. */
  dtype: OnnxDtype;
  /** q4: values of K that share a scale: 16, 32, 64, 128 or 256. Default 32. */
  blockSize?: number;
  /** q4: true (default) without zero points. int8, uint8, q8: default true for signed and false for unsigned weights. */
  symmetric?: boolean;
  /** q4: the attribute accuracy_level of MatMulNBits; 4 lets the CPU quantize activations to int8 (faster). Default: not written. */
  accuracyLevel?: number;
  /** int8, uint8, q8: one scale per output channel. Default false (one per tensor, as transformers.js). */
  perChannel?: boolean;
  /** Operators to quantize, e.g. ["MatMul"]. Default: all that the mode knows. */
  opTypes?: readonly string[];
  /** Only nodes whose name matches one of these. A pattern that matches no node is an error. */
  include?: readonly NamePattern[];
  /** No node whose name matches one of these. A pattern that matches no node is an error. */
  exclude?: readonly NamePattern[];
  /** fp16: operators that stay in float32, beside those that must. Default: the list of transformers.js. */
  blockedOps?: readonly string[];
  /** fp16: float32 graph inputs and outputs keep their type (a Cast is put there). Default true. */
  keepIoTypes?: boolean;
  /** Has no effect: graphs whose nodes are not in order are always sorted, with a note. */
  sort?: boolean;
  /** Stops the work; nothing is left behind. */
  signal?: AbortSignal;
  /** Called before each layer and at the end. */
  onProgress?: (progress: QuantizeProgress) => void;
}

export interface QuantizeModelOptions extends QuantizeOptions {
  /** Weights in `<output name>_data` beside the output. Default: where the model would pass 1.5 GB. */
  externalData?: boolean;
  /** Overwrite existing outputs. */
  force?: boolean;
}

export interface QuantizeProgress {
  /** Weight bytes done and in all. */
  readonly done: number;
  readonly total: number;
  /** Layer at work; "" at the end. */
  readonly layer: string;
}

/** What became of one node with a weight. */
export interface LayerReport {
  readonly name: string;
  readonly opType: string;
  /** Name of the weight; "" where both operands are computed. */
  readonly weight: string;
  /** Shape of the weight as the model stores it. */
  readonly shape: readonly number[];
  /** Format of the quantized weight; null where the layer was left alone. */
  readonly format: string | null;
  readonly bytesBefore: number;
  /** Codes, scales and zero points. */
  readonly bytesAfter: number;
  /** 10 log10(sum w^2 / sum (w - w')^2) over the whole weight; Infinity where nothing was lost, null where left alone. */
  readonly sqnrDb: number | null;
  /** Why the layer was left alone. */
  readonly reason?: string;
  /** The layer that counts this weight's bytes, where a weight is shared. */
  readonly sharedWith?: string;
}

export interface QuantizeReport {
  readonly dtype: OnnxDtype;
  readonly layers: readonly LayerReport[];
  readonly quantized: number;
  readonly leftAlone: number;
  /** Bytes of the quantized layers' weights, each once, before and after. */
  readonly weightBytesBefore: number;
  readonly weightBytesAfter: number;
  /** Model and external data. */
  readonly fileBytesBefore: number;
  readonly fileBytesAfter: number;
  readonly seconds: number;
  /** Files written. */
  readonly outputs: readonly string[];
  /** What else was changed: opset raised, nodes sorted. */
  readonly notes: readonly string[];
}

const BLOCK_SIZES: readonly number[] = [16, 32, 64, 128, 256];

/** Checks options; fills defaults that do not depend on the model. @throws TypeError, RangeError */
export function checkOptions(options: QuantizeOptions): void {
  if (!ONNX_DTYPES.includes(options.dtype))
    throw new RangeError(`dtype: expected one of ${ONNX_DTYPES.join(", ")}, got ${String(options.dtype)}`);
  const q4 = options.dtype === "q4";
  const only = (name: string, set: boolean, modes: string): void => {
    if (set) throw new TypeError(`${name}: expected only with ${modes}, got dtype ${options.dtype}`);
  };
  only("blockSize", options.blockSize !== undefined && !q4, "q4");
  only("accuracyLevel", options.accuracyLevel !== undefined && !q4, "q4");
  only("perChannel", options.perChannel !== undefined && (q4 || options.dtype === "fp16"), "int8, uint8 and q8");
  only("symmetric", options.symmetric !== undefined && options.dtype === "fp16", "q4, int8, uint8 and q8");
  only("blockedOps", options.blockedOps !== undefined && options.dtype !== "fp16", "fp16");
  only("keepIoTypes", options.keepIoTypes !== undefined && options.dtype !== "fp16", "fp16");
  if (options.blockSize !== undefined && !BLOCK_SIZES.includes(options.blockSize)) {
    throw new RangeError(`blockSize: expected one of ${BLOCK_SIZES.join(", ")} (what MatMulNBits takes), got ${options.blockSize}`);
  }
  const level = options.accuracyLevel;
  if (level !== undefined && !(Number.isInteger(level) && level >= 0 && level <= 4))
    throw new RangeError(`accuracyLevel: expected 0 to 4, got ${level}`);
}

export function patternRegExp(pattern: NamePattern): RegExp {
  if (pattern instanceof RegExp) return new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ""));
  const regex = /^\/(.+)\/([a-z]*)$/s.exec(pattern);
  if (regex !== null) {
    try {
      return new RegExp(regex[1], regex[2].replace(/[gy]/g, ""));
    } catch (cause) {
      throw new LowbitError(
        "E_CLI",
        `pattern ${pattern}: expected a regular expression, got ${(cause as Error).message}. Correct it, or use a glob.`,
        { cause },
      );
    }
  }
  const source = pattern
    .replace(/[\\^$.|+()[\]{}]/g, "\\$&")
    .replaceAll("*", ".*")
    .replaceAll("?", ".");
  return new RegExp(`^${source}$`, "s");
}

/** Decides by name which layers are taken; returns the reason where one is not. @throws LowbitError where a pattern matches no name */
export function nameFilter(options: QuantizeOptions, names: readonly string[]): (name: string) => string | undefined {
  const compile = (what: string, patterns: readonly NamePattern[] | undefined) =>
    patterns?.map((pattern) => {
      const regex = patternRegExp(pattern);
      if (!names.some((name) => regex.test(name))) {
        throw new LowbitError(
          "E_ONNX",
          `${what} ${String(pattern)}: expected to match a node with a weight, got none of ${names.length}. Run lowbit inspect to see the names.`,
        );
      }
      return { pattern, regex };
    });
  const include = compile("include", options.include);
  const exclude = compile("exclude", options.exclude);
  return (name) => {
    if (include !== undefined && !include.some(({ regex }) => regex.test(name))) return "not included by name";
    const hit = exclude?.find(({ regex }) => regex.test(name));
    return hit === undefined ? undefined : `excluded by ${String(hit.pattern)}`;
  };
}
