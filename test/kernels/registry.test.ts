// Every kernel variant of the registry is a valid module with a name of its own, and every family has its bench.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { kernelFamilies } from "../../kernels/registry.ts";
import { engine } from "../../kernels/wasm/engine/engine.ts";
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
});
