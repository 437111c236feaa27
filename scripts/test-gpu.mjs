// npm run test:gpu: the suites of test/gpu on every kind of adapter that a machine without a GPU can have, and the
// suites of test/browser. Steps:
//   lavapipe256               vitest in Node on dawn and lavapipe 25, subgroups of 8: all suites, every codec and pipeline
//   lavapipe128, lavapipe512  the suites that subgroups matter to, with subgroups of 4 and 16
//   swiftshader               vitest in Node on dawn and SwiftShader: no shader-f16, 256 invocations
//   browser                   the suites in headless Chromium, the WebAssembly backend in isolated and other pages; not
//                             products.test.ts, which Chromium's process for the GPU compiles at a third of the speed: it
//                             is on the same driver and compiler in the step swiftshader, and layers, models, graphs and
//                             every kernel's compilation are in the page;
//                             examples/webgpu.html, which must print what examples/backends.mjs prints in Node (both
//                             need npm run build)
//   pages                     in Chromium too: training (examples/qlora), pipelines of transformers.js, the runtimes of
//                             `verify` on small models (scripts/verify-webgpu.ts)
//   naga                      the same suites in Deno, whose WGSL compiler is naga, on lavapipe
// An adapter that is missing, or not the one that a step is about, is a failure. Suites named *.node.test.ts run in
// Node only.
// Software drivers compile slowly: LOWBIT_GPU_FULL says what a step takes all of, else a spread: `shaders` (pipelines
// of the registry), `codecs`, `pipelines` of products, `formats` in products. Each step has a spread of its own
// (LOWBIT_GPU_PART), so that together they see more. `full` takes all pipelines and formats, `full512`
// products at that width; they take minutes and run when they are named.
// Usage: node scripts/test-gpu.mjs [steps]    Drivers: scripts/webgpu-drivers.sh (this script calls it only with --check)
import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bundleSuites, importSource, root } from "../test/browser/bundle.mjs";
import { serve, withChromium } from "../test/browser/chromium.mjs";
import { scratchFolder } from "./scratch.mjs";

const drivers = {};
for (const line of spawnSync("bash", ["scripts/webgpu-drivers.sh", "--check"], { cwd: root, encoding: "utf8" }).stdout.split("\n")) {
  const at = line.indexOf("=");
  if (at > 0) drivers[line.slice(0, at)] = line.slice(at + 1);
}
const need = (name) => {
  if (drivers[name] === undefined)
    throw new Error(`test-gpu: expected ${name}, found none. Run scripts/webgpu-drivers.sh (its first lines say how).`);
  return drivers[name];
};

const scratch = scratchFolder("gpu");
const gpuSuites = readdirSync(join(root, "test/gpu")).filter((f) => f.endsWith(".test.ts"));
const portable = gpuSuites.filter((f) => !f.endsWith(".node.test.ts")).map((f) => `test/gpu/${f}`);

/** Environment of a driver. Shader caches start empty: a warm one hides races at the first dispatch. */
function driverEnv(icd, adapter, part = 0) {
  const cache = mkdtempSync(join(scratch, "shaders-"));
  return {
    ...process.env,
    REQUIRE_WEBGPU: "1",
    LOWBIT_ADAPTER: adapter,
    LOWBIT_GPU_PART: String(part),
    VK_ICD_FILENAMES: icd,
    VK_DRIVER_FILES: icd,
    XDG_RUNTIME_DIR: scratch,
    MESA_SHADER_CACHE_DIR: cache,
    // LLVM's own passes are not what is tested: a fifth less time
    GALLIVM_PERF: "nopt",
  };
}

const vitest = (env, files = ["test/gpu"]) =>
  execFileSync(process.execPath, [join(root, "node_modules/vitest/vitest.mjs"), "run", ...files], { cwd: root, stdio: "inherit", env });

const lavapipe = (width, part, full, files) => () =>
  vitest({ ...driverEnv(need("lavapipe"), "llvmpipe", part), LOWBIT_GPU_FULL: full, LP_NATIVE_VECTOR_WIDTH: String(width) }, files);
/** Most of the time of a software driver: a second for each of its pipelines. */
const products = "test/gpu/products.test.ts";
/** What may depend on the size of subgroups. */
const subgroupSuites = ["test/gpu/runtime.test.ts", products];

/** Prints a result of runSuites; throws if anything failed, or nothing ran. */
function judge(where, result) {
  for (const { test, errors } of result.failed) console.log(`FAILED ${where}: ${test}\n${errors.join("\n")}`);
  for (const name of result.skipped) console.log(`skipped ${where}: ${name}`);
  for (const { test, ms } of result.slow) console.log(`  ${(ms / 1000).toFixed(1)} s: ${test}`);
  console.log(`${where}: ${result.passed} passed, ${result.skipped.length} skipped, ${result.failed.length} failed`);
  if (result.failed.length > 0 || result.passed === 0) throw new Error(`${where}: failed`);
}

async function browser() {
  const pages = {
    isolated: ["test/browser/isolated.browser.ts", ...portable.filter((name) => name !== products)],
    policy: ["test/browser/policy.browser.ts"],
    closed: ["test/browser/closed.browser.ts"],
    plain: ["test/browser/plain.browser.ts"],
  };
  const dir = join(scratch, "browser");
  await bundleSuites(Object.values(pages).flat(), dir, {
    REQUIRE_WEBGPU: "1",
    LOWBIT_ADAPTER: "swiftshader",
    LOWBIT_GPU_PART: "4",
  });
  const { workerScript } = await importSource("src/backends/wasm/threads.ts", dir);
  const server = await serve(dir, {
    "page.html": '<!doctype html><meta charset="utf-8"><title>suites</title><script type="module" src="page.js"></script>',
    "page.js": 'globalThis.suite = await import("./suite.js");',
    "worker.js": workerScript(),
  });
  try {
    await withChromium(need("chromium"), async (open) => {
      for (const [kind, names] of Object.entries(pages))
        for (const name of names) {
          const page = await open(`${server.url}/${kind}/page.html`);
          await page.waitForFunction(() => globalThis.suite !== undefined, null, { timeout: 240_000 });
          judge(`${kind} page, ${name}`, await page.evaluate((n) => globalThis.suite.run([n]), name));
          await page.close();
        }
      await example(open);
    });
  } finally {
    server.close();
  }
}

