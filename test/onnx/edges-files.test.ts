// Edges of what files hold and where they lie: places of external data, folders of models with options that not every
// dtype has, element types by opset, shapes that do not fit.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { resolveShape } from "../../src/onnx/graph/views.ts";
import { integerOnly, quantizeFolder, readModel, readModelBytes, type QuantizeBytesOptions } from "../../src/onnx/index.ts";
import { readFloats } from "../../src/onnx/file/values.ts";
import { encode, external, graph, matmulModel, model, node, raw, T, value, weights } from "./build.ts";
import { keepTexts, quantizeModelBytes } from "./kept.ts";
import { reportText } from "./printed.ts";
import { SPECIMENS } from "./specimens.ts";

const folder = mkdtempSync(join(tmpdir(), "lowbit-edges-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("places of external data", () => {
  const data = weights(2048);
  const inside = join(folder, "inside");
  mkdirSync(join(inside, "sub"), { recursive: true });
  for (const name of ["w.bin", "sub/w.bin", "..w", "a..b"]) writeFileSync(join(inside, name), data);
  writeFileSync(join(folder, "outside.bin"), data);
  symlinkSync(join(folder, "outside.bin"), join(inside, "link.bin"));
  const read = (location: string): string => {
    const path = join(inside, "m.onnx");
    writeFileSync(path, encode(matmulModel(external("w", [64, 32], { location, length: "8192" }), 64, 32)));
    try {
      using opened = readModel(path);
      return `${readFloats(opened, opened.proto.graph!.initializer[0]).length}`;
    } catch (error) {
      return (error as Error).message.replace(/^.*, got/s, "got").replaceAll(folder, "");
    }
  };
  test.each(["w.bin", "./w.bin", "sub/w.bin", "sub/../w.bin", "sub//w.bin", ".//sub/./w.bin", "..w", "a..b", "sub\\..\\w.bin"])(
    "%s is read",
    (location) => {
      // prettier-ignore
      if (location.includes("\\")) expect(read(location)).not.toContain("leaves it");
    else expect(read(location)).toBe("2048");
    },
  );
  test.each([
    ["../outside.bin", "which leaves it"],
    ["sub/../../outside.bin", "which leaves it"],
    ["./../outside.bin", "which leaves it"],
    ["..\\outside.bin", "which leaves it"],
    ["sub/../../inside/w.bin", "which leaves it"],
    [".", "which is the folder itself"],
    ["./", "which is the folder itself"],
    ["sub/..", "which is the folder itself"],
    ["sub\\..", "which is the folder itself"],
    ["/etc/passwd", "which is absolute"],
    ["C:\\w.bin", "which is absolute"],
    ["c:w.bin", "which is absolute"],
    ["\\\\server\\w.bin", "which is absolute"],
    ["w.bin\0", "which is absolute"],
  ])("%j is refused by its words: %s", (location, how) => expect(read(location)).toContain(how));
  test("a link that leads elsewhere is refused, a file that is not there is named", () => {
    expect(read("link.bin")).toMatch(/link\.bin|outside/);
    expect(read("none.bin")).toContain("no readable file");
  });
});

