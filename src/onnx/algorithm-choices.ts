// Algorithms that choose on data held out what nobody said: GPTQ and MR-GPTQ (damping, order, scales, block, polish),
// refit (the pull to the weight as it was), AWQ of a weight in bands (the power).
import type { Format, PackedTensor } from "../../formats/core/types.ts";
import { awq, awqAt, type AwqOptions } from "../quantize/awq.ts";
import { gptqIn, type GptqOptions } from "../quantize/gptq.ts";
import { gptqWorkspace, type GptqWorkspace } from "../quantize/gptq-workspace.ts";
import { dequantizeOriginal, mrgptqIn, type MrGptqOptions } from "../quantize/mrgptq.ts";
import { driftError, mergeDrift, refit, refitWeight } from "../quantize/refit.ts";
import type { AlgebraOptions } from "../quantize/simd.ts";
import { mergeStatistics, outputError, type LayerStatistics } from "../quantize/statistics.ts";
import type { WeightQuantizer } from "../tensor/quantize/index.ts";
import { matrixView, readRows, type Tensor } from "../tensor/tensor.ts";
import type { AlgorithmInput, AlgorithmName, AlgorithmOptions, LayerAlgorithm } from "./algorithm-types.ts";

/** Dampings that are tried on held-out data where none is given. */
const DAMPS: readonly number[] = [0.05, 0.01, 0.1];
/** And where there are fewer vectors than inputs: close to rounding to nearest. */
const STRONG_DAMPS: readonly number[] = [0.5, 3];
/** Hadamard block that is tried beside the format's own (MR-GPTQ). */
const WIDE_BLOCK = 128;
/** Scales of fewer bits have few neighbours: a search among them is worth a try. */
const COARSE_BITS = 16;
/** Rows that options are chosen on; the weight is then quantized whole. */
export const SAMPLED = 256;

/** Every n-th row, where there are many. */
function sampleRows(weight: Tensor): Tensor {
  const [rows] = weight.shape;
  if (weight.shape.length !== 2 || rows < 2 * SAMPLED) return weight;
  const step = Math.floor(rows / SAMPLED);
  return { ...weight, shape: [SAMPLED, weight.shape[1]], stride: [weight.stride[0] * step, weight.stride[1]] };
}

/** Signal and error of outputs on held-out inputs. */
function judgeOf(weight: Tensor, heldOut: LayerStatistics, shared: AlgebraOptions) {
  const view = matrixView(weight);
  const w = new Float64Array(view.rows * view.k);
  readRows(view, 0, view.rows, w);
  return {
    signal: outputError(w, null, view.rows, heldOut.hessian!, shared),
    error: (packed: PackedTensor): number => outputError(w, dequantizeOriginal(packed), view.rows, heldOut.hessian!, shared),
  };
}

type GptqChoice = Partial<Pick<MrGptqOptions, "damp" | "actOrder" | "polish" | "block" | "search">>;
type GivenChoice = GptqChoice & Pick<GptqOptions, "staticGroups" | "prune">;

/** What is left open, one after the other, as alternatives to what was found best so far. */
function openChoices(name: AlgorithmName, format: Format, { k, statistics }: AlgorithmInput, given: GivenChoice): GptqChoice[][] {
  const open = (key: keyof GptqChoice): boolean => given[key] === undefined;
  // natural order and no polish
  const opaque = format.kind === "opaque" || given.prune !== undefined;
  const coarse = format.kind === "block" && format.scales[0].format.bits < COARSE_BITS;
  const damps = statistics!.rows < k ? [...DAMPS, ...STRONG_DAMPS] : DAMPS;
  return [
    open("damp") ? damps.map((damp) => ({ damp })) : [{}],
    open("actOrder") && given.staticGroups === undefined && !opaque ? [{ actOrder: name !== "mrgptq" }] : [],
    name !== "mrgptq" && open("search") && coarse ? [{ search: { method: "mse" } }] : [],
    name === "mrgptq" && open("block") && k % WIDE_BLOCK === 0 ? [{ block: WIDE_BLOCK }] : [],
    open("polish") && !opaque ? [{ polish: true }] : [],
  ];
}

