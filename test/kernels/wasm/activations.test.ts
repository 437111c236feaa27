// The records of activations against their definition: every number of rows of a tile, so that rows are written together
// and alone, and groups whose scale is not ordinary among groups whose scale is.
import { describe, expect, it } from "vitest";
import { engine } from "../../../kernels/wasm/engine/engine.ts";
import { ARGUMENT_WORDS, recordJob, writeJob } from "../../../kernels/wasm/engine/items.ts";
import { activationModule, type ActivationSpec } from "../../../kernels/wasm/dot/activations.ts";
import { activationRecord } from "../../../kernels/wasm/dot/gemmspec.ts";
import { random } from "../../helpers/random.ts";

const FACTOR = -8;
const [GROUPS, TILES] = [5, 3];

/** Half to even, which Math.round is not. */
function nearest(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}

/** Groups of values by kind, the kinds mixed among rows and groups. */
function values(rows: number, group: number): Float32Array {
  const { next } = random(rows * group);
  const scales = [1, 1, 1e-42, 2 ** -110, 3e38, 2 ** 101, 0];
  const x = new Float32Array(rows * GROUPS * group);
  for (let i = 0; i < rows * GROUPS; i++) {
    const scale = scales[Math.floor(next() * scales.length)];
    for (let j = 0; j < group; j++) x[i * group + j] = scale * (2 * next() - 1);
    if (next() < 0.1) x[i * group + Math.floor(next() * group)] = next() < 0.5 ? NaN : -Infinity;
  }
  return x;
}

function records(x: Float32Array, spec: ActivationSpec, group: number): { view: DataView; bytes: number } {
  const { bytes } = activationRecord({ ...spec, group });
  const memory = new engine.Memory({ initial: 16, maximum: 65536 });
  const { exports } = new engine.Instance(new engine.Module(activationModule(spec)), { m: { m: memory } });
  const [job, from, to] = [64, 4096, 524288];
  new Float32Array(memory.buffer, from, x.length).set(x);
  const { items, args } = recordJob({ x: from, a: to, tiles: TILES, mr: spec.mr, groups: GROUPS, group, bytes, factor: FACTOR, elements: 3 * group * spec.mr }); // prettier-ignore
  writeJob(new Int32Array(memory.buffer, job, ARGUMENT_WORDS + 64), args, items, 1);
  (exports.work as (args: number, panel: number, thread: number) => void)(job, 0, 0);
  return { view: new DataView(memory.buffer, to), bytes };
}

describe("records of activations as bytes", () => {
  for (const codeBits of [8, 6, 4] as const)
    it(`of ${codeBits} bits: scale, correction, sum and codes of every row`, () => {
      const max = { 8: 127, 6: 31, 4: 7 }[codeBits];
      for (const group of [32, 48, 16, 4])
        for (let mr = 1; mr <= 6; mr++) {
          const spec = {
            style: "dot",
            inOrder: false,
            activationBits: 8,
            codeBits,
            mr,
            totals: false,
            mixed: false,
            shared: false,
          } as const;
          const x = values(TILES * mr, group);
          const { view, bytes } = records(x, spec, group);
          for (let row = 0; row < TILES * mr; row++)
            for (let g = 0; g < GROUPS; g++) {
              const own = x.subarray((row * GROUPS + g) * group, (row * GROUPS + g + 1) * group);
              const isFinite = own.every(Number.isFinite);
              const scale = Math.fround(own.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / max);
              const at = (Math.floor(row / mr) * GROUPS + g) * bytes;
              const r = row % mr;
              const word = (i: number): number => at + 4 * (mr * i + r);
              const where = `${mr} rows of ${group}: row ${row}, group ${g}`;
              if (!isFinite) {
                expect(Number.isFinite(view.getFloat32(word(0), true)), where).toBe(false);
                continue;
              }
              expect(view.getFloat32(word(0), true), where).toBe(scale);
              let sum = 0;
              for (let j = 0; j < group; j++) {
                const code = scale === 0 ? 0 : Math.max(-max, Math.min(max, nearest(Math.fround(own[j] / scale)))) + 0;
                expect(view.getInt8(at + 16 * mr + Math.floor(j / 4) * 4 * mr + 4 * r + (j % 4)), `${where}, ${j}`).toBe(code);
                sum += code;
              }
              expect(view.getInt32(word(1), true), where).toBe(FACTOR * sum + 0);
              expect(view.getInt32(word(2), true), where).toBe(0);
              expect(view.getFloat32(word(3), true), where).toBe(Math.fround(sum * scale));
            }
        }
    });
});
