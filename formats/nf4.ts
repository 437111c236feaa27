// nf4: NormalFloat4 of QLoRA: quantiles of a normal distribution, scaled to -1..1; code 7 is exactly zero. A blockwise
// format: scale by the absmax.
//   iiii   code = number of thresholds strictly below the value. Values and thresholds are the float32 constants of
//   bitsandbytes.
import { defineCodebook } from "./define/codebook.ts";

/**
 * QLoRA (arXiv 2305.14314); bitsandbytes NF4: `iiii`, 4 bits; -1 .. 1, smallest positive 0.07958029955625534; 16
 * finite.
 * @example nf4.decode(0xb) // 0.33791524171829224
 */
export const nf4 = /* @__PURE__ */ defineCodebook({
  name: "nf4",
  aliases: ["normalfloat4"],
  // prettier-ignore
  values: [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  // prettier-ignore
  thresholds: [-0.8480963706970215, -0.6106328964233398, -0.4599952697753906, -0.33967941999435425, -0.23460739850997925, -0.13791173696517944, -0.045525018125772476, 0.03979014977812767, 0.120255246758461, 0.2035212516784668, 0.2920137643814087, 0.3893125355243683, 0.5016634464263916, 0.6427869200706482, 0.8614784479141235],
  spec: "QLoRA (arXiv 2305.14314); bitsandbytes NF4",
});
