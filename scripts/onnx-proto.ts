// What protoc-gen-es made of onnx.proto, for src/onnx/file/gen: the types without their comments, the descriptor as a
// table of text (src/onnx/file/descriptors.ts says how it reads), which is a fifth of it and needs no protobuf to be read.
// Arguments: the generated file, what to write, and where the descriptor goes that tests compare with.
import { readFileSync, writeFileSync } from "node:fs";
import { ScalarType, type DescEnum, type DescField, type DescMessage } from "@bufbuild/protobuf";
import { fileDesc } from "@bufbuild/protobuf/codegenv2";

const LETTERS = new Map<ScalarType, string>([
  [ScalarType.DOUBLE, "d"],
  [ScalarType.FLOAT, "f"],
  [ScalarType.INT64, "l"],
  [ScalarType.UINT64, "u"],
  [ScalarType.INT32, "i"],
  [ScalarType.STRING, "s"],
  [ScalarType.BYTES, "b"],
]);

const [from, to, oracle] = process.argv.slice(2);
const text = readFileSync(from, "utf8");
const [call, base64] = /fileDesc\("([^"]+)"\)/.exec(text)!;
const file = fileDesc(base64);
const short = (typeName: string): string => typeName.slice(file.proto.package.length + 1);

function fieldText(field: DescField): string {
  const list = field.fieldKind === "list";
  const type = field.message ?? field.enum;
  const letter = type === undefined ? LETTERS.get(field.scalar!) : `:${short(type.typeName)}`;
  if (letter === undefined || field.fieldKind === "map" || ("delimitedEncoding" in field && field.delimitedEncoding))
    throw new Error(`${String(field)}: expected a kind of field that src/onnx/file/descriptors.ts has.`);
  const marks = `${list ? "*" : ""}${field.fieldKind === "list" && field.packed ? "+" : ""}`;
  return `${field.localName}=${field.number}${marks}${letter}${field.oneof === undefined ? "" : `|${field.oneof.localName}`}`;
}

const lines: string[] = [];
const enumLine = (of: DescEnum): void => void lines.push([short(of.typeName), ...of.values.map((value) => value.number)].join(" "));
const messageLine = (of: DescMessage): void => {
  lines.push([short(of.typeName), ...of.fields.map(fieldText)].join(" "));
  of.nestedMessages.forEach(messageLine);
  of.nestedEnums.forEach(enumLine);
};
file.messages.forEach(messageLine);
file.enums.forEach(enumLine);

const places = new Map<string, string>();
const place = (of: DescMessage, at: string): void => {
  places.set(`messageDesc(file_onnx, ${at})`, `messageDesc(file_onnx, "${short(of.typeName)}")`);
  of.nestedMessages.forEach((nested, i) => place(nested, `${at}, ${i}`));
  of.nestedEnums.forEach((nested, i) => places.set(`enumDesc(file_onnx, ${at}, ${i})`, `enumDesc(file_onnx, "${short(nested.typeName)}")`));
};
file.messages.forEach((of, i) => place(of, String(i)));
file.enums.forEach((of, i) => places.set(`enumDesc(file_onnx, ${i})`, `enumDesc(file_onnx, "${short(of.typeName)}")`));

let out = text.replace(call, () => `fileDesc("${file.proto.package}", \`${lines.join("\n")}\`)`);
out = out.replace(/import \{ (.*) \} from "@bufbuild\/protobuf\/codegenv2"/, 'import { $1 } from "../descriptors.ts"');
// declarations are part of the package: what fields mean, onnx.proto says
out = out
  .replace(/ *\/\*\*\n(?: *\*.*\n)*? *\*\/\n/g, "")
  .replace(/([;,])\n\n(?= {2})/g, "$1\n")
  .replace(/\n{3,}/g, "\n\n");
for (const [old, now] of places) out = out.replace(old, now);
writeFileSync(to, out);
writeFileSync(
  oracle,
  `// onnx.proto as protoc-gen-es serializes it (scripts/generate-onnx-proto.sh); read by protobuf-es in tests.\n// prettier-ignore\nexport const ONNX_PROTO = "${base64}";\n`,
);