function pages() {
  // QLoRA in a page
  execFileSync(process.execPath, ["examples/qlora/serve.mjs", "--quick", "--chromium", need("chromium")], { cwd: root, stdio: "inherit" });
  // pipelines of transformers.js, with lowbit/transformers and without
  execFileSync(process.execPath, ["scripts/test-pipelines.mjs", need("chromium")], { cwd: root, stdio: "inherit" });
  // the runtimes of `verify --runtimes web,webgpu`
  execFileSync(process.execPath, [join(root, "node_modules/tsx/dist/cli.mjs"), "scripts/verify-webgpu.ts"], {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, LOWBIT_CHROMIUM: need("chromium") },
  });
}

/** The example page and the example in Node: three formats on three backends, the same numbers everywhere. */
async function example(open) {
  const node = execFileSync(process.execPath, ["examples/backends.mjs"], {
    cwd: root,
    encoding: "utf8",
    env: driverEnv(need("lavapipe"), ""),
  });
  const server = await serve(root);
  try {
    const page = await open(`${server.url}/isolated/examples/webgpu.html`);
    await page.waitForFunction(() => document.getElementById("state").textContent !== "running", null, { timeout: 240_000 });
    const state = await page.textContent("#state");
    const text = await page.textContent("#out");
    await page.close();
    const byFormat = new Map();
    for (const line of text.trim().split("\n")) {
      const [name, backend, ...numbers] = line.trim().split(/\s+/);
      byFormat.set(name, [...(byFormat.get(name) ?? []), { backend, numbers: numbers.join(" ") }]);
    }
    const agree = [...byFormat.values()].every((rows) => rows.length === 3 && rows.every((row) => row.numbers === rows[0].numbers));
    if (state !== "done" || byFormat.size !== 3 || !agree || text !== node)
      throw new Error(`example page: expected three formats on three backends, the numbers of Node; got ${state}\n${text}in Node\n${node}`);
    console.log(`example page: the numbers of Node, on three backends\n${text.trimEnd()}`);
  } finally {
    server.close();
  }
}

async function naga() {
  const home = join(root, "test/gpu/naga");
  const deno = join(home, "node_modules/@deno/linux-x64-glibc/deno");
  if (!existsSync(deno)) execFileSync("npm", ["ci", "--no-audit", "--no-fund"], { cwd: home, stdio: "inherit" });
  const dir = join(scratch, "naga");
  mkdirSync(dir);
  await bundleSuites(portable, dir, { REQUIRE_WEBGPU: "1", LOWBIT_ADAPTER: "llvmpipe", LOWBIT_GPU_PART: "5", LOWBIT_GPU_FULL: "shaders" });
  writeFileSync(
    join(dir, "main.js"),
    `const { run } = await import("./suite.js"); const result = await run(${JSON.stringify(portable)}); Deno.writeTextFileSync("result.json", JSON.stringify(result)); Deno.exit(0);`,
  );
  // without the variable wgpu falls back to an OpenGL driver in silence where Vulkan is missing
  const env = { ...driverEnv(need("lavapipe"), ""), DENO_WEBGPU_BACKEND: "vulkan", DENO_DIR: join(dir, "deno"), DENO_NO_UPDATE_CHECK: "1" };
  execFileSync(deno, ["run", "-A", "--no-remote", "--no-config", "main.js"], { cwd: dir, stdio: "inherit", env });
  judge("naga", JSON.parse(readFileSync(join(dir, "result.json"), "utf8")));
}

const steps = {
  lavapipe128: lavapipe(128, 0, "", subgroupSuites),
  lavapipe256: lavapipe(256, 1, "codecs,shaders"),
  // products compile for minutes at this width: full512
  lavapipe512: lavapipe(512, 0, "", ["test/gpu/runtime.test.ts"]),
  full512: lavapipe(512, 0, "", subgroupSuites),
  full: lavapipe(256, 0, "formats,pipelines", ["test/gpu/products.test.ts"]),
  // the browser step has the other suites on SwiftShader
  swiftshader: () => vitest(driverEnv(need("swiftshader"), "swiftshader", "3,4"), ["test/gpu/exit.node.test.ts", ...subgroupSuites]),
  browser,
  pages,
  naga,
};

const chosen = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(steps).filter((name) => !name.startsWith("full"));
const failed = [];
try {
  for (const name of chosen) {
    if (steps[name] === undefined) throw new Error(`test-gpu: expected steps of ${Object.keys(steps).join(", ")}; got ${name}.`);
    const begin = Date.now();
    console.log(`== ${name}`);
    try {
      await steps[name]();
    } catch (error) {
      failed.push(name);
      console.log(String(error instanceof Error ? error.message : error));
    }
    console.log(`== ${name}: ${failed.includes(name) ? "FAILED" : "passed"} in ${((Date.now() - begin) / 1000).toFixed(1)} s`);
  }
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
if (failed.length > 0) console.log(`test-gpu: failed: ${failed.join(", ")}`);
process.exit(failed.length > 0 ? 1 : 0);
