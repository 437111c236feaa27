// The WebGPU runtime: jobs end to end, pipelines compiled once, buffers counted, and every fault of a device a
// LowbitError with the kernel's name.
import { expect, it } from "vitest";
import type { GpuDevice, GpuRoot } from "../../kernels/wgsl/api.ts";
import { createGpuRuntime, shaderBindings, type GpuRuntime } from "../../kernels/wgsl/runtime.ts";
import { connect } from "../../src/backends/webgpu/device.ts";
import { adapterName, describeGpu, entryPoint } from "./adapter.ts";

const double = {
  name: "test_double__wgsl",
  code: `
struct Params { count: u32 }
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
@group(0) @binding(2) var<uniform> params: Params;
@compute @workgroup_size(64) fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) id: u32) {
  let i = (group.x + group.y * groups.x) * 64u + id;
  if (i < params.count) { y[i] = 2u * x[i]; }
}`,
};

async function make(limits?: object): Promise<{ runtime: GpuRuntime; device: GpuDevice }> {
  const { device } = await connect({ gpu: (await entryPoint()) as unknown as GpuRoot });
  return { device, runtime: createGpuRuntime(device, { own: true, ...(limits === undefined ? {} : { limits }) }) };
}

async function run(runtime: GpuRuntime, data: Uint32Array): Promise<Uint32Array> {
  const pipeline = await runtime.pipeline("double", {}, () => double);
  const bytes = data.byteLength;
  return new Uint32Array(
    await runtime.submit("double", (job) => {
      const x = runtime.scratch("x", bytes);
      const y = runtime.scratch("y", bytes);
      const params = runtime.scratch("count", 16);
      runtime.write(x, 0, data);
      const uniform = runtime.allocate(16, "params", "uniform");
      runtime.write(uniform, 0, Uint32Array.of(data.length, 0, 0, 0));
      runtime.write(params, 0, Uint32Array.of(1));
      job.dispatch(pipeline, { x, y, params: uniform }, Math.ceil(data.length / 64));
      const result = job.read(y, 0, bytes);
      void result.finally(() => runtime.release(uniform)).catch(() => {});
      return result;
    }),
  );
}

describeGpu(`WebGPU runtime on ${adapterName}`, () => {
  it("reads the bindings off a shader", () => {
    expect(shaderBindings(double.code)).toEqual([
      { index: 0, name: "x", type: "read-only-storage" },
      { index: 1, name: "y", type: "storage" },
      { index: 2, name: "params", type: "uniform" },
    ]);
  });

  it("runs a kernel, compiled once; more workgroups than a dimension takes; many at once", async () => {
    const { runtime } = await make({ workgroups: 3 });
    const data = (n: number): Uint32Array => Uint32Array.from({ length: n }, (_, i) => Math.imul(i, 2654435761) >>> 2);
    for (const n of [1, 64, 65, 1000]) expect(await run(runtime, data(n))).toEqual(data(n).map((v) => 2 * v));
    const many = await Promise.all([5, 600, 70].map((n) => run(runtime, data(n))));
    expect(many).toEqual([5, 600, 70].map((n) => data(n).map((v) => 2 * v)));
    expect(runtime.pipelines).toBe(1);
    // x, y and count
    expect(runtime.buffers).toBe(3);
    runtime.dispose();
    expect(runtime.buffers).toBe(0);
    expect(runtime.bytes).toBe(0);
    await expect(run(runtime, data(3))).rejects.toMatchObject({ code: "E_DEVICE" });
  });

  it("faults name kernel and line, and leave a working runtime", async () => {
    const { runtime, device } = await make();
    const broken = { name: "broken__wgsl", code: double.code.replace("2u * x[i]", "2.5 * x[i]") };
    await expect(runtime.pipeline("broken", {}, () => broken)).rejects.toThrowError(/kernel broken__wgsl: .* line 8:/);
    const many = { name: "many__wgsl", code: double.code.replace("workgroup_size(64)", "workgroup_size(1, 1, 4096)") };
    await expect(runtime.pipeline("many", {}, () => many)).rejects.toMatchObject({ code: "E_DEVICE" });
    await expect(runtime.pipeline("many", {}, () => many)).rejects.toThrowError(/kernel many__wgsl/);
    expect(runtime.pipelines).toBe(0);
    // a binding that the buffer cannot fill
    const pipeline = await runtime.pipeline("double", {}, () => double);
    const job = runtime.submit("small", (j) => {
      const x = runtime.scratch("x", 64);
      j.dispatch(pipeline, { x, y: x, params: x }, 1);
      return j.read(x, 0, 64);
    });
    await expect(job).rejects.toThrowError(/^small: expected a working device/);
    await expect(runtime.submit("missing", (j) => j.dispatch(pipeline, {}, 1))).rejects.toThrowError(/no buffer for the binding x/);
    await expect(runtime.submit("thrown", (j) => { void j.read(runtime.scratch("x", 64), 0, 64); throw new Error("mine"); })).rejects.toThrowError(/mine/); // prettier-ignore
    expect(() => runtime.allocate(runtime.limits.buffer + 16, "too large")).toThrowError(/too large: expected at most/);
    expect(await run(runtime, Uint32Array.of(21))).toEqual(Uint32Array.of(42));
    expect(runtime.buffers).toBe(3);
    // lost while a result is awaited
    const late = run(runtime, new Uint32Array(100_000));
    device.destroy();
    await expect(late).rejects.toMatchObject({ code: "E_DEVICE" });
    await expect(run(runtime, Uint32Array.of(1))).rejects.toThrowError(/Make another backend/);
    runtime.dispose();
    const next = await make();
    expect(await run(next.runtime, Uint32Array.of(4))).toEqual(Uint32Array.of(8));
    next.runtime.dispose();
  });
});
