// Kernels of our own in tfjs's registry, for every backend there is, and the memory of those backends that keep tensors
// where we can read and write them.
import * as tf from "@tensorflow/tfjs-core";

/** Reads tensors and makes new ones without a copy. */
export interface InPlace {
  /** Until the next tensor is made. */
  read(x: tf.TensorInfo): Float32Array;
  make(shape: number[], write: (out: Float32Array) => void): tf.TensorInfo;
}

/** What of BackendWasm is used: `makeOutput` and the view of a tensor on its heap are public there. */
interface WasmLike {
  makeOutput(shape: number[], dtype: "float32"): tf.TensorInfo;
  typedArrayFromHeap(info: tf.TensorInfo): Float32Array;
}
/** What of MathBackendCPU is used. */
interface CpuLike {
  readonly data: { get(id: object): { readonly values: ArrayLike<number> } };
  makeTensorInfo(shape: number[], dtype: "float32", values: Float32Array): tf.TensorInfo;
}

const isWasm = (b: object): b is WasmLike => "typedArrayFromHeap" in b && "makeOutput" in b;
const isCpu = (b: object): b is CpuLike => "makeTensorInfo" in b && "data" in b && tf.getBackend() === "cpu";

/** The memory of a backend; null for those whose tensors lie on a device. */
export function inPlace(backend: object): InPlace | null {
  if (isWasm(backend))
    return {
      read: (x) => backend.typedArrayFromHeap(x),
      make(shape, write) {
        const info = backend.makeOutput(shape, "float32");
        write(backend.typedArrayFromHeap(info));
        return info;
      },
    };
  if (isCpu(backend))
    return {
      read(x) {
        const { values } = backend.data.get(x.dataId);
        return values instanceof Float32Array ? values : Float32Array.from(values);
      },
      make(shape, write) {
        const out = new Float32Array(shape.reduce((n, d) => n * d, 1));
        write(out);
        return backend.makeTensorInfo(shape, "float32", out);
      },
    };
  return null;
}

export interface Kernel {
  readonly forward: tf.KernelFunc;
  readonly gradient: tf.GradConfig["gradFunc"];
  readonly save?: readonly string[];
}

/** Registers a kernel for the backend in use, when it is first needed: importing this package changes nothing. */
export function registered(kernelName: string, { forward, gradient, save = [] }: Kernel): () => void {
  return () => {
    const backendName = tf.getBackend();
    if (tf.getKernel(kernelName, backendName) === undefined) tf.registerKernel({ kernelName, backendName, kernelFunc: forward });
    if (tf.getGradient(kernelName) === undefined) tf.registerGradient({ kernelName, inputsToSave: [...save], gradFunc: gradient });
  };
}
