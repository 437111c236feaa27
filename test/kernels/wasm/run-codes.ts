// Runs the kernel of codes (kernels/wasm/nn/codes.ts) on arrays: they are copied into the backend's memory and out.
import { codes, codesConstants, CODES_ARGUMENTS, type CodesSpec } from "../../../kernels/wasm/nn/codes.ts";
import type { EngineMemory } from "../../../src/backends/wasm/memory.ts";

export interface CodesRun {
  readonly spec: Omit<CodesSpec, "shared">;
  readonly rows: number;
  /** A multiple of 4. */
  readonly width: number;
  readonly x: Int32Array;
  /** As many codes as x, or one row for all. */
  readonly b?: Int32Array | undefined;
  /** One for all, one a column or one a row. */
  readonly factors: Int32Array;
  readonly other?: number | undefined;
  readonly bias?: Int32Array | undefined;
  readonly addend?: BigInt64Array | undefined;
  readonly means?: Int32Array | undefined;
  readonly reciprocals?: Int32Array | undefined;
  readonly table?: Int32Array | Uint8Array | undefined;
  /** The code of the table's first entry. */
  readonly first?: number | undefined;
  readonly shift: number;
  readonly low: number;
  readonly high: number;
  readonly to: Int32Array | Uint8Array;
  readonly sums?: Int32Array | undefined;
}

const bytesOf = (data: ArrayBufferView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** y of `rows` rows of `width` codes, written to `to`. */
export function runCodes(memory: EngineMemory, run: CodesRun): void {
  const { rows, width, factors, table, shift, low, high, to, sums } = run;
  if (rows === 0 || width === 0) return;
  const isPerRow = !run.spec.columns && factors.length > 1;
  const up = 1n << 62n;
  const constants = BigInt64Array.of(...codesConstants(shift, low, high), up, up >> 8n);
  const inputs = {
    x: run.x,
    b: run.b,
    factors,
    other: run.other === undefined ? undefined : Int32Array.of(run.other),
    bias: run.bias,
    addend: run.addend,
    means: run.means,
    reciprocals: run.reciprocals,
    table,
    constants,
  };
  const address = new Map<string, number>();
  for (const [name, data] of Object.entries(inputs))
    if (data !== undefined) address.set(name, memory.scratch(`codes ${name}`, data.byteLength));
  const y = memory.scratch("codes y", to.byteLength);
  const totals = sums === undefined ? 0 : memory.scratch("codes sums", sums.byteLength);
  // views only now: any of these may have grown the memory
  for (const [name, data] of Object.entries(inputs))
    if (data !== undefined) new Uint8Array(memory.buffer, address.get(name), data.byteLength).set(bytesOf(data));
  const start = address.get("table") ?? 0;
  const words = new Map<string, number>([
    ...address,
    ["table", start - (table?.BYTES_PER_ELEMENT ?? 0) * (run.first ?? 0)],
    ["y", y],
    ["sums", totals],
    ["width", width],
    ["factorStride", isPerRow ? 4 : 0],
    ["xStride", 4 * width],
    ["bStride", run.b?.length === width && rows > 1 ? 0 : 4 * width],
    ["shift", shift],
  ]);
  const args = Int32Array.from(CODES_ARGUMENTS, (name) => words.get(name) ?? 0);
  memory.run(memory.kernel(codes, { ...run.spec, shared: memory.shared }), rows, args);
  bytesOf(to).set(new Uint8Array(memory.buffer, y, to.byteLength));
  sums?.set(new Int32Array(memory.buffer, totals, sums.length));
}
