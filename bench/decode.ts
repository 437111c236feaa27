// npm run bench -- decode [case ...] [--seconds S]: a 4-bit decoder of 158.6 M weights (decode-model.ts) on this
// runtime (built: npm run build) and on others, each in a process of its own, by turns; best of rounds. Ratios above 1:
// this runtime is faster. A case is short, so that it can be run while nothing else runs:
//   load          load to first token, peak memory: a new process a round
//   prefill-256, decode-256, decode-1024, decode-4096        one thread
//   web-256       onnxruntime-web, which takes seconds a round
//   int8-1024     caches of int8: this runtime's, onnxruntime-node's (static scales), llama.cpp's of float16
//   threads       two threads over one; threads-peers: those of the others
//   busy          the same while another process takes one core
//   step          a step over the sum of its products and attention
import { fork, spawn, type ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { writeDecoderGguf } from "./decode-gguf.ts";
import { decoderModel, QWEN_LIKE } from "./decode-model.ts";
import type { Row } from "./measure.ts";

/** What a process of decode-peer.mjs is told at its start. */
interface Start {
  readonly name: string;
  readonly threads?: number;
  readonly cache?: "int8";
  readonly profile?: boolean;
}

/** What is measured: milliseconds of a prompt, or of each of some steps after a context. */
interface Ask {
  readonly kind: "prefill" | "decode";
  readonly context: number;
  readonly steps: number;
}

interface Answer {
  readonly times: readonly number[];
  readonly ids: readonly number[];
  readonly profile?: Record<string, number>;
  readonly peakMB: number;
  readonly loadMs?: number;
  readonly firstMs?: number;
  readonly importMs?: number;
}

interface Case {
  readonly peers: readonly Start[];
  readonly asks: readonly Ask[];
  /** Another process takes a core. */
  readonly busy?: boolean;
  /** A new process for each peer and round; nothing is asked. */
  readonly fresh?: boolean;
}

const OWN: Start = { name: "lowbit" };
const NODE: Start = { name: "onnxruntime-node" };
const LLAMA: Start = { name: "node-llama-cpp" };
const prefill: Ask = { kind: "prefill", context: 256, steps: 0 };
const decoded = (context: number, steps = 24): Ask => ({ kind: "decode", context, steps });
const two = (start: Start): Start => ({ ...start, threads: 2 });

const CASES: Readonly<Record<string, Case>> = {
  load: { peers: [OWN, NODE, LLAMA], asks: [], fresh: true },
  "prefill-256": { peers: [OWN, NODE, LLAMA], asks: [prefill] },
  "decode-256": { peers: [OWN, NODE, LLAMA], asks: [decoded(256)] },
  "decode-1024": { peers: [OWN, NODE, LLAMA], asks: [decoded(1024)] },
  "decode-4096": { peers: [OWN, NODE, LLAMA], asks: [decoded(3900)] },
  "web-256": { peers: [OWN, { name: "onnxruntime-web" }], asks: [prefill, decoded(256, 4)] },
  "int8-1024": { peers: [{ ...OWN, cache: "int8" }, { ...NODE, cache: "int8" }, LLAMA], asks: [decoded(1024)] },
  threads: { peers: [OWN, two(OWN)], asks: [prefill, decoded(256)] },
  "threads-peers": { peers: [NODE, two(NODE), LLAMA, two(LLAMA)], asks: [prefill, decoded(256)] },
  busy: { peers: [OWN, two(OWN)], asks: [prefill, decoded(256)], busy: true },
  step: { peers: [{ ...OWN, profile: true }], asks: [decoded(256), decoded(1024)] },
};

const CACHE = fileURLToPath(new URL("../node_modules/.cache/lowbit-bench/", import.meta.url));

/** Files of the model, made once. */
export async function modelFiles(cache: "int8" | undefined): Promise<{ readonly onnx: string; readonly gguf: string }> {
  mkdirSync(CACHE, { recursive: true });
  const onnx = join(CACHE, `decoder${cache === undefined ? "" : `-${cache}`}.onnx`);
  if (!existsSync(onnx)) {
    writeFileSync(`${onnx}.part`, decoderModel({ ...QWEN_LIKE, ...(cache === undefined ? {} : { cache }) }));
    renameSync(`${onnx}.part`, onnx);
  }
  const gguf = join(CACHE, "decoder.gguf");
  if (!existsSync(gguf)) await writeDecoderGguf(gguf, new Uint8Array(readFileSync(onnx)), QWEN_LIKE);
  return { onnx, gguf };
}

const SCRIPT = fileURLToPath(new URL("decode-peer.mjs", import.meta.url));

const answer = (child: ChildProcess): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const done = (code: number | null): void => reject(new Error(`peer ended with ${code}`));
    child.once("exit", done);
    child.once("message", (message) => {
      child.off("exit", done);
      resolve(message as Answer);
    });
  });

const label = ({ name, threads = 1, cache }: Start): string =>
  `${name}${cache === undefined ? "" : ` ${cache}`}${threads === 1 ? "" : `, ${threads} threads`}`;

