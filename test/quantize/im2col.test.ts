// Patches of convolutions against plain loops: a convolution as a product with them equals the convolution by its
// definition, and the statistics of each group are those of its own patches.
import { describe, expect, it } from "vitest";
import { convStatistics, im2col, seededRandom, type ConvGeometry } from "../../src/quantize/index.ts";

interface Case {
  readonly name: string;
  readonly outputs: number;
  readonly dims: readonly [number, number, number, number];
  readonly geometry: ConvGeometry;
}
const cases: Case[] = [
  { name: "1 x 1", outputs: 3, dims: [2, 4, 3, 5], geometry: { channels: 4, kernel: [1, 1] } },
  { name: "3 x 3, pads", outputs: 2, dims: [1, 3, 5, 4], geometry: { channels: 3, kernel: [3, 3], pads: [1, 1, 1, 1] } },
  {
    name: "uneven pads, strides and dilations",
    outputs: 4,
    dims: [2, 2, 7, 9],
    geometry: { channels: 2, kernel: [2, 3], pads: [1, 2, 0, 1], strides: [2, 1], dilations: [2, 3] },
  },
  {
    name: "groups",
    outputs: 6,
    dims: [1, 4, 4, 6],
    geometry: { channels: 4, kernel: [1, 3], pads: [0, 1, 0, 1], strides: [1, 2], group: 2 },
  },
  { name: "depthwise", outputs: 5, dims: [2, 5, 6, 3], geometry: { channels: 5, kernel: [3, 3], pads: [1, 1, 1, 1], group: 5 } },
];

/** A convolution by its definition, output by output: [n][o][y][x]. */
function convolve({ outputs, dims, geometry }: Case, x: Float32Array, w: Float32Array): number[] {
  const [n, channels, height, width] = dims;
  const { kernel, strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1 } = geometry;
  const each = channels / group;
  const oh = Math.floor((height + pads[0] + pads[2] - (dilations[0] * (kernel[0] - 1) + 1)) / strides[0] + 1);
  const ow = Math.floor((width + pads[1] + pads[3] - (dilations[1] * (kernel[1] - 1) + 1)) / strides[1] + 1);
  const out: number[] = [];
  for (let b = 0; b < n; b++)
    for (let o = 0; o < outputs; o++)
      for (let y = 0; y < oh; y++)
        for (let z = 0; z < ow; z++) {
          let sum = 0;
          for (let c = 0; c < each; c++)
            for (let i = 0; i < kernel[0]; i++)
              for (let j = 0; j < kernel[1]; j++) {
                const row = y * strides[0] + i * dilations[0] - pads[0];
                const column = z * strides[1] + j * dilations[1] - pads[1];
                if (row < 0 || column < 0 || row >= height || column >= width) continue;
                const channel = Math.floor(o / (outputs / group)) * each + c;
                const weight = w[((o * each + c) * kernel[0] + i) * kernel[1] + j];
                sum += weight * x[((b * channels + channel) * height + row) * width + column];
              }
          out.push(sum);
        }
  return out;
}

const numbers = (n: number, seed: number) => {
  const random = seededRandom(seed);
  return Float32Array.from({ length: n }, () => Math.round(16 * (random() - 0.5)));
};

describe.each(cases)("im2col: $name", (c) => {
  const { outputs, dims, geometry } = c;
  const { group = 1, channels, kernel } = geometry;
  const k = (channels / group) * kernel[0] * kernel[1];
  const x = numbers(
    dims.reduce((a, b) => a * b),
    1,
  );
  const w = numbers(outputs * k, 2);

  it("gives the convolution by a product", () => {
    const expected = convolve(c, x, w);
    const per = outputs / group;
    const pixels = expected.length / (dims[0] * outputs);
    for (let g = 0; g < group; g++) {
      const patches = im2col(x, dims, geometry, g);
      expect(patches.length).toBe(dims[0] * pixels * k);
      for (let p = 0; p < dims[0] * pixels; p++)
        for (let o = g * per; o < (g + 1) * per; o++) {
          let sum = 0;
          for (let j = 0; j < k; j++) sum += patches[p * k + j] * w[o * k + j];
          expect(sum).toBe(expected[(Math.floor(p / pixels) * outputs + o) * pixels + (p % pixels)]);
        }
    }
  });

  it("has statistics per group", () => {
    const acc = convStatistics(geometry);
    acc.add(x, dims);
    acc.add(x, dims, { every: 3 });
    expect(acc.k).toBe(k);
    const all = acc.finish();
    expect(all.length).toBe(group);
    all.forEach(({ hessian, rows, sum }, g) => {
      const patches = im2col(x, dims, geometry, g);
      const count = patches.length / k;
      const expected = new Float64Array(k * k);
      const sums = new Float64Array(k);
      for (let p = 0; p < count; p++)
        for (let i = 0; i < k; i++) {
          const times = p % 3 === 0 ? 2 : 1;
          sums[i] += times * patches[p * k + i];
          for (let j = 0; j < k; j++) expected[i * k + j] += times * patches[p * k + i] * patches[p * k + j];
        }
      expect(rows).toBe(count + Math.ceil(count / 3));
      expect(Array.from(sum, (v) => v + 0)).toEqual(Array.from(sums, (v) => v + 0));
      expect(Array.from(hessian!, (v) => v + 0)).toEqual(Array.from(expected, (v) => v + 0));
    });
  });
});

describe("im2col: bad input", () => {
  const geometry: ConvGeometry = { channels: 2, kernel: [3, 3] };
  it("names what does not fit", () => {
    expect(() => im2col(new Float32Array(36), [1, 2, 3, 5], geometry)).toThrow(/expected 30 numbers/);
    expect(() => im2col(new Float32Array(8), [1, 2, 2, 2], geometry)).toThrow(/room for a kernel of 3 x 3/);
    expect(() => im2col(new Float32Array(27), [1, 3, 3, 3], geometry)).toThrow(/\[n, 2, h, w\]/);
    expect(() => im2col(new Float32Array(18), [1, 2, 3, 3], geometry, 1)).toThrow(/group: expected 0..0/);
    expect(() => im2col(new Float32Array(18), [1, 2, 3, 3], geometry, 0, { every: 0 })).toThrow(/every/);
    expect(() => convStatistics({ ...geometry, group: 3 })).toThrow(/divisor of 2 channels/);
    expect(() => convStatistics({ ...geometry, strides: [0, 1] })).toThrow(/strides/);
    expect(() => convStatistics(geometry).finish()).toThrow(/at least one token/);
  });
});
