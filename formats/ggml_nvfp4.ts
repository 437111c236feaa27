// ggml_nvfp4: 64 elements in 36 bytes, 4.5 bits per value; the tensor scale lives outside the block.
//   d:UE4M3[4]  qs[32]     per run of 16: 8 bytes, q(j) | q(j+8) << 4     value = E2M1(q) * d
// The scale byte is no plain float8_e4m3fn cast: halves round up on one bit, subnormals stop at 7, and everything that
// would reach 256 becomes
// 448 (0x7e). 0x7f reads as zero. E2M1 ties go toward zero.
import { defineGgmlE2M1, f32 } from "./define/ggml.ts";
import { exponentOf } from "./core/round.ts";

function encodeScale(amax: number): number {
  const x = Math.min(f32(amax / 6), 448);
  if (!(x > 0)) return 0;
  const e = Math.max(exponentOf(x), -127) + 7;
  if (e <= 0) return Math.min(7, Math.trunc(f32(f32(x * 512) + 0.5)));
  // Four fraction bits, then half up; a carry runs into the exponent by itself.
  const code = e * 8 + ((Math.floor((x / 2 ** (e - 7) - 1) * 16) + 1) >> 1);
  return code >= 15 * 8 ? 0x7e : code;
}

const decodeScale = (byte: number): number => {
  const [e, m] = [(byte >> 3) & 15, byte & 7];
  return byte === 0x7f ? 0 : e === 0 ? m * 2 ** -10 : (1 + m / 8) * 2 ** (e - 8);
};

/**
 * ggml NVFP4 (type 40); ggml-quants.c: 64 values in 36 bytes, 4.5 bits per value.
 * @example quantize(tensor(values, [rows, k]), ggml_nvfp4)
 */
export const ggml_nvfp4 = /* @__PURE__ */ defineGgmlE2M1({
  name: "ggml_nvfp4",
  aliases: ["gguf_nvfp4"],
  spec: "NVFP4 (type 40)",
  gguf: 40,
  groups: 4,
  size: 16,
  scale: encodeScale,
  unit: decodeScale,
});
