// binary8p3sf: IEEE P3109 (draft), precision 3, signed, finite: no infinity.
//   s eeeee mm   bias 16 = 2^4, max 57344, NaN = 0x80, one zero
import { defineBinary8 } from "./define/p3109.ts";

export const binary8p3sf = /* @__PURE__ */ defineBinary8(3, "sf");
