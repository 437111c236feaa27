import { defineConfig } from "vitest/config";

// Folders whose tests share their modules in a worker: nothing of theirs holds state between files.
const folders = ["files", "formats", "interop", "kernels", "onnx", "quantize", "runtime", "search", "tensor", "testing", "tfjs"];
// not those that put other modules in place of the library's
const shared = [...folders.map((folder) => `test/${folder}/**/*.test.ts`), "test/backends/wasm/nn/!(*emulated).test.ts"];

export default defineConfig({
  test: {
    globalSetup: ["test/temporary.ts"],
    // onnxruntime-node is a native addon: processes, not threads.
    pool: "forks",
    maxWorkers: 2,
    // CI runs the suites of kernels several times, on other engines and drivers
    experimental: { fsModuleCache: true },
    projects: [
      { isolate: true, name: "apart", include: ["test/**/*.test.ts"], exclude: shared },
      { isolate: false, name: "shared", include: shared, exclude: [] },
    ].map(({ isolate, ...test }) => ({
      extends: true as const,
      test: { ...test, isolate, testTimeout: 240_000, hookTimeout: 240_000, setupFiles: ["test/setup.ts"] },
    })),
  },
});
