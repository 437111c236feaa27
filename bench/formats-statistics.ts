// Errors of formats on synthetic data beside published figures: relative MSE (2^21 samples), INT versus FP crossovers,
// Monte Carlo ratios. Run: npx tsx bench/formats-statistics.ts [log2 of the samples]. Prints a mark where a figure is
// outside its tolerance.
import { crossover, crossovers, published, qsnr, qsnrTable, relativeError, sample } from "../test/helpers/statistics.ts";

const n = 2 ** Number(process.argv[2] ?? 21);
let outside = 0;
const mark = (ok: boolean) => {
  if (!ok) outside++;
  return ok ? "" : "  <-- outside";
};

console.log(`relative MSE, ${n} samples: measured (published), tolerance 1 % Gaussian, 2 % Laplace`);
const data = { gaussian: sample("gaussian", n, 1), laplace: sample("laplace", n, 2) };
for (const row of published) {
  const cells = (["gaussian", "laplace"] as const).map((d) => {
    const want = row[d];
    if (want === undefined && row.note === undefined) return "".padEnd(34);
    const got = relativeError(row.format, data[d], row.rule ? { scaleRule: row.rule } : {});
    if (want === undefined) return got.toExponential(3).padEnd(34);
    const off = got / want - 1;
    const ok = Math.abs(off) <= (d === "gaussian" ? 0.01 : 0.02);
    return `${got.toExponential(3)} (${want.toExponential(3)}) ${(100 * off).toFixed(2)} %${mark(ok || row.note !== undefined)}`.padEnd(34);
  });
  console.log(`${row.format.padEnd(18)} ${(row.rule ?? "").padEnd(8)} ${cells.join("  ")} ${row.note ?? ""}`);
}

console.log("\ncrest factor below which integers win, and QSNR there: computed (published), tolerance 0.01");
for (const c of crossovers) {
  const { kappa, db } = crossover(c);
  console.log(
    `${c.pair.padEnd(22)} ${kappa.toFixed(3)} (${c.kappa})  ${db.toFixed(2)} dB (${c.db})${mark(Math.abs(kappa - c.kappa) <= 0.01 && Math.abs(db - c.db) <= 0.02)}`,
  );
}

console.log("\nQSNR in dB, 30000 blocks: normal, Laplace, Laplace after Hadamard: measured (published), tolerance 0.3");
for (const row of qsnrTable) {
  const got = qsnr(row, 30000, 7);
  console.log(
    `${row.format.padEnd(12)} ${got.map((v, i) => `${v.toFixed(2)} (${row.db[i]})${mark(Math.abs(v - row.db[i]) <= 0.3)}`).join("   ")}`,
  );
}
console.log(outside === 0 ? "\nall figures inside their tolerances" : `\n${outside} figures outside their tolerances`);
process.exitCode = outside === 0 ? 0 : 1;