/** Held-out data say how far few vectors can be trusted: any number will do. */
const fewRows = ({ heldOut }: AlgorithmInput, { minRows }: AlgorithmOptions): { minRows?: number } =>
  minRows !== undefined ? { minRows } : heldOut === null ? {} : { minRows: 1 };

/** Is there nothing to choose? Then the data held out are left for figures. */
const isSettled = (choices: readonly (readonly GptqChoice[])[]): boolean =>
  choices.flat().every((choice) => Object.keys(choice).length === 0);

const withoutUndefined = <T extends object>(fields: T): T =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;

/** One of the family with some choices made, and what it looks at; in a workspace where it does several bands. */
type Variant = (choice: GptqChoice, hessian: LayerStatistics, workspace?: GptqWorkspace) => WeightQuantizer;

function variantOf(name: "gptq" | "mrgptq", input: AlgorithmInput, options: AlgorithmOptions, shared: AlgebraOptions): Variant {
  const base = { ...options, ...shared, ...fewRows(input, options), name: input.name };
  return (choice, hessian, workspace) => {
    const all = withoutUndefined({ ...base, ...choice, hessian });
    return name === "gptq" ? gptqIn(workspace, all as GptqOptions) : mrgptqIn(workspace, all as MrGptqOptions);
  };
}

interface Found {
  readonly choice: GptqChoice;
  readonly packed: PackedTensor;
  readonly error: number;
  readonly tried: number;
}

/** What is open, one after the other: the least error that `judge` finds. */
function search(
  choices: readonly (readonly GptqChoice[])[],
  quantizeWith: (choice: GptqChoice) => PackedTensor,
  judge: (packed: PackedTensor) => number,
): Found {
  let best: Found | undefined;
  let tried = 0;
  for (const alternatives of choices)
    for (const change of alternatives) {
      const choice = { ...best?.choice, ...change };
      const packed = quantizeWith(choice);
      const error = judge(packed);
      tried++;
      if (best === undefined || error < best.error) best = { choice, packed, error, tried };
    }
  return { ...best!, tried };
}

/**
 * GPTQ with what is open (damping, order, scales, block, then polish) chosen on held-out data, one after the other. The
 * weight is then quantized with these options from all of the data; what the choice left on the data held out goes into
 * the recipe.
 */
export function gptqFamily(
  name: "gptq" | "mrgptq",
  input: AlgorithmInput,
  options: AlgorithmOptions & GptqChoice,
  shared: AlgebraOptions,
): LayerAlgorithm {
  const variant = variantOf(name, input, options, shared);
  const { heldOut } = input;
  const statistics = input.statistics!;
  // bands of one weight: the factor is made once
  const workspace = input.sample === undefined ? undefined : gptqWorkspace();
  const close = (): void => workspace?.close();
  const settled = variant({}, statistics, workspace);
  if (heldOut === null || heldOut.hessian === null) return { ...settled, close };
  const choose = (choices: readonly (readonly GptqChoice[])[], sample: Tensor, format: Format) => {
    const { signal, error: judge } = judgeOf(sample, heldOut, shared);
    const { choice, error, tried } = search(choices, (one) => variant(one, statistics).quantizeWeight(sample, format), judge);
    const all = mergeStatistics(statistics, heldOut);
    return { quantizer: variant(choice, all, workspace), chosenOf: tried, heldOut: { signal, error } };
  };
  let chosen: ReturnType<typeof choose> | undefined;
  return {
    algorithm: name,
    close,
    quantizeWeight(weight: Tensor, format: Format): PackedTensor {
      const choices = openChoices(name, format, input, options);
      if (isSettled(choices)) return settled.quantizeWeight(weight, format);
      // once for all bands of a weight
      const { quantizer, ...found } = (chosen ??= choose(choices, input.sample ?? sampleRows(weight), format));
      const packed = quantizer.quantizeWeight(weight, format);
      return { ...packed, recipe: { ...packed.recipe, ...found } };
    },
  };
}

