// Writes a module of DFloat11 from its description (luts of 256 entries with pointers of 240 and more, exponents coded
// most significant bit first, sign and mantissa as bytes); imports nothing of the library. Codes: any prefix code will
// do, here symbol i of n in unary, so that codes of more than 8 bits need several tables.
export function dfloat11Module(words: readonly number[]): Record<string, Uint8Array> {
  const symbols = [...new Set(words.map((w) => (w >> 7) & 255))].sort((a, b) => a - b);
  const code = (s: number): string => "1".repeat(symbols.indexOf(s)) + "0";
  const tables: number[][] = [];
  const lengths = new Array<number>(256).fill(0);
  // table t is reached by 8 t ones
  const depth = Math.ceil(symbols.length / 8);
  for (let t = 0; t < depth; t++) {
    const table: number[] = [];
    for (let byte = 0; byte < 256; byte++) {
      const ones = Math.clz32(~(byte << 24));
      table.push(ones >= 8 ? (t + 1 < depth ? 256 - (t + 1) : 0) : (symbols[8 * t + ones] ?? 0));
    }
    tables.push(table);
  }
  for (const s of symbols) lengths[s] = code(s).length;
  const bits = words.map((w) => code((w >> 7) & 255)).join("");
  const stream: number[] = [];
  for (let i = 0; i < bits.length; i += 8) stream.push(parseInt(bits.slice(i, i + 8).padEnd(8, "0"), 2));
  return {
    luts: Uint8Array.from([...tables, lengths].flat()),
    encoded_exponent: Uint8Array.from(stream),
    sign_mantissa: Uint8Array.from(words, (w) => ((w >> 8) & 128) | (w & 127)),
    output_positions: new Uint8Array(Uint32Array.of(0, words.length).buffer),
  };
}
