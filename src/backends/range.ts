// Scale and zero point of a range as ONNX's DynamicQuantizeLinear has them: uint8, zero within, float32 arithmetic.

/** Round half to even. */
export function round(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** low <= 0 <= high. */
export function dynamicScale(low: number, high: number): { readonly scale: number; readonly zero: number } {
  const scale = high === low ? 1 : Math.fround(Math.fround(high - low) / 255);
  return { scale, zero: Math.min(255, Math.max(0, round(Math.fround(-low / scale)))) };
}
