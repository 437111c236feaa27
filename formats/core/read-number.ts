// Numbers as people type them, for the command and the number explorer.

/**
 * "0.3", "1e-3", "-inf", "NaN", "2^-7", C's "0x1.8p3": the nearest double; hexadecimal digits of up to 53 bits are
 * exact.
 * @returns undefined where the text is no number, or a finite one that no double reaches
 */
export function readNumber(text: string): number | undefined {
  const [, sign, bare] = /^([-+]?)(.*)$/s.exec(text.trim())!;
  const size = /^inf(inity)?$/i.test(bare) ? Infinity : /^nan$/i.test(bare) ? NaN : finite(bare);
  return size === undefined ? undefined : sign === "-" ? -size : size;
}

function finite(text: string): number | undefined {
  const power = /^2\^([-+]?\d+)$/.exec(text);
  const hex = /^0x([0-9a-f]*)\.?([0-9a-f]*)p([-+]?\d+)$/i.exec(text);
  const value =
    power !== null
      ? 2 ** Number(power[1])
      : hex !== null
        ? hexadecimal(hex[1], hex[2], Number(hex[3]))
        : /^([-+]|$)/.test(text)
          ? NaN
          : Number(text);
  return Number.isFinite(value) ? value : undefined;
}

function hexadecimal(whole: string, fraction: string, exponent: number): number {
  if (whole + fraction === "") return NaN;
  const digits = Number(BigInt(`0x${whole}${fraction}`));
  // a factor in two steps: 2^-1080 alone is 0, 2^1030 infinite
  const e = exponent - 4 * fraction.length;
  const half = Math.trunc(e / 2);
  return digits === 0 ? 0 : digits * 2 ** half * 2 ** (e - half);
}
