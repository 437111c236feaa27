// The JavaScript of the package, ESM and CJS, every public subpath an entry. Splitting keeps one copy of each module per module system, so that
// `lowbit/formats` and `lowbit/formats/int4` hold the same objects. Types: scripts/types.ts.
import { existsSync } from "node:fs";
import { defineConfig, type Options } from "tsup";
import { entries } from "./scripts/generate.ts";

const library = Object.fromEntries(entries().map(({ source, out }) => [out, source]));
const cli: Record<string, string> = existsSync("src/cli/main.ts") ? { cli: "src/cli/main.ts" } : {};

const common: Options = {
  splitting: true,
  treeshake: false,
  sourcemap: false,
  clean: true,
  dts: false,
  target: "es2022",
  platform: "neutral",
  external: [/^node:/, "onnxruntime-node", "onnxruntime-web", "fast-check", "@bufbuild/protobuf", "@tensorflow/tfjs-core"],
  removeNodeProtocol: false,
  silent: true,
};

export default defineConfig([
  { ...common, entry: { ...library, ...cli }, format: "esm", outDir: "dist/esm", outExtension: () => ({ js: ".js" }) },
  { ...common, entry: library, format: "cjs", outDir: "dist/cjs", outExtension: () => ({ js: ".cjs" }) },
]);
