// onnxruntime's own domain of operators.
import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema } from "../file/gen/onnx_pb.ts";
import type { OnnxModel } from "../file/model.ts";

export const MICROSOFT = "com.microsoft";

/** Its operators have to be imported. */
export function importMicrosoft(model: OnnxModel): void {
  const { opsetImport } = model.proto;
  if (!opsetImport.some(({ domain }) => domain === MICROSOFT))
    opsetImport.push(create(OperatorSetIdProtoSchema, { domain: MICROSOFT, version: 1n }));
}
