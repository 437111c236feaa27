// The tuner: keeps the default unless another tile is clearly faster, measures at most two dozen, chooses once per
// kind, and never changes a number.
import { describe, expect, it } from "vitest";
import { format } from "../../../formats/index.ts";
import { fastest, tileCandidates, tuneKey } from "../../../kernels/wasm/products/tuner.ts";
import type { GemmSpec } from "../../../kernels/wasm/dot/gemmspec.ts";
import { prepareMatmul, quantize, tensor, wasm } from "../../../src/index.ts";

const spec: GemmSpec = {
  style: "madd16", relaxed: true, activationBits: 8, bits: 4, planes: [{ table: null, max: 15 }], radix: 256, group: 32,
  zeroPoint: false, doubled: false, add: false, mr: 4, nv: 2, panel: false, shared: false,
}; // prettier-ignore

describe("tuner", () => {
  it("keeps the default unless another candidate takes less than 97 % of its time", () => {
    let clock = 0;
    const run = (times: Record<string, number>) => fastest(Object.keys(times), (c) => void (clock += times[c]), () => clock);
    expect(run({ standard: 100, other: 98 })).toBe("standard");
    expect(run({ standard: 100, other: 96, best: 90 })).toBe("best");
    expect(run({ standard: 100, slow: 200 })).toBe("standard");
  }); // prettier-ignore

  it("does not take one that was faster once: a neighbour slowed the others down in the rounds", () => {
    let clock = 0;
    let runs = 0;
    const noisy = (c: string): void => {
      runs++;
      // 2 x 2 runs to warm up, 5 rounds of both: the default is slow in these, and as fast as the other from then on
      clock += c === "standard" && runs <= 14 ? 200 : 100;
    };
    expect(fastest(["standard", "other"], noisy, () => clock)).toBe("standard");
    expect(runs).toBe(14 + 22);
  });

  it("runs short products until the clock has moved", () => {
    let [clock, runs] = [0, 0];
    const short = (c: string): void => {
      runs++;
      clock += c === "standard" ? 0.01 : 0.005;
    };
    expect(fastest(["standard", "other"], short, () => clock)).toBe("other");
    expect(runs).toBe(4 + 5 * (20 + 40) + 11 * (20 + 40));
  });

  it("measures at most two dozen tiles, the default first, none with more rows than there are", () => {
    for (const m of [1, 2, 3, 4, 9, 300]) {
      const all = tileCandidates({ ...spec, mr: Math.min(4, m) }, m);
      expect(all.length).toBeLessThanOrEqual(24);
      expect(all[0].mr).toBe(Math.min(4, m));
      expect(all.every((s) => s.mr <= m)).toBe(true);
      expect(new Set(all.map((s) => `${s.mr} ${s.nv} ${s.style}`)).size).toBe(all.length);
    }
    // tiles of more than four rows leave no room for decoding, where that is needed
    for (const [bits, panel] of [
      [4, true],
      [8, false],
    ] as const) {
      const one = tileCandidates({ ...spec, style: "dot", bits, planes: [{ table: null, max: 2 ** bits - 1 }], mr: 6, panel }, 64);
      expect(one.length).toBeLessThanOrEqual(24);
      expect(new Set(one.map((s) => `${s.mr} ${s.nv}`)).size).toBe(one.length);
      expect(one.every((s) => s.panel === (panel && s.mr > 4))).toBe(true);
    }
    expect(tuneKey(spec, 17)).toBe(tuneKey({ ...spec, mr: 1, style: "dot" }, 900));
    expect(tuneKey(spec, 1)).not.toBe(tuneKey(spec, 2));
    expect(tuneKey(spec, 1)).not.toBe(tuneKey({ ...spec, group: 64 }, 1));
  });

  it("gives the same numbers, bit for bit, in fewer or more rows at once", async () => {
    const standard = await wasm();
    const plain = await wasm({ features: "simd" });
    const tuned = [await wasm({ tune: true }), await wasm({ tune: true, features: "simd" })];
    let products = 0;
    for (const name of ["int4_b32", "uint4_b32_zp", "nf4_b64", "iq4_nl_b32"]) {
      const [n, k] = [40, 96];
      const w = quantize(
        tensor(
          Float32Array.from({ length: n * k }, (_, i) => Math.sin(i * 1.7)),
          [n, k],
        ),
        format(name),
      );
      for (const activations of ["int8", "int16"] as const)
        for (const m of [1, 3, 7, 70]) {
          const family = activations === "int8" ? ({ kernel: "dot" } as const) : {};
          const x = Float32Array.from({ length: m * k }, (_, i) => Math.cos(i * 0.37) * 2);
          products++;
          const a = prepareMatmul(w, { backend: standard, activations }).run(x, m);
          const b = prepareMatmul(w, { backend: tuned[0], activations, ...family });
          expect(Array.from(b.run(x, m)), b.explain().kernel).toEqual(Array.from(a));
          expect(Array.from(b.run(x, m))).toEqual(Array.from(a));
          const c = prepareMatmul(w, { backend: plain, activations }).run(x, m);
          expect(Array.from(prepareMatmul(w, { backend: tuned[1], activations, ...family }).run(x, m))).toEqual(Array.from(c));
        }
    }
    // every kind was measured, once
    expect(tuned.map((backend) => backend.tuned)).toEqual([products, products]);
    expect(standard.tuned).toBe(0);
  });
});
