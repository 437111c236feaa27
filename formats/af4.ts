// af4: AbnormalFloat4, optimised for blocks of 64 (bitsandbytes allows no other). Codes run from 1 down to -1.
//   iiii   values are the float32 nearest to the published decimals
import { defineCodebook } from "./define/codebook.ts";

/**
 * AF4 (arXiv 2306.06965); bitsandbytes functional.py: `iiii`, 4 bits; -1 .. 1, smallest positive 0.0427316389977932;
 * 16 finite.
 * @example af4.decode(0x4) // 0.3167566657066345
 */
export const af4 = /* @__PURE__ */ defineCodebook({
  name: "af4",
  aliases: ["abnormalfloat4"],
  // prettier-ignore
  values: [1, 0.7242486476898193, 0.5549623370170593, 0.4256388247013092, 0.3167566657066345, 0.2196127474308014, 0.12934483587741852, 0.0427316389977932, 0, -0.049348119646310806, -0.14982478320598602, -0.25607553124427795, -0.37369510531425476, -0.5124374032020569, -0.6944100856781006, -1],
  spec: "AF4 (arXiv 2306.06965); bitsandbytes functional.py",
});
