// The part of WebGPU that the library uses, as structural types: declarations need no package of types, and a browser's
// GPUDevice, dawn's and a wrapper fit alike. Constants are those of the specification (https://www.w3.org/TR/webgpu/);
// Node has no globals for them.

/** What is used of a GPUBuffer. */
export interface GpuBuffer {
  readonly size: number;
  readonly usage: number;
  mapAsync(mode: number, offset?: number, size?: number): Promise<undefined | void>;
  getMappedRange(offset?: number, size?: number): ArrayBuffer;
  unmap(): undefined | void;
  destroy(): undefined | void;
}

export interface GpuBinding {
  readonly buffer: GpuBuffer;
  readonly offset?: number;
  readonly size?: number;
}

export interface GpuPass {
  setPipeline(pipeline: never): void;
  setBindGroup(index: number, group: never): void;
  dispatchWorkgroups(x: number, y?: number, z?: number): void;
  end(): void;
}

export interface GpuEncoder {
  beginComputePass(descriptor?: { readonly label?: string }): GpuPass;
  copyBufferToBuffer(source: never, sourceOffset: number, target: never, targetOffset: number, size: number): void;
  finish(): object;
}

export interface GpuMessage {
  readonly type: string;
  readonly message: string;
  readonly lineNum: number;
  readonly linePos: number;
}

export interface GpuShaderModule {
  getCompilationInfo(): Promise<{ readonly messages: readonly GpuMessage[] }>;
}

/** What is used of a GPUDevice: a browser's, or one of the package `webgpu`. */
export interface GpuDevice {
  readonly features: { has(name: string): boolean };
  readonly limits: {
    readonly maxStorageBufferBindingSize: number;
    readonly maxBufferSize: number;
    readonly maxComputeWorkgroupsPerDimension: number;
    readonly minStorageBufferOffsetAlignment: number;
    readonly minUniformBufferOffsetAlignment: number;
  };
  readonly lost: Promise<{ readonly reason: string; readonly message: string }>;
  readonly queue: {
    writeBuffer(buffer: never, bufferOffset: number, data: ArrayBuffer, dataOffset?: number, size?: number): void;
    submit(buffers: never): void;
  };
  createBuffer(descriptor: { readonly size: number; readonly usage: number; readonly label?: string }): GpuBuffer;
  createShaderModule(descriptor: { readonly code: string; readonly label?: string }): GpuShaderModule;
  createBindGroupLayout(descriptor: never): object;
  createPipelineLayout(descriptor: never): object;
  createComputePipelineAsync(descriptor: never): Promise<object>;
  createBindGroup(descriptor: never): object;
  createCommandEncoder(descriptor?: { readonly label?: string }): GpuEncoder;
  pushErrorScope(filter: "validation" | "out-of-memory" | "internal"): void;
  popErrorScope(): Promise<{ readonly message: string } | null>;
  destroy(): undefined | void;
}

/** What is used of a GPUAdapter: a browser's, or one of the package `webgpu`. */
export interface GpuAdapter {
  readonly features: { has(name: string): boolean };
  readonly limits: GpuDevice["limits"];
  requestDevice(descriptor?: never): Promise<GpuDevice>;
}

/** What is used of `navigator.gpu`. */
export interface GpuRoot {
  requestAdapter(options?: never): Promise<GpuAdapter | null>;
}

/** GPUBufferUsage, GPUMapMode and GPUShaderStage. */
export const MAP_READ = 1;
export const COPY_SRC = 4;
export const COPY_DST = 8;
export const UNIFORM = 64;
export const STORAGE = 128;
export const READ_MODE = 1;
export const COMPUTE_STAGE = 4;
