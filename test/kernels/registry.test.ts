// Every kernel variant of the registry is a valid module with a name of its own, and every family has its bench.
import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { kernelFamilies } from "../../kernels/registry.ts";
import { engine } from "../../kernels/wasm/engine/engine.ts";
import { families } from "../../kernels/wasm/engine/family.ts";
import { wasmFeatures } from "../../kernels/wasm/engine/features.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));

describe("kernel registry", () => {
  for (const family of kernelFamilies)
    it(`${family.name}: every variant compiles`, () => {
      expect(existsSync(`${root}${family.file}`)).toBe(true);
      const names = new Set<string>();
      let skipped = 0;
      for (const variant of family.variants()) {
        expect(names.has(variant.name), variant.name).toBe(false);
        names.add(variant.name);
        if (variant.relaxed && !wasmFeatures().relaxed) {
          skipped++;
          continue;
        }
        expect(engine.validate(variant.build()), variant.name).toBe(true);
      }
      if (skipped > 0) {
        console.log(`${family.name}: ${skipped} of ${names.size} variants need relaxed SIMD, which this engine lacks`);
        expect(process.env.REQUIRE_RELAXED).not.toBe("1");
      }
      expect(names.size).toBeGreaterThan(skipped);
    });

  it("lists every family that is made, so that no kernel runs that it does not know", async () => {
    const files = readdirSync(`${root}kernels/wasm`, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"));
    for (const file of files) await import(/* @vite-ignore */ `${root}kernels/wasm/${file}`);
    const listed = kernelFamilies.flatMap((line) => line.families);
    expect(new Set(listed).size).toBe(listed.length);
    expect([...families().keys()].sort()).toEqual(listed.map(({ name }) => name).sort());
    expect(families().size).toBeGreaterThan(10);
  });
});
