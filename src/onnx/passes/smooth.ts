// smooth: SmoothQuant (arXiv 2211.10438). Channels of activations with large values are divided by factors, the columns
// of the weights behind multiplied, so that both quantize well; the factors are folded into the norm or the linear
// layer before.
import { channelAmax, smoothFactors } from "../../quantize/equalize.ts";
import { searchSmoothing } from "../../quantize/smooth.ts";
import type { LayerStatistics } from "../../quantize/statistics.ts";
import { format as formatNamed } from "../../../formats/registry.ts";
import { readMatrix } from "../primitives.ts";
import { moveFactors, noteGroups, scaleGroups, type ScaleGroup } from "./absorb.ts";
import { findNorms } from "./norms.ts";
import type { Pass, PassContext, PassSettings } from "./types.ts";

interface SmoothSettings {
  readonly alpha: number | "search";
  readonly format: string;
}

function settingsOf({ alpha = 0.5, format = "int8_row" }: PassSettings): SmoothSettings {
  if (alpha !== "search" && !(typeof alpha === "number" && alpha >= 0 && alpha <= 1))
    throw new RangeError(`pass smooth, alpha: expected a number in 0..1 or "search", got ${JSON.stringify(alpha)}.`);
  if (typeof format !== "string") throw new TypeError(`pass smooth, format: expected the name of a format, got ${JSON.stringify(format)}.`);
  formatNamed(format);
  return { alpha, format };
}

/** The factors of one group, and the exponent they came from; null: best left alone. */
function factorsOf(
  context: PassContext,
  group: ScaleGroup,
  statistics: LayerStatistics,
  settings: SmoothSettings,
): { s: Float64Array; alpha: number } | null {
  const layers = group.products.map((layer) => ({ weight: readMatrix(context.model, layer), rows: layer.rows, k: layer.k }));
  if (settings.alpha !== "search") return { s: smoothFactors(channelAmax(statistics), layers, settings.alpha), alpha: settings.alpha };
  const found = searchSmoothing(layers, { statistics, format: formatNamed(settings.format) });
  return found.alpha === null ? null : { s: found.factors, alpha: found.alpha };
}

export const smoothPass: Pass = {
  name: "smooth",
  options: ["alpha", "format"],
  check: (settings) => void settingsOf(settings),
  async run(context, given) {
    const settings = settingsOf(given);
    const { groups, without } = scaleGroups(context, findNorms(context));
    const done: ScaleGroup[] = [];
    const alphas: number[] = [];
    if (groups.length > 0) {
      const first = groups.map(({ products }) => products[0].name);
      const statistics = await context.statistics(first, { hessian: settings.alpha === "search" });
      for (const [i, group] of groups.entries()) {
        const own = statistics.get(first[i]);
        const factors = own === undefined || own.k !== group.products[0].k ? null : factorsOf(context, group, own, settings);
        if (factors === null) continue;
        moveFactors(context, group, factors.s);
        done.push(group);
        alphas.push(factors.alpha);
      }
    }
    noteGroups(context, done, without, "scales");
    if (settings.alpha === "search" && done.length > 0)
      context.note(
        `alpha by search: ${Math.min(...alphas)} to ${Math.max(...alphas)}, ${groups.length - done.length} groups best left alone`,
      );
    return done.length;
  },
};
