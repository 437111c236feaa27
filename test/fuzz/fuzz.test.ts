// A small share of the fuzzing (npm run fuzz has more), and every input that was once a finding.
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { check, inputOf } from "./fuzz.ts";
import { TARGETS } from "./targets/index.ts";

const corpus = fileURLToPath(new URL("../fixtures/fuzz", import.meta.url));
const RUNS = 2000;
const targets = Object.values(TARGETS);

describe.each(targets.map((target) => [target.name, target] as const))("%s", (name, target) => {
  const { runs = RUNS } = target;
  // Seconds of work; a machine with other things to do takes longer.
  it(`${runs} damaged inputs`, { timeout: 300_000 }, async () => {
    const findings: string[] = [];
    let errors = 0;
    for (let i = 0; i < runs && findings.length < 5; i++) {
      const { finding, error } = await check(target, inputOf(target, 1, i));
      if (error !== undefined) errors++;
      if (finding !== null) findings.push(`run ${i}: ${finding.kind}: ${finding.text.slice(0, 600)}`);
    }
    expect(findings).toEqual([]);
    // Inputs that are all refused, or all taken, would prove nothing.
    expect(errors).toBeGreaterThan(runs / 10);
    expect(errors).toBeLessThan(runs * 0.95);
  });
  const folder = `${corpus}/${name}`;
  it.each(existsSync(folder) ? readdirSync(folder) : [])("once a finding: %s", async (file) => {
    const { finding } = await check(target, new Uint8Array(readFileSync(`${folder}/${file}`)));
    expect(finding?.text).toBeUndefined();
  });
});
