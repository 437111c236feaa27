// Bulk conversion float32 <-> float16, bfloat16, float8 against every JavaScript peer found on npm and naive loops.
// Contestants run interleaved, best and median of all rounds; ratios are peer time / lowbit time (above 1: lowbit is
// faster). Run: npx tsx bench/formats-bulk.ts [rounds]. Peers: npm install in bench/peers first (or PEERS=<folder with
// node_modules>); absent ones are named.
import { createRequire } from "node:module";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Float16Array as PonyFloat16Array, getFloat16, setFloat16 } from "@petamoriken/float16";
import { decodeArray, encodeArray, format, type NumberFormat } from "../formats/index.ts";

const N = 1 << 20;
const rounds = Number(process.argv[2] ?? 15);
const require = createRequire(join(process.env.PEERS ?? fileURLToPath(new URL("peers", import.meta.url)), "package.json"));
const missing = new Set<string>();

async function peer<T>(name: string, path: string): Promise<T | null> {
  try {
    const file = require.resolve(path);
    const module = (await import(file)) as { default?: T };
    return (typeof module.default === "function" || (module.default && Object.keys(module).length <= 2) ? module.default : module) as T;
  } catch {
    missing.add(name);
    return null;
  }
}

// Gaussian values as weights have them, and a second set over the whole range of float16 with subnormals.
let seed = 42;
const uniform = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
const gauss = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
const weights = Float32Array.from({ length: N }, () => 0.05 * gauss());
const wide = Float32Array.from({ length: N }, () => gauss() * 2 ** Math.round(36 * uniform() - 24));

type Contestant = readonly [name: string, run: () => void];

function race(title: string, contestants: readonly Contestant[]): void {
  const times = contestants.map(() => [] as number[]);
  for (let i = 0; i < 3; i++) for (const [, run] of contestants) run();
  for (let r = 0; r < rounds; r++)
    contestants.forEach(([, run], i) => {
      const t = performance.now();
      run();
      times[i].push(performance.now() - t);
    });
  const best = times.map((t) => Math.min(...t));
  const median = times.map((t) => [...t].sort((a, b) => a - b)[t.length >> 1]);
  console.log(`\n${title}`);
  contestants.forEach(([name], i) =>
    console.log(
      `  ${name.padEnd(44)} ${((best[i] * 1e6) / N).toFixed(2).padStart(8)} ns best ${((median[i] * 1e6) / N).toFixed(2).padStart(8)} ns median` +
        (i === 0 ? "" : `   x${(best[i] / best[0]).toFixed(2)} best, x${(median[i] / median[0]).toFixed(2)} median`),
    ),
  );
}

const float16 = format("float16") as NumberFormat;
const bfloat16 = format("bfloat16") as NumberFormat;
const u16 = new Uint16Array(N);
const u8 = new Uint8Array(N);
const out32 = new Float32Array(N);

const toF16 = await peer<(x: number) => unknown>("@stdlib/number-float32-base-to-float16", "@stdlib/number-float32-base-to-float16");
const fromF16 = await peer<(x: unknown) => number>("@stdlib/number-float16-base-to-float32", "@stdlib/number-float16-base-to-float32");
const arrow = await peer<{ float64ToUint16(x: number): number; uint16ToFloat64(h: number): number }>(
  "apache-arrow",
  "apache-arrow/util/math",
);
const three = await peer<{ DataUtils: { toHalfFloat(x: number): number; fromHalfFloat(h: number): number } }>("three", "three");
const fp16 = await peer<{ setFloat16(v: DataView, at: number, x: number): void; getFloat16(v: DataView, at: number): number }>(
  "fp16",
  "fp16",
);
const Native = (globalThis as { Float16Array?: new (b: ArrayBufferLike) => { set(v: ArrayLike<number>): void } & ArrayLike<number> })
  .Float16Array;

console.log(
  `node ${process.version}, V8 ${process.versions.v8}, ${cpus()[0].model}, load ${loadavg()
    .map((x) => x.toFixed(1))
    .join(" ")}, ${N} values, ${rounds} rounds`,
);

const view = new DataView(u16.buffer);
const pony = new PonyFloat16Array(u16.buffer as ArrayBuffer);
for (const [kind, data] of [
  ["weights", weights],
  ["wide range", wide],
] as const) {
  race(`float32 -> float16 (${kind})`, [
    ["lowbit encodeArray", () => void encodeArray(float16, data, u16)],
    ["@petamoriken/float16 Float16Array.set", () => pony.set(data)],
    [
      "@petamoriken/float16 setFloat16 loop",
      () => {
        for (let i = 0; i < N; i++) setFloat16(view, 2 * i, data[i], true);
      },
    ],
    ...(toF16
      ? ([
          [
            "@stdlib float32-base-to-float16 loop (value)",
            () => {
              for (let i = 0; i < N; i++) out32[i] = toF16(data[i]) as number;
            },
          ],
        ] as const)
      : []),
    ...(arrow
      ? ([
          [
            "apache-arrow float64ToUint16 loop (truncates)",
            () => {
              for (let i = 0; i < N; i++) u16[i] = arrow.float64ToUint16(data[i]);
            },
          ],
        ] as const)
      : []),
    ...(three
      ? ([
          [
            "three DataUtils.toHalfFloat loop (truncates)",
            () => {
              for (let i = 0; i < N; i++) u16[i] = three.DataUtils.toHalfFloat(data[i]);
            },
          ],
        ] as const)
      : []),
    ...(fp16
      ? ([
          [
            "fp16 setFloat16 loop",
            () => {
              for (let i = 0; i < N; i++) fp16.setFloat16(view, 2 * i, data[i]);
            },
          ],
        ] as const)
      : []),
    ...(Native ? ([["engine's Float16Array.set", () => new Native(u16.buffer).set(data)]] as const) : []),
  ]);
}

