// The built command killed for real while it works and started again; the templates of examples/cluster run as a user
// runs them (GNU parallel where it is installed, xargs else; Slurm's commands stand-ins that run the jobs in turn).
// Needs `npm run build`.
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { bin, lowbit, recogniser, root, scratch } from "./run.ts";

const place = scratch();
const ENV = { ...process.env, LOWBIT: `${process.execPath} ${bin}` };
const options = ["--format", "int4_b32", "--algorithm", "mse", "--op-types", "MatMul"];
const size = (path: string): number => statSync(path, { throwIfNoEntry: false })?.size ?? 0;

let expected: Buffer | undefined;
async function whole(): Promise<Buffer> {
  if (expected !== undefined) return expected;
  const { code, stderr } = await lowbit(["quantize", recogniser, "-o", place.path("whole.onnx"), ...options]);
  expect(code, stderr).toBe(0);
  return (expected = readFileSync(place.path("whole.onnx")));
}

test("killed with SIGKILL, and again, it goes on with --resume to the same bytes", async () => {
  const output = place.path("resumed.onnx");
  const journal = `${output}.journal`;
  const args = ["quantize", recogniser, "-o", output, ...options, "--resume"];
  let before = 0;
  for (let kill = 0; kill < 2; kill++) {
    const { code } = await lowbit(args, { when: () => size(journal) > before + 300_000, signal: "SIGKILL" });
    if (code === 0) break;
    expect(size(journal)).toBeGreaterThan(before);
    expect(existsSync(output)).toBe(false);
    before = size(journal);
  }
  expect(before).toBeGreaterThan(0);
  if (!existsSync(output)) {
    const { code, stdout, stderr } = await lowbit(args);
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/note: resumed: \d+ weights were taken from the journal/);
  }
  expect(readFileSync(output).equals(await whole())).toBe(true);
  expect(existsSync(journal)).toBe(false);
});

test("examples/cluster/parallel.sh", async () => {
  const output = place.path("parallel.onnx");
  const script = join(root, "examples/cluster/parallel.sh");
  const run = (): ReturnType<typeof spawnSync> =>
    spawnSync(script, [recogniser, output, ...options], { env: { ...ENV, SHARDS: "2", JOBS: "2" }, encoding: "utf8" });
  const { status, stderr } = run();
  expect(status, String(stderr)).toBe(0);
  expect(readFileSync(output).equals(await whole())).toBe(true);
  // started again, finished shards are left, and the merge says that the file exists
  const again = run();
  expect(String(again.stdout)).toContain("the shard was whole already");
  expect(String(again.stderr)).toContain("E_EXISTS");
});

test("examples/cluster/slurm.sh submits an array and a merge behind it", async () => {
  const output = place.path("slurm.onnx");
  const tools = place.path("tools");
  mkdirSync(tools);
  const tool = (name: string, text: string): void => {
    writeFileSync(join(tools, name), `#!/usr/bin/env bash\nset -e\n${text}\n`);
    chmodSync(join(tools, name), 0o755);
  };
  // what sbatch does with these options: an array is run task by task, with Slurm's variables set
  tool(
    "sbatch",
    `args=("$@"); array=; i=0
while [[ \${args[i]} == --* ]]; do case \${args[i]} in --array=*) array=\${args[i]#--array=1-};; --export=*SHARDS=*) export SHARDS=\${args[i]##*SHARDS=};; esac; i=$((i+1)); done
rest=("\${args[@]:i}"); export SLURM_JOB_ID=7
if [ -n "$array" ]; then for n in $(seq "$array"); do SLURM_ARRAY_TASK_ID=$n "\${rest[@]}" >&2; done; else "\${rest[@]}" >&2; fi
echo 7`,
  );
  tool("srun", '"$@"');
  const { status, stdout, stderr } = spawnSync(join(root, "examples/cluster/slurm.sh"), [recogniser, output, ...options], {
    env: { ...ENV, SHARDS: "2", PATH: `${tools}:${process.env.PATH}` },
    encoding: "utf8",
  });
  expect(status, stderr).toBe(0);
  expect(stdout).toContain("array 7, merge 7");
  expect(readFileSync(output).equals(await whole())).toBe(true);
});

test("lowbit merge says which shard is missing", async () => {
  const output = place.path("missing.onnx");
  const { code } = await lowbit(["quantize", recogniser, "-o", output, ...options, "--shard", "1/2"]);
  expect(code).toBe(0);
  const merged = await lowbit(["merge", recogniser, output]);
  expect(merged.code).toBe(1);
  expect(merged.stderr).toContain("got none of missing.onnx.2-of-2.shard. Run it again (--shard 2/2 --resume)");
  expect((await lowbit(["quantize", recogniser, "-o", output, ...options, "--shard", "3/2"])).stderr).toContain("--shard: expected I/N");
});
