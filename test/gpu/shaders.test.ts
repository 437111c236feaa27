// Every WGSL kernel of the registry compiles on this adapter without a message and makes a pipeline on a device with
// default limits. In a page this is Tint in Chromium, in Deno naga. Where pipelines are slow to make a spread of every
// family gets them, and the title says so.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { shaderFamilies } from "../../kernels/registry.ts";
import { adapter, adapterName, describeGpu, entryPoint, spread } from "./adapter.ts";

describeGpu(`WGSL on ${adapterName}`, () => {
  let device: GPUDevice;
  const known = ["shader-f16", "subgroups"] as const;
  beforeAll(async () => {
    // an adapter gives one device
    const fresh = (await (await entryPoint())!.requestAdapter())!;
    device = await fresh.requestDevice({ requiredFeatures: known.filter((f) => fresh.features.has(f)) });
  });
  afterAll(() => device.destroy());

  describe.each(shaderFamilies.map((f) => [f.name, f] as const))("%s", (_, family) => {
    const variants = [...family.variants()];
    const usable = variants.filter((v) => v.features.every((f) => adapter!.features.has(f)));
    const made = spread("shaders", usable, Math.max(1, Math.floor(usable.length / 4)));
    it(`${usable.length} of ${variants.length} kernels compile, ${made.length} make pipelines`, async () => {
      if (usable.length < variants.length) {
        const features = new Set(variants.flatMap((v) => v.features.filter((f) => !adapter!.features.has(f))));
        console.log(
          `${family.name}: ${variants.length - usable.length} kernels need ${[...features].join(", ")}, which this adapter has not`,
        );
      }
      const wrong: string[] = [];
      for (const variant of usable) {
        const code = variant.build();
        const module = device.createShaderModule({ code });
        const { messages } = await module.getCompilationInfo();
        for (const m of messages) wrong.push(`${variant.name}:${m.lineNum}: ${m.message}`);
        if (!made.includes(variant)) continue;
        await device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } }).catch((error: Error) => {
          wrong.push(`${variant.name}: ${error.message}`);
        });
      }
      expect(wrong).toEqual([]);
    }, 300_000);
  });
});
