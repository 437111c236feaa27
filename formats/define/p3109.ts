// The formats of IEEE P3109 (draft), binary<K>p<P>: K bits, precision P, one zero, NaN in the place of -0 (unsigned: on
// top). "e" (extended) formats have infinity in the top code, "f" (finite) formats a number. bias = 2^(K-P-1), unsigned
// 2^(K-P): one larger than OCP, so binary8p4 is not float8_e4m3fn. Overflow by default: infinity where there is one,
// else saturation.
import { LowbitError } from "../core/errors.ts";
import { NUMBER, TEXT, checkFields } from "../core/fields.ts";
import { defineFloat } from "./float.ts";
import type { NumberFormat } from "../core/types.ts";

/** Signed or unsigned, extended or finite. */
export type P3109Domain = "se" | "sf" | "ue" | "uf";

/** A float of IEEE P3109: width, precision, and whether it has a sign and infinities. */
export interface P3109Options {
  /** Width K, 3..15. */
  readonly bits: number;
  /**
   * Significand bits P with the hidden one. The exponent that is left, K - P bits (unsigned K - P + 1), is 1..8 bits
   * wide: float32 has no more.
   */
  readonly precision: number;
  readonly domain: P3109Domain;
}

const DOMAINS: ReadonlySet<P3109Domain> = /* @__PURE__ */ new Set(["se", "sf", "ue", "uf"]);

/**
 * binary<K>p<P><domain>.
 * @throws LowbitError E_FORMAT
 * @example defineP3109({ bits: 6, precision: 3, domain: "sf" }).limits.max // 14
 */
export function defineP3109(options: P3109Options): NumberFormat {
  checkFields("defineP3109", options, { bits: NUMBER, precision: NUMBER, domain: TEXT });
  const { bits, precision, domain } = options;
  if (!DOMAINS.has(domain))
    throw new LowbitError(
      "E_FORMAT",
      `defineP3109 domain: expected se, sf, ue or uf, got ${String(domain)}. Say signed or unsigned first.`,
    );
  const signed = domain[0] === "s";
  const extended = domain[1] === "e";
  const exponentBits = bits - precision + (signed ? 0 : 1);
  const whole = Number.isInteger(bits) && Number.isInteger(precision);
  if (!(whole && bits >= 3 && bits <= 15 && precision >= 1 && exponentBits >= 1 && exponentBits <= 8))
    throw new LowbitError(
      "E_FORMAT",
      `defineP3109: expected bits in 3..15 and a precision that leaves 1..8 exponent bits, got ${bits} and ${precision}. Formats beyond the range of float32 are not supported.`,
    );
  const plain = signed && extended ? [`binary${bits}p${precision}`] : [];
  return defineFloat({
    name: `binary${bits}p${precision}${domain}`,
    aliases: [...plain, `k${bits}p${precision}${domain}`],
    exponentBits,
    mantissaBits: precision - 1,
    bias: 2 ** (exponentBits - 1),
    specials: extended ? "p3109" : signed ? "fnuz" : "fn",
    signed,
    spec: `IEEE P3109 (draft) K${bits}P${precision}${domain}`,
    ...(extended ? {} : { defaults: { overflow: "saturate" } as const }),
  });
}

/**
 * binary8p<precision><domain>: the 8-bit ones.
 * @param precision significand bits with the hidden one, 1..7 (unsigned: 1..8)
 * @throws LowbitError E_FORMAT
 * @example defineBinary8(3, "sf").limits.max // 57344: binary8p3sf
 */
export function defineBinary8(precision: number, domain: P3109Domain): NumberFormat {
  return defineP3109({ bits: 8, precision, domain });
}

/** binary<K>p<P>{se,sf,ue,uf}, for the registry. */
export function p3109ByName(name: string): NumberFormat | undefined {
  const m = /^(?:binary|k)([1-9][0-9]?)p([1-9][0-9]?)(se|sf|ue|uf)?$/.exec(name);
  if (!m) return undefined;
  const [bits, precision, domain] = [Number(m[1]), Number(m[2]), (m[3] ?? "se") as P3109Domain];
  const exponentBits = bits - precision + (domain[0] === "s" ? 0 : 1);
  return bits >= 3 && bits <= 15 && exponentBits >= 1 && exponentBits <= 8 ? defineP3109({ bits, precision, domain }) : undefined;
}