const halves = encodeArray(float16, weights, new Uint16Array(N)) as Uint16Array;
const halfView = new DataView(halves.buffer);
const ponyHalves = new PonyFloat16Array(halves.buffer as ArrayBuffer);
race("float16 -> float32 (weights)", [
  ["lowbit decodeArray", () => void decodeArray(float16, halves, out32)],
  ["@petamoriken/float16 Float32Array.set(Float16Array)", () => out32.set(ponyHalves)],
  [
    "@petamoriken/float16 getFloat16 loop",
    () => {
      for (let i = 0; i < N; i++) out32[i] = getFloat16(halfView, 2 * i, true);
    },
  ],
  ...(arrow
    ? ([
        [
          "apache-arrow uint16ToFloat64 loop",
          () => {
            for (let i = 0; i < N; i++) out32[i] = arrow.uint16ToFloat64(halves[i]);
          },
        ],
      ] as const)
    : []),
  ...(three
    ? ([
        [
          "three DataUtils.fromHalfFloat loop",
          () => {
            for (let i = 0; i < N; i++) out32[i] = three.DataUtils.fromHalfFloat(halves[i]);
          },
        ],
      ] as const)
    : []),
  ...(fp16
    ? ([
        [
          "fp16 getFloat16 loop",
          () => {
            for (let i = 0; i < N; i++) out32[i] = fp16.getFloat16(halfView, 2 * i);
          },
        ],
      ] as const)
    : []),
  ...(fromF16
    ? ([
        [
          "@stdlib float16-base-to-float32 loop (value)",
          () => {
            for (let i = 0; i < N; i++) out32[i] = fromF16(weights[i]);
          },
        ],
      ] as const)
    : []),
  ...(Native ? ([["engine's Float32Array.set(Float16Array)", () => out32.set(new Native(halves.buffer))]] as const) : []),
]);

// No package on npm was found for bfloat16 and float8: naive loops stand in.
const bits = new Uint32Array(weights.buffer);
const outBits = new Uint32Array(out32.buffer);
race("float32 -> bfloat16 (weights)", [
  ["lowbit encodeArray", () => void encodeArray(bfloat16, weights, u16)],
  ["naive loop: round half to even on the bits, no NaN", () => naiveUpperHalf(bits, u16)],
]);
const brains = encodeArray(bfloat16, weights, new Uint16Array(N)) as Uint16Array;
race("bfloat16 -> float32 (weights)", [
  ["lowbit decodeArray", () => void decodeArray(bfloat16, brains, out32)],
  ["naive loop: shift", () => naiveShift(brains, outBits)],
]);
for (const name of ["float8_e4m3fn", "float8_e5m2"]) {
  const f = format(name) as NumberFormat;
  const table = Float32Array.from(f.table!);
  race(`float32 -> ${name} (wide range)`, [
    ["lowbit encodeArray", () => void encodeArray(f, wide, u8, { overflow: "saturate" })],
    [
      "lowbit encode, one value at a time",
      () => {
        for (let i = 0; i < N; i++) u8[i] = f.encode(wide[i], { overflow: "saturate" });
      },
    ],
    [
      "naive loop: log2, divide, round",
      () => naiveFloat8(wide, u8, name.includes("e4m3") ? 3 : 2, name.includes("e4m3") ? 7 : 15, f.limits.max),
    ],
  ]);
  const codes = encodeArray(f, wide, new Uint8Array(N), { overflow: "saturate" }) as Uint8Array;
  race(`${name} -> float32`, [
    ["lowbit decodeArray", () => void decodeArray(f, codes, out32)],
    ["naive loop: table", () => naiveTable(table, codes, out32)],
  ]);
}

// The naive loops take their arrays as arguments, as a library has to: engines compile loops over constant arrays to
// faster code.
function naiveUpperHalf(bits: Uint32Array, out: Uint16Array): void {
  for (let i = 0; i < bits.length; i++) out[i] = (bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) >>> 16;
}

function naiveShift(codes: Uint16Array, bits: Uint32Array): void {
  for (let i = 0; i < codes.length; i++) bits[i] = codes[i] << 16;
}

function naiveTable(table: Float32Array, codes: Uint8Array, out: Float32Array): void {
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i]];
}

function naiveFloat8(x: Float32Array, out: Uint8Array, mantissaBits: number, bias: number, max: number): void {
  for (let i = 0; i < x.length; i++) {
    const a = Math.min(Math.abs(x[i]), max);
    const e = Math.max(Math.floor(Math.log2(a)), 1 - bias);
    const q = Math.round(a / 2 ** (e - mantissaBits));
    out[i] = (((e + bias - 1) << mantissaBits) + q) | (x[i] < 0 ? 0x80 : 0);
  }
}

if (missing.size > 0) console.log(`\nnot installed, not compared: ${[...missing].join(", ")} (npm install in bench/peers)`);
