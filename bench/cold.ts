// A kernel that nothing has built before: from its spec to full speed. Generated, compiled, instantiated, then called
// on 16 rows x 4096 k at a time until a call takes at most 1.2 times the best one. The first kernel of a process also
// compiles the generator's own JavaScript; those after it are what a second format costs. Last, what prepareMatmul and
// first products take in processes of their own (cold-prepare.ts). `node bench/run.ts cold` under Node 24 is nearest to
// the package as installed: tsx adds code that names every function.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { gemmModule } from "../kernels/wasm/dot/gemm.ts";
import { activationRecord, weightRecord, type GemmSpec } from "../kernels/wasm/dot/gemmspec.ts";
import { engine } from "../kernels/wasm/engine/engine.ts";
import { wasmFeatures } from "../kernels/wasm/engine/features.ts";
import type { Row } from "./measure.ts";

/** Long enough that the call from JavaScript, which V8 makes faster later on, does not count. */
const K = 4096;

interface Times {
  /** Spec to callable functions. */
  readonly build: number;
  /** Spec to the first call at full speed. */
  readonly total: number;
  /** One call at full speed. */
  readonly steady: number;
}

function coldKernel(spec: GemmSpec): Times {
  const memory = new engine.Memory({ initial: 64, maximum: 65536 });
  const groups = K / spec.group;
  const a = 65536;
  const w = a + Math.ceil((activationRecord(spec).bytes * groups) / 65536) * 65536;
  const c = w + Math.ceil((weightRecord(spec).bytes * groups) / 65536) * 65536;
  const begin = performance.now();
  const { tile } = new engine.Instance(new engine.Module(gemmModule(spec)), { m: { m: memory } }).exports;
  const build = performance.now() - begin;
  const ends: number[] = [];
  const times: number[] = [];
  let now = performance.now();
  // 60 ms of calls: the optimising compiler works beside them
  while (now < begin + build + 60) {
    // one row: all groups in one turn of one strand
    if (spec.mr === 1) tile(a, w, c, 256, groups, 1, 0, groups, 1, 0, 0);
    else tile(a, w, c, 256, groups, 1, 0, 0, 0, 0, 0);
    const end = performance.now();
    times.push(end - now);
    ends.push(end);
    now = end;
  }
  const steady = times.slice().sort((p, q) => p - q)[times.length >> 2];
  // full speed is reached by the first of ten calls in a row of which most are fast: a neighbour may slow one
  const first = times.findIndex((_, i) => times.slice(i, i + 10).filter((t) => t <= 1.2 * steady).length >= 8 && times[i] <= 1.2 * steady);
  return { build, total: ends[first] - times[first] - begin, steady };
}

export function cold(): Promise<{ rows: Row[]; ratios: Record<string, number>; missing: string[] }> {
  const features = wasmFeatures();
  const style = features.dot === "none" ? "simd" : features.dot === "i7" ? "madd16" : "dot";
  const spec = (bits: number, group: number, mr: number): GemmSpec => ({
    style: bits > 7 && features.dot !== "u8" ? "simd" : style,
    relaxed: features.relaxed,
    activationBits: 8,
    bits,
    planes: [{ table: null, max: 2 ** bits - 1 }],
    radix: 256,
    group,
    zeroPoint: false,
    doubled: false,
    add: false,
    mr,
    nv: mr === 1 ? 4 : 2,
    panel: false,
    shared: false,
  });
  const ratios: Record<string, number> = {};
  const report = (name: string, all: Times[]): void => {
    const median = (of: (t: Times) => number): number => all.map(of).sort((p, q) => p - q)[all.length >> 1];
    ratios[`${name}: spec to functions, ms`] = median((t) => t.build);
    ratios[`${name}: spec to full speed, ms`] = median((t) => t.total);
  };
  report("first kernel of the process, gemv", [coldKernel(spec(4, 32, 1))]);
  const others = [4, 2, 3, 6, 5].flatMap((bits) => [64, 128, 32].map((group) => ({ bits, group })));
  report(
    `later kernels, gemv, median of ${others.length}`,
    others.map(({ bits, group }) => coldKernel({ ...spec(bits, group, 1), add: true })),
  );
  report(
    `later kernels, gemm 4x8, median of ${others.length}`,
    others.map(({ bits, group }) => coldKernel({ ...spec(bits, group, 4), add: true })),
  );
  const file = fileURLToPath(new URL("./cold-prepare.ts", import.meta.url));
  const processes = Array.from({ length: 5 }, () => {
    const out = execFileSync(process.execPath, [...process.execArgv, file], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    return JSON.parse(out) as Record<string, number>;
  });
  for (const name of Object.keys(processes[0])) ratios[`256 x 1024: ${name}`] = processes.map((p) => p[name]).sort((a, b) => a - b)[2];
  return Promise.resolve({ rows: [], ratios, missing: [] });
}
