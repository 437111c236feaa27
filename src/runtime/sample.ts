// Samplers: from logits to the next token.
import { seededRandom } from "../quantize/random.ts";

/** Chooses a token from logits [vocabulary]. */
export type Sampler = (logits: Float32Array) => number;

/** Temperature and cuts of a sampler. */
export interface SampleOptions {
  /** 1 as the model says; lower is more certain. Default 1. */
  readonly temperature?: number;
  /** Only the k likeliest tokens. Default all. */
  readonly topK?: number;
  /** Only the likeliest tokens that together have at least this probability. Default 1. */
  readonly topP?: number;
  /** The same seed gives the same tokens. Default: another one each time. */
  readonly seed?: number;
}

/**
 * The likeliest token, the first of equals. NaN never wins.
 * @param logits one for each token of the vocabulary
 * @example greedy(Float32Array.of(0.1, 2, NaN, 2)) // 1
 */
export const greedy: Sampler = (logits) => {
  let best = 0;
  let top = -Infinity;
  for (let i = 0; i < logits.length; i++)
    if (logits[i] > top) {
      top = logits[i];
      best = i;
    }
  return best;
};

/**
 * Draws from softmax(logits / temperature), from the top k tokens, of these the fewest that reach probability p
 * (Holtzman et al., The Curious Case of Neural Text Degeneration).
 * @throws RangeError for a temperature that is not positive, k below 1, p outside (0, 1]; TypeError for a seed that is
 * no number
 * @example
 * const next = sampler({ temperature: 0.7, topK: 40, topP: 0.9, seed: 1 });
 * next(Float32Array.of(-1e9, 5, -1e9)) // 1
 */
export function sampler(options: SampleOptions = {}): Sampler {
  const { temperature = 1, topK = Infinity, topP = 1 } = options;
  if (!(temperature > 0))
    throw new RangeError(`sampler temperature: expected more than 0, got ${temperature}. Use greedy for the likeliest token.`);
  if (!(topK >= 1)) throw new RangeError(`sampler topK: expected at least 1, got ${topK}.`);
  if (!(topP > 0 && topP <= 1)) throw new RangeError(`sampler topP: expected more than 0 and at most 1, got ${topP}.`);
  const next = seededRandom(options.seed ?? Math.floor(Math.random() * 2 ** 32));
  return (logits) => {
    const top = logits[greedy(logits)];
    const ids = Array.from(logits.keys()).filter((i) => logits[i] >= top - 80 * temperature);
    ids.sort((a, b) => logits[b] - logits[a] || a - b);
    if (ids.length > topK) ids.length = topK;
    const weights = ids.map((i) => Math.exp((logits[i] - top) / temperature));
    const total = weights.reduce((a, b) => a + b, 0);
    let count = 0;
    let kept = 0;
    while (count < ids.length && (count === 0 || kept < topP * total)) kept += weights[count++];
    let at = next() * kept;
    for (let i = 0; i < count; i++) {
      at -= weights[i];
      if (at < 0) return ids[i];
    }
    return ids[count - 1] ?? 0;
  };
}
