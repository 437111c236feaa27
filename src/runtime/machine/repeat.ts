// Emissions that repeat: a model that runs again with the same shapes has the same steps on the same places. What a
// step did in the last run (blocks of the arena, jobs, calls) is done again, without its shapes, specs and arguments
// being worked out.
import type { Value } from "../value.ts";
import { isSlot, type Machine, type Trace } from "./machine.ts";

type Results = readonly (Value | undefined)[] | undefined;

interface Memo {
  readonly inputs: readonly (Value | undefined)[];
  readonly made: Results;
  readonly trace: Trace;
}

/** A step that differed from its last run so many times in a row is left alone for some runs, more each time. */
const MOST_CHANGES = 4;
const MOST_REST = 32;

/** What a machine remembers of its steps: how often each changed, and for how many runs it is left alone. */
const machines = new WeakMap<Machine, Map<object, { memo: Memo | null; changes: number; rest: number }>>();

/** The same place and shape, or the same value that does not change. */
export function isSame(m: Machine, before: Value | undefined, now: Value | undefined): boolean {
  if (now === undefined || before === undefined) return now === before;
  if (!isSlot(now)) return now === before && m.isFixed(now);
  if (!isSlot(before) || before.address !== now.address || before.base !== now.base || before.type !== now.type) return false;
  return before.dims.length === now.dims.length && before.dims.every((d, i) => d === now.dims[i]);
}

/** Whether a step that reads it may repeat. */
export const isFixed = (m: Machine, value: Value | undefined): boolean => value === undefined || isSlot(value) || m.isFixed(value);

/**
 * The results of `emit` for `step`: its last emission again where its inputs lie where they lay and it depends on
 * nothing else. `done`: called with what was done, where it can be done again, and whether it was.
 */
export function emitAgain(
  m: Machine,
  step: object,
  inputs: readonly (Value | undefined)[],
  emit: () => Results,
  done?: (trace: Trace, again: boolean) => void,
): Results {
  if (m.isRecording || !inputs.every((value) => isFixed(m, value))) return emit();
  let steps = machines.get(m);
  if (steps === undefined) machines.set(m, (steps = new Map()));
  let known = steps.get(step);
  if (known === undefined) steps.set(step, (known = { memo: null, changes: 0, rest: 0 }));
  if (known.rest > 0) {
    known.rest--;
    return emit();
  }
  const { memo } = known;
  if (memo !== null && memo.inputs.every((before, i) => isSame(m, before, inputs[i])) && m.repeat(memo.trace)) {
    known.changes = 0;
    done?.(memo.trace, true);
    return memo.made;
  }
  // by twos: a look at what it does, and one at whether the next run does the same
  if (++known.changes > MOST_CHANGES && known.changes % 2 === 0) {
    known.rest = Math.min(MOST_REST, 2 ** (known.changes / 2));
    known.memo = null;
    return emit();
  }
  const { made, trace } = m.trace(emit);
  known.memo = made !== undefined && trace !== null ? { inputs, made, trace } : null;
  if (known.memo !== null) done?.(known.memo.trace, false);
  return made;
}
