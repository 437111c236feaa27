// The targets by name. A new one is a file beside these and a line here.
import { matMulBnb4 } from "./bnb4.ts";
import { dynamicTarget } from "./dynamic.ts";
import { matMulNBits } from "./matmulnbits.ts";
import { qdqTarget } from "./qdq.ts";
import { storedTarget } from "./stored.ts";
import type { Target } from "./target.ts";
import type { TargetName } from "../dtypes.ts";

/** What makes each target; a target has state of one conversion. */
export const TARGETS: ReadonlyMap<TargetName, () => Target> = new Map<TargetName, () => Target>([
  ["matmulnbits", matMulNBits],
  ["bnb4", matMulBnb4],
  ["dynamic", dynamicTarget],
  ["qdq", qdqTarget],
  ["stored", storedTarget],
]);

export const TARGET_NAMES: readonly TargetName[] = [...TARGETS.keys()];
