// Runs that end as the last one ended: where all steps from one on did again what they had done, what they ran is one
// list of calls. It is repeated while the arena and the values that these steps begin with lie where they lay; inputs,
// places and what is freed are not worked out step by step.
import type { Value } from "../value.ts";
import type { Machine, Trace } from "./machine.ts";
import { isFixed, isSame } from "./repeat.ts";

/** Fewer steps are not worth the look at the arena. */
const LEAST_STEPS = 4;

/** Values that repeated steps may read, undefined for others, and where free memory lies. */
interface Places {
  readonly values: readonly (readonly [name: string, value: Value | undefined])[];
  readonly free: readonly number[];
}

const placesOf = (machine: Machine, values: ReadonlyMap<string, Value>): Places => ({
  values: [...values].map(([name, value]) => [name, isFixed(machine, value) ? value : undefined]),
  free: machine.arena.ranges(),
});

const areSame = (machine: Machine, a: Places, b: Places): boolean =>
  a.values.length === b.values.length &&
  a.free.length === b.free.length &&
  a.free.every((word, i) => word === b.free[i]) &&
  a.values.every(([name, value], i) => name === b.values[i][0] && isSame(machine, value, b.values[i][1]));

/** The last steps of a run: calls of each, and what they leave behind. */
export interface Ending {
  readonly calls: readonly (readonly (() => void)[])[];
  readonly values: ReadonlyMap<string, Value>;
}

/** What is remembered from run to run of one plan on one machine. */
export interface Replay {
  /** Before a step: the rest of the run, if it is that of the last one. */
  ending(step: number, values: ReadonlyMap<string, Value>): Ending | undefined;
  /** After a step: what it repeated; null where it did anything else. */
  ran(step: number, repeated: Trace | null): void;
  /** After the last of `count` steps; `made` names what a step makes. */
  end(count: number, values: ReadonlyMap<string, Value>, made: (step: number) => readonly string[]): void;
}

export function createReplay(machine: Machine): Replay {
  /** The first step that all others after it repeated, in the last run; in this one so far. */
  let [first, next] = [0, 0];
  let places: Places | null = null;
  let traces: Trace[] = [];
  let known: { readonly first: number; readonly places: Places; readonly ending: Ending } | null = null;
  return {
    ending(step, values) {
      if (step === 0) [next, places, traces] = [0, null, []];
      if (step !== first) return undefined;
      places = placesOf(machine, values);
      if (known?.first === step && areSame(machine, known.places, places)) return known.ending;
      known = null;
      return undefined;
    },
    ran(step, repeated) {
      if (repeated !== null) return void traces.push(repeated);
      next = step + 1;
      traces = [];
    },
    end(count, values, made) {
      // where more or fewer steps repeat than in the last run, the next one looks at places before the first of them
      if (places !== null && next === first && count - first >= LEAST_STEPS) {
        const names = Array.from({ length: count - first }, (_, i) => made(first + i)).flat();
        known = {
          first,
          places,
          ending: {
            calls: traces.map(({ runs }) => runs),
            values: new Map(names.flatMap((name) => (values.has(name) ? [[name, values.get(name)!]] : []))),
          },
        };
      } else first = next;
    },
  };
}
