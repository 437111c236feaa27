// Every format says where it is specified; ggml's types go by their names and numbers; points of grids are found again.
import { expect, test } from "vitest";
import { allFormats, format, type OpaqueFormat } from "../../formats/index.ts";
import { random } from "../helpers/random.ts";

test("every format says where it is specified", () => {
  for (const f of allFormats) expect([f.name, (f as { spec?: string }).spec]).toEqual([f.name, expect.stringMatching(/\w{2}/)]);
  for (const [name, words] of Object.entries({ hifloat8: "2409.16626", olive4: "OliVe", olive8: "OliVe", takum8: "takum" }))
    expect((format(name) as { spec?: string }).spec, name).toContain(words);
});

test("types of ggml by name and number", () => {
  const own = ["iq4_nl", "mxfp4", "nvfp4"]; // names of formats without ggml's layout
  for (const f of allFormats) {
    if (!f.name.startsWith("ggml_")) continue;
    const [type, { spec, gguf }] = [f.name.slice(5), f as OpaqueFormat & { spec: string; gguf: number }];
    if (!own.includes(type)) expect(format(type), f.name).toBe(f);
    expect(spec, f.name).toContain(`(type ${gguf})`);
    expect(spec.toLowerCase(), f.name).toContain(type);
  }
});

test.each(["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])("ggml_%s: any points of its grid are found again", (type) => {
  const f = format(`ggml_${type}`) as OpaqueFormat;
  const rng = random(3);
  for (let i = 0; i < 20; i++) {
    const x = f.decodeBytes(Uint8Array.from({ length: f.blockBytes }, () => rng.integer(256)));
    if (![...x].every(Number.isFinite)) continue;
    const again = f.decodeBytes(f.encodeBytes(x));
    const power = x.reduce((sum, v) => sum + v * v, 0);
    expect(x.reduce((sum, v, j) => sum + (v - again[j]) ** 2, 0)).toBeLessThan(0.01 * power);
  }
});
