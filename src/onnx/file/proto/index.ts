// Messages of ONNX: made, copied, compared, read and written.
export { enumDesc, fileDesc, messageDesc } from "./descriptor.ts";
export type { Field, GenEnum, GenFile, GenMessage, Message, MessageSchema } from "./descriptor.ts";
export { clone, create, equals } from "./message.ts";
export { fromBinary } from "./read.ts";
export { toBinary } from "./write.ts";
