// The binary8 family of IEEE P3109 (draft): 8 bits, precision p, one zero, NaN in the place of -0 (unsigned: on top). "e" (extended) formats have
// infinity in the top code, "f" (finite) formats a number. bias = 2^(7-p), unsigned 2^(8-p): one larger than OCP, so binary8p4 is not float8_e4m3fn.
// Overflow by default: infinity where there is one, else saturation.
import { defineFloat } from "./float.ts";
import type { NumberFormat } from "../core/types.ts";

/**
 * binary8p<precision><domain>.
 * @param precision significand bits with the hidden one, 1..7 (unsigned: 1..8)
 * @param domain signed or unsigned, extended or finite: "se", "sf", "ue", "uf"
 * @throws LowbitError E_FORMAT
 */
export function defineBinary8(precision: number, domain: "se" | "sf" | "ue" | "uf"): NumberFormat {
  const signed = domain[0] === "s";
  const extended = domain[1] === "e";
  const plain = signed && extended ? [`binary8p${precision}`] : [];
  return defineFloat({
    name: `binary8p${precision}${domain}`,
    aliases: [...plain, `k8p${precision}${domain}`],
    exponentBits: (signed ? 8 : 9) - precision,
    mantissaBits: precision - 1,
    bias: 2 ** ((signed ? 7 : 8) - precision),
    specials: extended ? "p3109" : signed ? "fnuz" : "fn",
    signed,
    spec: `IEEE P3109 (draft) K8P${precision}${domain}`,
    ...(extended ? {} : { defaults: { overflow: "saturate" } as const }),
  });
}

/** binary8p<n>{se,sf,ue,uf}, for the registry. */
export function binary8ByName(name: string): NumberFormat | undefined {
  const m = /^(?:binary|k)8p([1-8])(se|sf|ue|uf)$/.exec(name);
  if (!m || (m[2][0] === "s" && m[1] === "8")) return undefined;
  return defineBinary8(Number(m[1]), m[2] as "se");
}
