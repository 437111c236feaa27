// Repeats the kernel and thread suites under Node 24, whose engine has relaxed SIMD, and fails where it is missing
// (REQUIRE_RELAXED=1). The npm package `node` is installed once into a cache folder. Arguments are passed to vitest.
// Suites whose kernels this engine does not run otherwise are left to `npm test`: texts and bytes of modules, WGSL, and
// relaxed instructions printed as baseline SIMD128 (emulated).
// Usage: node scripts/test-node24.mjs [files]
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const run = (command, args, options) => execFileSync(command, args, { stdio: "inherit", ...options });

const SAME = /^test\/kernels\/print\.|^test\/kernels\/wgsl\/|emulated\.test\.ts$/;
/** Of what differs by more than kernels: engines with a Float16Array. */
const MORE = ["test/onnx/half-inputs.test.ts"];
const suites = () =>
  ["test/kernels", "test/backends"]
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true })
        .map((name) => `${folder}/${name}`)
        .filter((name) => name.endsWith(".test.ts") && !SAME.test(name)),
    )
    .concat(MORE);

/** Path of a Node 24: this process, or one from the cache. */
export function node24() {
  if (Number.parseInt(process.versions.node, 10) >= 24) return process.execPath;
  const cache = join(process.env.LOWBIT_CACHE ?? join(root, "node_modules", ".cache"), "node24");
  const binary = join(cache, "node_modules", "node", "bin", process.platform === "win32" ? "node.exe" : "node");
  if (!existsSync(binary)) {
    mkdirSync(cache, { recursive: true });
    writeFileSync(join(cache, "package.json"), '{ "private": true }\n');
    // the package's install script puts the binary for this platform in place
    run("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--foreground-scripts", "--ignore-scripts=false", "node@24"], {
      cwd: cache,
    });
  }
  return binary;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const binary = node24();
  const files = process.argv.slice(2);
  run(binary, ["-p", "'node ' + process.version"]);
  run(binary, [join(root, "node_modules", "vitest", "vitest.mjs"), "run", ...(files.length > 0 ? files : suites())], {
    cwd: root,
    env: { ...process.env, REQUIRE_RELAXED: "1" },
  });
}
