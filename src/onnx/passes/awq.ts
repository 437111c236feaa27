// awq: the scales of AWQ (arXiv 2306.00978), searched per group of products that read one value by their output error
// in the format that the weights will have, and folded into the norm or the linear layer before.
import { format as formatNamed } from "../../../formats/registry.ts";
import { awqLayers } from "../../quantize/awq.ts";
import { readWeight } from "../primitives.ts";
import { moveFactors, noteGroups, scaleGroups, type ScaleGroup } from "./absorb.ts";
import { findNorms } from "./norms.ts";
import type { Pass, PassSettings } from "./types.ts";

function settingsOf({ format = "int4_b32", grid = 20 }: PassSettings): { format: string; grid: number } {
  if (typeof format !== "string") throw new TypeError(`pass awq, format: expected the name of a format, got ${JSON.stringify(format)}.`);
  formatNamed(format);
  if (!(Number.isSafeInteger(grid) && (grid as number) >= 2 && (grid as number) <= 1000))
    throw new RangeError(`pass awq, grid: expected an integer in 2..1000, got ${JSON.stringify(grid)}.`);
  return { format, grid: grid as number };
}

export const awqPass: Pass = {
  name: "awq",
  options: ["format", "grid"],
  check: (settings) => void settingsOf(settings),
  async run(context, given) {
    const { format, grid } = settingsOf(given);
    const { groups, without } = scaleGroups(context, findNorms(context));
    const done: ScaleGroup[] = [];
    let alone = 0;
    if (groups.length > 0) {
      const first = groups.map(({ products }) => products[0].name);
      const statistics = await context.statistics(first, { hessian: true });
      for (const [i, group] of groups.entries()) {
        const own = statistics.get(first[i]);
        if (own === undefined || own.k !== group.products[0].k) continue;
        const weights = group.products.map((layer) => readWeight(context.model, layer));
        const [packed] = awqLayers(weights, formatNamed(format), { statistics: own, grid, search: null, name: group.value });
        const scales = packed.recipe.channelScales as readonly number[] | undefined;
        if (scales === undefined) {
          alone++;
          continue;
        }
        moveFactors(context, group, Float64Array.from(scales));
        done.push(group);
      }
    }
    noteGroups(context, done, without, `scales for ${format}`);
    if (alone > 0) context.note(`${alone} groups are best left alone`);
    return done.length;
  },
};
