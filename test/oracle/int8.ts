// 8-bit weights by the rule of onnxruntime's quantizer (quant_utils: compute_scale_zp, quantize_nparray), one channel
// at a time, written from the rule alone. Imports nothing of the library.

const f32 = (x: number): number => Float32Array.of(x)[0];
/** numpy's rint: half to even, by comparing the two neighbours. */
function rint(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

export interface Int8Oracle {
  readonly codes: number[];
  readonly scale: number;
  readonly zeroPoint: number;
}

export function int8Oracle(values: readonly number[], signed: boolean, symmetric: boolean): Int8Oracle {
  let rmin = Math.min(0, ...values);
  let rmax = Math.max(0, ...values);
  if (symmetric) {
    const extreme = Math.max(Math.abs(rmin), Math.abs(rmax));
    rmin = -extreme;
    rmax = extreme;
  }
  const qmin = signed ? (symmetric ? -127 : -128) : 0;
  const qmax = signed ? 127 : symmetric ? 254 : 255;
  let scale = f32(rmax - rmin) / (qmax - qmin);
  let zeroPoint = 0;
  if (scale < 2 ** -126) scale = 1;
  else zeroPoint = symmetric ? rint((qmin + qmax) / 2) : rint(qmin - rmin / scale);
  const stored = f32(scale);
  const [low, high] = signed ? [-128, 127] : [0, 255];
  const codes = values.map((value) => Math.min(high, Math.max(low, rint(f32(value / stored)) + zeroPoint)));
  return { codes, scale: stored, zeroPoint };
}
