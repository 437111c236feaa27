// `npm run kernel` prints what runs: the text of a module, assembled again, is the module byte for byte.
import { describe, expect, it } from "vitest";
import wabt from "wabt";
import { kernelFamilies, shaderFamilies } from "../../kernels/registry.ts";
import { findKernel, kernelsLike, moduleText, registeredKernels } from "../../scripts/kernel.ts";

const features = { simd: true, relaxed_simd: true, threads: true, bulk_memory: true };

describe("kernels as text", () => {
  it("are the modules: assembled again they are the same bytes, some of every family, with and without relaxed SIMD", async () => {
    const { parseWat } = await wabt();
    for (const family of kernelFamilies) {
      const all = [...family.variants()];
      const some = new Set([all[0], all[all.length >> 1], all.at(-1)!, all.find((v) => v.relaxed) ?? all[0]]);
      for (const variant of some) {
        const bytes = variant.build();
        const module = parseWat(variant.name, await moduleText(bytes), features);
        const again = module.toBinary({}).buffer;
        module.destroy();
        expect(Buffer.compare(again, bytes), variant.name).toBe(0);
      }
    }
  });

  it("have names of their own over all families, WebAssembly and WGSL", () => {
    const names = [...registeredKernels()].map((kernel) => kernel.name);
    expect(new Set(names).size).toBe(names.length);
  });

  it("are found by name in either language", async () => {
    const [float64] = kernelFamilies.find((family) => family.name === "float64")!.variants();
    expect(await findKernel(float64.name).text()).toMatch(/^\(module[^]*f64x2\.mul/);
    expect(await findKernel(float64.name, "wat").text()).toBe(await moduleText(float64.build()));
    const [shader] = shaderFamilies[0].variants();
    expect(await findKernel(shader.name, "wgsl").text()).toBe(shader.build());
  });

  it("a name that is not there, or of the other language, is answered by what is", () => {
    expect(() => findKernel("hadamard64")).toThrow(/got "hadamard64"\. Near it: f32_hadamard64__wasmsimd/);
    expect(() => findKernel("nothing like it")).toThrow("--list");
    expect(() => findKernel("f32_hadamard64__wasmsimd", "wgsl")).toThrow("ask for --wat");
  });

  it("are listed by parts of names and families", () => {
    const found = kernelsLike(["Float64"]).map((kernel) => kernel.name);
    expect(found).toEqual(["f64_gemm_4x4__wasmsimd"]);
    expect(kernelsLike([]).length).toBe([...registeredKernels()].length);
  });
});
