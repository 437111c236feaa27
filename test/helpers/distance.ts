/** Noise over signal, rms; infinite where there are not as many values, NaN where there is no signal. */
export function distance(wanted: Float32Array, got: Float32Array): number {
  if (got.length !== wanted.length) return Infinity;
  let [noise, signal] = [0, 0];
  wanted.forEach((v, i) => {
    noise += (v - got[i]) ** 2;
    signal += v ** 2;
  });
  return Math.sqrt(noise / signal);
}
