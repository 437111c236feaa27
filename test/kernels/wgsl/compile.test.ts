// Every WGSL kernel of the registry compiles and makes a pipeline within WebGPU's default limits, by dawn's null
// backend, which needs no driver and runs nothing.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { create, globals } from "webgpu";
import { shaderFamilies } from "../../../kernels/registry.ts";

Object.assign(globalThis, globals);
const gpu = create(["backend=null"]);
const variants = shaderFamilies.flatMap((family) => [...family.variants()].map((variant) => ({ family, variant })));

/** Messages of compiling `code` and making its pipeline. */
async function problems(device: GPUDevice, code: string): Promise<string[]> {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code });
  const found = (await module.getCompilationInfo()).messages.map((m) => `line ${m.lineNum}: ${m.message}`);
  await device
    .createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } })
    .catch((error: Error) => void found.push(error.message));
  const error = await device.popErrorScope();
  if (error !== null && found.length === 0) found.push(error.message);
  return found;
}

describe("WGSL", () => {
  let plain: GPUDevice;
  let full: GPUDevice;
  beforeAll(async () => {
    plain = await (await gpu.requestAdapter())!.requestDevice();
    full = await (await gpu.requestAdapter())!.requestDevice({ requiredFeatures: ["shader-f16", "subgroups"] as GPUFeatureName[] });
  });
  afterAll(() => {
    plain.destroy();
    full.destroy();
    // the devices need it until here: it must not be collected before
    void gpu;
  });

  it("names are unique", () => {
    expect(new Set(variants.map((v) => v.variant.name)).size).toBe(variants.length);
  });

  it.each(shaderFamilies.map((f) => [f.name, f] as const))(
    "%s: every kernel compiles, on a device with only the features it names",
    async (_, family) => {
      const wrong: string[] = [];
      for (const variant of family.variants()) {
        const device = variant.features.length === 0 ? plain : full;
        for (const problem of await problems(device, variant.build())) wrong.push(`${variant.name}: ${problem}`);
      }
      expect(wrong).toEqual([]);
    },
  );

  it("the check finds what is wrong: an unknown name, a workgroup above the limit, a feature that was not asked for", async () => {
    expect(await problems(plain, "@compute @workgroup_size(1) fn main() { nothing(); }")).toHaveLength(1 + 1);
    expect(await problems(plain, "@compute @workgroup_size(512) fn main() {}")).not.toEqual([]);
    expect(await problems(plain, "enable f16; @compute @workgroup_size(1) fn main() {}")).not.toEqual([]);
    expect(await problems(full, "enable f16; @compute @workgroup_size(1) fn main() {}")).toEqual([]);
  });
});