async function begin(start: Start): Promise<{ readonly child: ChildProcess; readonly first: Answer }> {
  // only onnxruntime needs a model of its own for caches of other types
  const files = await modelFiles(start.name === "onnxruntime-node" ? start.cache : undefined);
  const all = { threads: 1, capacity: 4096, sizes: QWEN_LIKE, ...start, ...files };
  const child = fork(SCRIPT, [JSON.stringify(all)], { execArgv: [] });
  return { child, first: await answer(child) };
}

/** All kernels of a step over its products and attention. */
function overhead(profile: Record<string, number>): number {
  let all = 0;
  let main = 0;
  for (const [operator, ms] of Object.entries(profile)) {
    all += ms;
    if (/MatMul|Joined|GroupQueryAttention/.test(operator)) main += ms;
  }
  return all / main;
}

interface Report {
  readonly rows: Row[];
  readonly ratios: Record<string, number>;
  readonly missing: string[];
}

const rowOf = (name: string, times: readonly number[]): Row => {
  const sorted = [...times].sort((a, b) => a - b);
  return { name, bestMs: sorted[0], medianMs: sorted[sorted.length >> 1], cpuMs: NaN, runs: sorted.length };
};

async function freshCase(name: string, { peers }: Case, seconds: number, into: Report): Promise<void> {
  const found = new Map<string, Answer[]>();
  const from = performance.now();
  do
    for (const start of peers) {
      const { child, first } = await begin(start);
      child.kill();
      found.set(label(start), [...(found.get(label(start)) ?? []), first]);
    }
  while (performance.now() - from < 1000 * seconds);
  for (const [peer, answers] of found) {
    into.rows.push(rowOf(`${name}: ${peer}, load`, answers.map(({ loadMs }) => loadMs!))); // prettier-ignore
    into.rows.push(rowOf(`${name}: ${peer}, load to first token`, answers.map(({ firstMs }) => firstMs!))); // prettier-ignore
    into.rows.push(rowOf(`${name}: ${peer}, import`, answers.map(({ importMs }) => importMs!))); // prettier-ignore
    into.ratios[`${name}: ${peer}, peak memory, MB`] = Math.min(...answers.map(({ peakMB }) => peakMB));
  }
}

async function askedCase(name: string, { peers, asks, busy }: Case, seconds: number, into: Report): Promise<void> {
  const children: ChildProcess[] = [];
  const other = busy === true ? spawn(process.execPath, ["-e", "for (;;);"], { stdio: "ignore" }) : null;
  const times = new Map<string, number[]>();
  const ids = new Map<string, readonly number[]>();
  const peaks = new Map<string, number>();
  const shares = new Map<string, number>();
  const key = (start: Start, { kind, context }: Ask): string => `${name}: ${label(start)}, ${kind} ${context}`;
  try {
    for (const start of peers) children.push((await begin(start)).child);
    const from = performance.now();
    do
      for (const ask of asks)
        for (const [i, start] of peers.entries()) {
          const at = key(start, ask);
          // one round of what takes seconds
          if (start.name === "onnxruntime-web" && times.has(at)) continue;
          children[i].send(ask);
          const got = await answer(children[i]);
          times.set(at, [...(times.get(at) ?? []), ...got.times]);
          ids.set(at, got.ids);
          peaks.set(label(start), got.peakMB);
          if (got.profile !== undefined) shares.set(at, Math.min(shares.get(at) ?? Infinity, overhead(got.profile)));
        }
    while (performance.now() - from < 1000 * seconds);
  } finally {
    for (const child of children) child.kill();
    other?.kill("SIGKILL");
  }
  for (const [at, list] of times) into.rows.push(rowOf(at, list));
  const [own, ...others] = peers;
  for (const ask of asks) {
    const row = (start: Start): Row => rowOf("", times.get(key(start, ask))!);
    for (const start of others) {
      const ratio = `${name}: ${ask.kind} ${ask.context}, ${label(own)} over ${label(start)}`;
      into.ratios[`${ratio}`] = row(start).bestMs / row(own).bestMs;
      if (ask.kind === "decode") into.ratios[`${ratio}, medians`] = row(start).medianMs / row(own).medianMs;
      const [mine, theirs] = [ids.get(key(own, ask))!, ids.get(key(start, ask))!];
      const count = Math.min(mine.length, theirs.length);
      into.ratios[`${ratio}: greedy tokens equal`] = mine.filter((id, i) => i < count && id === theirs[i]).length / count;
    }
  }
  for (const [at, share] of shares) into.ratios[`${at}: a step over its products and attention`] = share;
  for (const [peer, peak] of peaks) into.ratios[`${name}: ${peer}, peak memory, MB`] = peak;
}

export async function decode({ seconds, cases }: { seconds: number; cases: readonly string[] }): Promise<Report> {
  const into: Report = { rows: [], ratios: {}, missing: [] };
  for (const name of cases.length > 0 ? cases : Object.keys(CASES)) {
    if (!Object.hasOwn(CASES, name)) throw new RangeError(`decode: expected some of ${Object.keys(CASES).join(", ")}, got ${name}.`);
    const one = CASES[name];
    await (one.fresh === true ? freshCase : askedCase)(name, one, seconds, into);
  }
  return into;
}
