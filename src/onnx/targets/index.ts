// The targets by name. A new one is a file beside these, a line here and its name in dtypes.ts.
import { matMulBnb4 } from "./bnb4.ts";
import { dynamicTarget } from "./dynamic.ts";
import { matMulNBits } from "./matmulnbits.ts";
import { qdqTarget } from "./qdq.ts";
import { storedTarget } from "./stored.ts";
import type { Target } from "./target.ts";
import { TARGET_NAMES, type TargetName } from "../dtypes.ts";

const MAKERS: Readonly<Record<TargetName, () => Target>> = {
  matmulnbits: matMulNBits,
  bnb4: matMulBnb4,
  dynamic: dynamicTarget,
  qdq: qdqTarget,
  stored: storedTarget,
};

/** What makes each target; a target has state of one conversion. */
export const TARGETS: ReadonlyMap<TargetName, () => Target> = new Map(TARGET_NAMES.map((name) => [name, MAKERS[name]]));
