// Rows of block-quantized tables against the definition, bit for bit: both widths, signs, zero points, short last
// blocks, repeated indices, one thread and two.
import { describe, expect, it } from "vitest";
import { gather, gatherJob } from "../../../../kernels/wasm/nn/gather.ts";
import { rowsAt } from "../../../../kernels/wasm/nn/rows.ts";
import { random } from "../../../helpers/random.ts";
import { memories, runOn } from "./bench.ts";

const all = memories();
const rng = random(23);

/** Codes of rows, each padded to a byte, low nibble first; tensors hold whole words. */
function packed(rows: number[][], bits: 4 | 8): Float32Array {
  const perRow = Math.ceil((rows[0].length * bits) / 8);
  const bytes = new Uint8Array(4 * Math.ceil((rows.length * perRow) / 4));
  rows.forEach((row, r) =>
    row.forEach((code, i) => {
      if (bits === 8) bytes[r * perRow + i] = code;
      else bytes[r * perRow + (i >> 1)] |= (code & 15) << (4 * (i & 1));
    }),
  );
  return new Float32Array(bytes.buffer);
}

describe("gather", () => {
  it("reads rows of packed tables", () => {
    for (const memory of all)
      for (const bits of [4, 8] as const)
        for (const signed of [false, true])
          for (const zeroPoints of [false, true])
            for (const [width, block] of [[32, 32], [8, 8], [64, 16], [96, 64], [1024, 32], [40, 128]]) {
              const [vocabulary, count] = [37, 75];
              const spec = { bits, signed, zeroPoints, shared: memory.shared };
              const low = signed ? -(2 ** (bits - 1)) : 0;
              const draw = (n: number): number[][] =>
                Array.from({ length: vocabulary }, () => Array.from({ length: n }, () => low + Math.floor(rng.next() * 2 ** bits)));
              const blocks = Math.ceil(width / block);
              const [codes, zeros] = [draw(width), draw(blocks)];
              const scales = Float32Array.from({ length: vocabulary * blocks }, () => rng.normal());
              const indices = Int32Array.from({ length: count }, (_, i) => (i === 0 ? vocabulary - 1 : Math.floor(rng.next() * vocabulary)));
              const zero = signed ? 0 : 2 ** (bits - 1);
              const tensors = [new Float32Array(indices.buffer), packed(codes, bits), scales, packed(zeros, bits), new Float32Array(count * width)];
              const y = runOn(memory, gather, spec, tensors, (at) =>
                gatherJob({ rows: count, width, block, indices: at[0], codes: at[1], scales: at[2], zeroPoints: at[3], zero, y: rowsAt(at[4], width) }, spec),
              )[4];
              let wrong = 0;
              indices.forEach((row, r) => {
                for (let i = 0; i < width; i++) {
                  const b = Math.floor(i / block);
                  const z = zeroPoints ? zeros[row][b] : zero;
                  if (y[r * width + i] !== Math.fround((codes[row][i] - z) * scales[row * blocks + b])) wrong++;
                }
              });
              expect(wrong, `${JSON.stringify(spec)} ${width} ${block}`).toBe(0);
            }
  }); // prettier-ignore

  it("refuses rows and blocks that are no multiple of 8", () => {
    const spec = { bits: 4, signed: false, zeroPoints: false, shared: false } as const;
    const job = { rows: 1, width: 32, block: 32, indices: 0, codes: 0, scales: 0, y: rowsAt(0, 32) };
    expect(() => gatherJob({ ...job, width: 30 }, spec)).toThrow(RangeError);
    expect(() => gatherJob({ ...job, block: 12 }, spec)).toThrow(/multiple of 8/);
  });
});
