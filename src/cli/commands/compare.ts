// lowbit compare: which format suits a tensor, at most so many stored bits a value.
import { LowbitError, isLowbitError } from "../../../formats/core/errors.ts";
import type { Format } from "../../../formats/core/types.ts";
import { allFormats, format } from "../../../formats/registry.ts";
import { advise, profile, storedBits, type Advice } from "../../quantize/index.ts";
import { matrixView, readRows, tensor, type Tensor } from "../../tensor/tensor.ts";
import { decibels, json, table } from "../report.ts";
import { EXIT, numberOption, usageError, type CommandSpec } from "../spec.ts";
import { readTensor } from "../tensors.ts";

/** Values that are looked at; of larger tensors evenly spaced rows. */
const VALUES_MAX = 2 ** 22;

export const compareCommand: CommandSpec = {
  name: "compare",
  summary: "Ranks formats by what they cost on a tensor of yours: SQNR at no more than so many stored bits a value.",
  positionals: ["[FILE]"],
  options: {
    data: { value: "FILE", help: "the same as FILE: a tensor as .npy, or a .safetensors, .gguf or .onnx file" },
    tensor: { value: "NAME", help: "which tensor of the file (.onnx: which layer); default: the one with most values" },
    bits: { value: "BITS", help: "stored bits a value, at most, scales counted (default 4.5)" },
    formats: { value: "LIST", help: "these formats instead of those within one bit below BITS" },
    top: { value: "N", help: "rows to print (default 20)" },
  },
  notes: `Round to nearest by each format's own rules; SQNR is 10 log10(sum x^2 / sum (x - x')^2). Block formats run along the last dimension.
  lowbit compare --data x.npy --bits 4.5
  lowbit compare model.onnx --tensor /layer1/MatMul --formats int4_b32,mxfp4,nvfp4`,
  async run(args, context) {
    const [input = args.text("data")] = args.positionals;
    if (input === undefined) throw usageError("compare: expected a FILE, got none. See lowbit compare --help.");
    if (args.positionals.length > 0 && args.flag("data")) throw usageError("--data: expected one file, got also a FILE.");
    const bits = numberOption(args, "bits", "a number of bits above 0", (n) => n > 0) ?? 4.5;
    const top = numberOption(args, "top", "a positive integer", (n) => Number.isSafeInteger(n) && n > 0) ?? 20;
    const list = args.text("formats");
    if (list !== undefined && args.flag("bits")) throw usageError("--formats: expected it without --bits, got both.");
    const found = await readTensor(input, args.text("tensor"));
    const sample = sampled(found.tensor);
    const [rows, k] = sample.shape;
    const names = list?.split(",").map((name) => name.trim());
    const candidates = names === undefined ? within(bits, rows, k) : names.map((name) => format(name) as Format);
    const { ranked, left } = rank(sample, candidates, context.signal);
    if (ranked.length === 0)
      throw new LowbitError(
        "E_UNSUPPORTED",
        `${found.name}: expected a format for rows of ${k} values, got none of ${left.length} (${left[0].format}: ${left[0].reason}) Scales of short rows cost many bits: raise --bits, or name others with --formats.`,
      );
    const shape = found.tensor.shape;
    const facts = { input, tensor: found.name, shape, rowsMeasured: rows, ...profile(sample) };
    if (args.json)
      context.print(
        json({ command: "compare", ...facts, formats: ranked.map(({ format: f, ...rest }) => ({ format: f.name, ...rest })), left }),
      );
    else {
      const rest = found.others > 0 ? `, ${found.others} others (--tensor)` : "";
      context.print(
        `${found.name}: ${shape.join("x")}${rest}; crest factor ${facts.crestFactor.toFixed(1)}, kurtosis ${facts.kurtosis.toFixed(1)}\n`,
      );
      context.print(`${text(ranked.slice(0, top))}\n`);
      if (ranked.length > top) context.print(`${ranked.length - top} more: --top ${ranked.length}\n`);
      for (const { format: f, reason } of left) context.print(`left out ${f}: ${reason}\n`);
    }
    return EXIT.ok;
  },
};

/** What a scale for the whole tensor may add to the bits of a value. */
const ONCE = 1 / 64;

/** Formats within one bit below; scalar ones of few bits with a scale for each row, or for 32 values. */
function within(bits: number, rows: number, k: number): Format[] {
  const all = allFormats.flatMap((f) =>
    f.kind === "block" || f.kind === "opaque" || f.bits > 8
      ? [f]
      : [format(`${f.name}_row`) as Format, format(`${f.name}_b32_float16`) as Format],
  );
  const fitting = all.filter((f) => {
    const stored = storedBits(f, rows, k);
    return stored <= bits + ONCE && stored > bits - 1;
  });
  if (fitting.length === 0) throw usageError(`--bits: expected bits that some format has, got ${bits}. Name formats with --formats.`);
  return fitting;
}

function sampled(all: Tensor): Tensor {
  const view = matrixView(all);
  const { rows, k } = view;
  const count = Math.max(1, Math.min(rows, Math.floor(VALUES_MAX / Math.max(1, k))));
  const data = new Float32Array(count * k);
  for (let r = 0; r < count; r++) readRows(view, Math.floor((r * rows) / count), 1, data.subarray(r * k, (r + 1) * k));
  return tensor(data, [count, k]);
}

interface LeftOut {
  readonly format: string;
  readonly reason: string;
}

/** What a candidate cannot hold (a length that its blocks do not divide, a sign) leaves it out, with the reason. */
function rank(sample: Tensor, candidates: readonly Format[], signal: AbortSignal): { ranked: Advice[]; left: LeftOut[] } {
  const ranked: Advice[] = [];
  const left: LeftOut[] = [];
  for (const candidate of candidates)
    try {
      ranked.push(...advise(sample, [candidate], { signal }));
    } catch (error) {
      if (!isLowbitError(error) || (error.code !== "E_SHAPE" && error.code !== "E_UNSUPPORTED")) throw error;
      left.push({ format: candidate.name, reason: error.message.replace(`${candidate.name}: `, "") });
    }
  return { ranked: ranked.sort((a, b) => b.qsnr - a.qsnr || a.bits - b.bits), left };
}

const text = (ranked: readonly Advice[]): string =>
  table(
    [{ title: "format" }, { title: "bits", right: true }, { title: "SQNR dB", right: true }, { title: "predicted", right: true }],
    ranked.map(({ format: f, bits, qsnr, predictedQsnr }) => [f.name, bits.toFixed(2), decibels(qsnr), decibels(predictedQsnr)]),
  );
