// Files that are often given for a model and are none: recognised by their first bytes, so that the message can say
// what the file is. Magic numbers: the formats' own specifications (git-lfs pointer v1, RFC 1952, APPNOTE 4.3.7, GGUF,
// FlatBuffers file identifiers, HDF5 II.A).

/** What a file is, and what to do instead. */
export interface ForeignKind {
  readonly what: string;
  readonly remedy: string;
}

/** Bytes of the head of a file that `foreignKind` looks at. */
export const HEAD_BYTES = 512;

const CONVERT = "Export the model to ONNX with the tool that made it";
const UNPACK = "Unpack it first, or download the model itself";

/** Magic bytes (latin1) at an offset. Order matters only where one is the beginning of another. */
const MAGIC: readonly (readonly [offset: number, magic: string, what: string, remedy: string])[] = [
  [0, "version https://git-lfs.github.com/", "a Git LFS pointer", "Fetch the file itself: git lfs pull, or download it from the site"],
  [0, "version https://hawser.github.com/", "a Git LFS pointer", "Fetch the file itself: git lfs pull, or download it from the site"],
  [0, "\x1f\x8b", "a gzip file", UNPACK],
  [
    0,
    "PK\x03\x04",
    "a zip archive (a PyTorch checkpoint, an .npz, a Keras model or a download)",
    `Unpack it, or for a checkpoint: ${CONVERT}`,
  ],
  [0, "PK\x05\x06", "an empty zip archive", UNPACK],
  [0, "\x28\xb5\x2f\xfd", "a zstd file", UNPACK],
  [0, "\xfd7zXZ\0", "an xz file", UNPACK],
  [0, "BZh", "a bzip2 file", UNPACK],
  [0, "7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK],
  [257, "ustar", "a tar archive", UNPACK],
  [4, "ORTM", "a model in ORT format", "Quantize the ONNX model that it was made from, then convert the result"],
  [4, "TFL3", "a TFLite model", "Convert it to ONNX (tf2onnx --tflite) first"],
  [0, "GGUF", "a GGUF file", "Export the model that it was made from to ONNX"],
  [0, "GGML", "a ggml file", "Export the model that it was made from to ONNX"],
  [0, "\x89HDF\r\n", "an HDF5 file (a Keras model)", "Convert it to ONNX (tf2onnx) first"],
  [0, "\x93NUMPY", "a NumPy array", "Pass the model; arrays are inputs of lowbit verify"],
  [0, "%PDF", "a PDF", "Download the model itself"],
  [0, "\x89PNG", "a PNG image", "Download the model itself"],
  [0, "\x7fELF", "a program (ELF)", "Pass the model"],
  [0, "\x80\x02", "a Python pickle (an old PyTorch checkpoint)", CONVERT],
  [0, "\x80\x03", "a Python pickle", CONVERT],
  [0, "\x80\x04", "a Python pickle", CONVERT],
];

/** Text formats, by how the text begins (white space and a byte order mark aside). */
const TEXT: readonly (readonly [pattern: RegExp, what: string, remedy: string])[] = [
  [
    /^<(!doctype html|html|head|body)/i,
    "an HTML page",
    "The download gave a page instead of the file: check the address and the access rights",
  ],
  [/^<\?xml|^<net/i, "an XML file (an OpenVINO model, or an error of a server)", "Download the model itself, or export it to ONNX"],
  [/^<\s*ir_version/, "a model in ONNX's text form", "Parse it with onnx.parser and save it as a file"],
  [/^[{[]/, "a JSON file", "It may be the error of a server, or a configuration: download the model itself"],
];

/** The header of safetensors: its length as 64 bits, then JSON. */
function isSafetensors(head: Uint8Array): boolean {
  return head[8] === 0x7b && head[5] === 0 && head[6] === 0 && head[7] === 0 && (head[9] === 0x22 || head[9] === 0x7d);
}

/** Says what a file is from its first bytes, or undefined where they are of no known kind. */
export function foreignKind(head: Uint8Array): ForeignKind | undefined {
  for (const [offset, magic, what, remedy] of MAGIC) {
    if (head.length >= offset + magic.length && [...magic].every((c, i) => head[offset + i] === c.charCodeAt(0))) return { what, remedy };
  }
  if (isSafetensors(head)) return { what: "a safetensors file", remedy: CONVERT };
  // A byte order mark is dropped by the decoder.
  const text = new TextDecoder().decode(new Uint8Array(head)).trimStart();
  for (const [pattern, what, remedy] of TEXT) if (pattern.test(text)) return { what, remedy };
  if (head.length >= 16 && head.every((byte) => (byte >= 32 && byte < 127) || byte === 9 || byte === 10 || byte === 13)) {
    return { what: "text", remedy: "Pass the model" };
  }
  return undefined;
}