describe("folders", () => {
  const models = join(folder, "models", "onnx");
  mkdirSync(models, { recursive: true });
  for (const [name, of] of [["a", "product"], ["b", "convolution"], ["c", "table"]]) writeFileSync(join(models, `${name}.onnx`), encode(SPECIMENS.get(of)!())); // prettier-ignore
  const made = async (options: Omit<Parameters<typeof quantizeFolder>[1], "output">, config: unknown) => {
    const output = mkdtempSync(join(folder, "out-"));
    const root = join(folder, "models");
    if (config === undefined) rmSync(join(root, "config.json"), { force: true });
    else writeFileSync(join(root, "config.json"), JSON.stringify(config));
    const seen: string[] = [];
    const report = await quantizeFolder(models, { ...options, output: join(output, "onnx"), onFile: ({ index, count, input, output: to }) => seen.push(`${index} of ${count}: ${input.slice(models.length)} ${to.slice(output.length)}`) }); // prettier-ignore
    const written = report.config === null ? "none" : readFileSync(report.config, "utf8");
    return [
      ...seen,
      readdirSync(join(output, "onnx")).sort().join(" "),
      report.config?.slice(output.length) ?? "no config",
      written,
      ...report.files.map(({ input, dtype, report: own, reason }) => `${input.slice(models.length)} ${dtype}: ${own === null ? "none" : reportText(own)} ${reason ?? ""}`), // prettier-ignore
    ].join("\n");
  };
  const cases: [string, Omit<Parameters<typeof quantizeFolder>[1], "output">, unknown][] = [
    ["options that some dtypes have", { dtypes: ["q4", "q8", "bnb4", "fp16"], blockSize: 64, symmetric: false, perChannel: true, reduceRange: true, accuracyLevel: 4 }, undefined], // prettier-ignore
    ["data files", { dtypes: ["q4", "q8"], externalData: true }, { model_type: "x" }],
    ["config with a switch for all", { dtypes: ["q4"] }, { "transformers.js_config": { use_external_data_format: true, other: 1 } }],
    ["config with counts", { dtypes: ["q4"], externalData: true }, { "transformers.js_config": { use_external_data_format: { a: 1, "b_q4.onnx": 3, z: 2 } } }], // prettier-ignore
    ["config that says it already", { dtypes: ["q4"], externalData: true }, { "transformers.js_config": { use_external_data_format: { a: 1, b: 1, c: 1 } } }], // prettier-ignore
    ["config with a number", { dtypes: ["q8"] }, { "transformers.js_config": { use_external_data_format: 2 } }],
    ["config without data", { dtypes: ["q8"] }, { model_type: "x" }],
    ["operators by name", { dtypes: ["q4", "q8"], opTypes: ["MatMul"], allowUnchanged: true }, undefined],
    ["twice the same", { dtypes: ["q4", "q4"], keepOps: ["MatMul"] }, undefined],
  ];
  test.each(cases)("%s", async (_, options, config) => {
    let text: string;
    try {
      text = await made(options, config);
    } catch (error) {
      text = (error as Error).message.replaceAll(folder, "");
    }
    keepTexts(text.replaceAll(folder, "").replace(/"outputs":\[.*?\]/g, ""));
    expect(text).not.toBe("");
  });
});

describe("element types by opset", () => {
  const FORMATS = ["float8_e4m3fn_row", "float8_e5m2", "float8_e4m3fnuz_row", "bfloat16", "float16_row", "float16", "int8_row", "uint8_b32_zp", "int4_b32", "uint4", "int2_b32", "int16_row", "float4_e2m1fn_b32"]; // prettier-ignore
  test.each(FORMATS)("%s", async (name) => {
    for (const target of ["stored", "qdq", "matmulnbits"] as const)
      for (const opset of [6, 7, 9, 10, 12, 13, 18, 19, 20, 21, 24, 25]) {
        const proto = SPECIMENS.get("product")!();
        proto.opsetImport[0].version = BigInt(opset);
        try {
          await quantizeModelBytes(encode(proto), { format: name, target, allowUnchanged: true } as QuantizeBytesOptions);
        } catch (error) {
          keepTexts((error as Error).message);
        }
      }
  });
});

test("shapes that do not fit are none", () => {
  const cases: [number[], number[], boolean, number[] | null][] = [
    [[4, 4], [0, -1, 0], false, null], // nothing to take over
    [[4, 4], [0, 0, 0], false, null],
    [[4, 4], [0, 0, -1], false, [4, 4, 1]],
    [[4, 4], [-1, -1], false, null],
    [[4, 4], [-2, -8], false, null],
    [[4, 4], [-1], true, [16]],
    [[4, 4], [3, -1], false, null],
    [[], [], false, []],
    [[], [-1], false, [1]],
    [[0, 4], [0, -1], true, [0, 0]],
  ];
  for (const [shape, wanted, allowZero, want] of cases) expect([shape, wanted, resolveShape(shape, wanted, allowZero)]).toEqual([shape, wanted, want]); // prettier-ignore
});

test("headroom is from 1 to 100", async () => {
  const bytes = encode(model(graph({ input: [value("x", T.FLOAT, [2, 8])], output: [value("y", T.FLOAT, [2, 4])], initializer: [raw("w", [8, 4], weights(32))], node: [node("MatMul", ["x", "w"], ["y"], {}, "mm")] }))); // prettier-ignore
  const calibration = [{ x: { type: "float32", dims: [2, 8], data: weights(16) } }];
  for (const headroom of [1, 100]) expect(readModelBytes((await integerOnly(bytes, { calibration, headroom })).bytes).proto.functions.length).toBeGreaterThan(0); // prettier-ignore
  for (const headroom of [0.999, 100.5, NaN, "2" as never]) await expect(integerOnly(bytes, { calibration, headroom })).rejects.toThrow("headroom: expected a number from 1 to 100"); // prettier-ignore
});
