// Figures of a bench as the benchmark page of the site shows them: docs/public/bench.json, a family at a time.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Machine } from "./measure.ts";

const path = fileURLToPath(new URL("../docs/public/bench.json", import.meta.url));

export interface Figures {
  readonly rows: readonly { readonly name: string; readonly bestMs: number; readonly medianMs: number; readonly gops?: number; readonly gbs?: number }[]; // prettier-ignore
  readonly ratios: Readonly<Record<string, number>>;
  readonly missing: readonly string[];
}

export interface Published extends Omit<Figures, "ratios"> {
  readonly family: string;
  readonly command: string;
  readonly date: string;
  readonly machine: Pick<Machine, "node" | "cpu" | "cores">;
  /** null: not measured. */
  readonly ratios: Readonly<Record<string, number | null>>;
}

const digits = (x: number): number => Number(x.toPrecision(4));

/** What is published of a run. */
export function published(names: readonly string[], seconds: string, { node, cpu, cores }: Machine, figures: Figures): Published {
  const [family] = names;
  return {
    family,
    command: `npm run bench -- ${names.join(" ")} --seconds ${seconds}`,
    date: new Date().toISOString().slice(0, 10),
    machine: { node, cpu, cores },
    rows: figures.rows.map(({ name, bestMs, medianMs, gops, gbs }) => ({
      name,
      bestMs: digits(bestMs),
      medianMs: digits(medianMs),
      ...(gops === undefined ? {} : { gops: digits(gops) }),
      ...(gbs === undefined ? {} : { gbs: digits(gbs) }),
    })),
    ratios: Object.fromEntries(
      Object.entries(figures.ratios).map(([name, ratio]) => [name, Number.isFinite(ratio) ? digits(ratio) : null]),
    ),
    missing: [...figures.missing],
  };
}

/** Puts it in the place of the family's last run. @returns what was done, in words */
export function publish(names: readonly string[], seconds: string, machine: Machine, figures: Figures): string {
  const all: Published[] = existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Published[]) : [];
  const one = published(names, seconds, machine, figures);
  const at = all.findIndex(({ family }) => family === one.family);
  if (at < 0) all.push(one);
  else all[at] = one;
  writeFileSync(path, `${JSON.stringify(all, null, 2)}\n`);
  return `${one.family}: ${Object.keys(one.ratios).length} ratios written to docs/public/bench.json`;
}