/**
 * Pulls of the refitted weight to the weight as it was, tried on held-out data; with the last it stays nearly there.
 */
const RIDGES: readonly number[] = [0.05, 0.01, 0.2, 1, 10];

/**
 * Refit, then GPTQ: the ridge and what is open in GPTQ are chosen by the output error on held-out inputs of both
 * models.
 */
export function refitFamily(input: AlgorithmInput, { ridge, ...options }: AlgorithmOptions, shared: AlgebraOptions): WeightQuantizer {
  const { name, heldOutDrift } = input;
  const drift = input.drift!;
  const common = { name, ...shared, ...fewRows(input, options) };
  const variant = variantOf("gptq", input, options, shared);
  const given = refit({ drift, quantizer: variant({}, drift.inputs), ...common, ...(ridge === undefined ? {} : { ridge }) });
  if (heldOutDrift === null || heldOutDrift === undefined) return given;
  const choose = (choices: readonly (readonly GptqChoice[])[], sample: Tensor, format: Format) => {
    const judge = (packed: PackedTensor): number => driftError(sample, dequantizeOriginal(packed), heldOutDrift, shared);
    const plain = judgeOf(sample, heldOutDrift.inputs, shared);
    const moved = (pull: number): Tensor => {
      const data = refitWeight(sample, { drift, ridge: pull, ...common });
      return { data, shape: [data.length / input.k, input.k], stride: [input.k, 1], offset: 0 };
    };
    const quantizeWith = (of: Tensor) => (choice: GptqChoice) => variant(choice, drift.inputs).quantizeWeight(of, format);
    // with the first of every choice but polish, which costs as much as all before it
    const first = Object.assign({}, ...choices.slice(0, 2).map(([one]) => one)) as GptqChoice;
    const pulls = (ridge === undefined ? RIDGES : [ridge]).map((pull) => {
      const of = moved(pull);
      return { pull, of, error: judge(quantizeWith(of)(first)) };
    });
    const { pull, of } = pulls.reduce((a, b) => (b.error < a.error ? b : a));
    const { choice, packed: best, tried } = search(choices, quantizeWith(of), judge);
    const quantizer = variant(choice, mergeStatistics(drift.inputs, heldOutDrift.inputs));
    return {
      quantizer: refit({ drift: mergeDrift(drift, heldOutDrift), quantizer, ridge: pull, ...common }),
      chosenOf: pulls.length + tried,
      heldOut: { signal: plain.signal, error: plain.error(best) },
    };
  };
  let chosen: ReturnType<typeof choose> | undefined;
  return {
    algorithm: "refit",
    quantizeWeight(weight, format) {
      const choices = openChoices("gptq", format, input, options);
      if (ridge !== undefined && isSettled(choices)) return given.quantizeWeight(weight, format);
      const { quantizer, ...found } = (chosen ??= choose(choices, input.sample ?? sampleRows(weight), format));
      const packed = quantizer.quantizeWeight(weight, format);
      return { ...packed, recipe: { ...packed.recipe, ...found } };
    },
  };
}

/** AWQ: of a weight in bands the power is chosen once, on the sample: all bands have the same channel scales. */
export function awqFamily(input: AlgorithmInput, options: AlgorithmOptions, shared: AlgebraOptions): LayerAlgorithm {
  const all = { ...options, ...shared, statistics: input.statistics!, name: input.name } as AwqOptions;
  const { sample } = input;
  if (sample === undefined) return awq(all);
  let power: number | undefined;
  return {
    algorithm: "awq",
    quantizeWeight(weight, format) {
      power ??= awq(all).quantizeWeight(sample, format).recipe.power as number;
      return awqAt(power, all).quantizeWeight(weight, format);
    },
  };
}
