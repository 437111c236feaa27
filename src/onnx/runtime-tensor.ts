// Tensors as onnxruntime's two packages take them.

/** What makes tensors of onnxruntime; the native one writes its version down. */
export interface TensorMaker {
  readonly Tensor: new (type: string, data: unknown, dims: readonly number[]) => unknown;
  readonly env?: { readonly versions?: { readonly node?: string } };
}

/** Whether a runtime's module is onnxruntime-node: onnxruntime-web writes down another version. */
export const isNative = ({ env }: Pick<TensorMaker, "env">): boolean => env?.versions?.node !== undefined;

/**
 * A tensor for a run. float16 goes to onnxruntime-node as codes: where engines have a Float16Array its Tensor makes one
 * of them, which its binding reads as empty.
 */
export function runtimeTensor(runtime: TensorMaker, type: string, data: unknown, dims: readonly number[]): unknown {
  if (type !== "float16" || !isNative(runtime) || !ArrayBuffer.isView(data)) return new runtime.Tensor(type, data, dims);
  const codes = new Uint16Array(data.buffer, data.byteOffset, data.byteLength / 2);
  return Object.assign(new runtime.Tensor("uint16", codes, dims) as object, { type });
}
