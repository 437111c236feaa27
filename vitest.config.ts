import { defineConfig } from "vitest/config";

// Folders whose tests share their modules in a worker: nothing of theirs holds state between files.
const shared = ["files", "formats", "interop", "kernels", "onnx", "quantize", "runtime", "search", "tensor", "testing", "tfjs"];

export default defineConfig({
  test: {
    globalSetup: ["test/temporary.ts"],
    // onnxruntime-node is a native addon: processes, not threads.
    pool: "forks",
    maxWorkers: 2,
    projects: [
      { isolate: true, name: "apart", include: ["test/**/*.test.ts"], exclude: shared.map((folder) => `test/${folder}/**`) },
      { isolate: false, name: "shared", include: shared.map((folder) => `test/${folder}/**/*.test.ts`), exclude: [] },
    ].map(({ isolate, ...test }) => ({
      extends: true as const,
      test: { ...test, isolate, testTimeout: 240_000, hookTimeout: 240_000, setupFiles: ["test/setup.ts"] },
    })),
  },
});
