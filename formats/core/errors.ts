// LowbitError: the one error class of the package. Recognise it by `err.code` or `isLowbitError`, not by `instanceof`
// alone: an ESM and a CJS copy of the package may live in one process. TypeError and RangeError stay for plain argument
// mistakes.

/** What went wrong, as a stable name. docs/errors.md lists each with its remedy. */
export type LowbitErrorCode =
  | "E_SHAPE" // sizes that disagree
  | "E_FORMAT" // a format definition or packed value that is not sound
  | "E_FORMAT_UNKNOWN" // a format name that does not exist, or names several
  | "E_VALUE" // a value that the format or policy cannot take (NaN, out of range with overflow: "error")
  | "E_UNSUPPORTED" // a sound request that this format, backend or runtime does not offer
  | "E_CONTAINER" // a damaged or hostile packed container (safetensors)
  | "E_ONNX" // a damaged, hostile or unsupported ONNX model
  | "E_RUNTIME" // a runtime (onnxruntime) is missing or failed
  | "E_IO" // reading or writing a file failed
  | "E_EXISTS" // the output exists and must not be overwritten
  | "E_CALIBRATION" // calibration data missing, too small or not finite
  | "E_DEVICE" // a backend device is missing, lost or out of memory
  | "E_DISPOSED" // use of a disposed object
  | "E_ABORTED" // cancelled by a signal
  | "E_VERIFY" // a verification fell below its threshold
  | "E_CLI"; // a command line that cannot be understood

const BRAND = Symbol.for("lowbit.error");

/**
 * An error that says what was expected, what was found and what to do: `<what>: expected <X>, got <Y>. <remedy>`.
 * @example
 * try {
 *   format("float9");
 * } catch (error) {
 *   if (error instanceof LowbitError) console.error(error.code, error.message); // E_FORMAT_UNKNOWN and what to do
 * }
 */
export class LowbitError extends Error {
  readonly code: LowbitErrorCode;
  constructor(code: LowbitErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = "LowbitError";
    this.code = code;
    Object.defineProperty(this, BRAND, { value: true });
  }
}

/**
 * True for a LowbitError of any copy of the package (ESM, CJS, another version).
 * @example
 * await quantizeModel("missing.onnx", "out.onnx", { dtype: "q4" }).catch((error: unknown) => {
 *   if (!isLowbitError(error)) throw error;
 *   return error.code; // "E_IO"
 * })
 */
export function isLowbitError(error: unknown): error is LowbitError {
  return typeof error === "object" && error !== null && (error as Record<symbol, unknown>)[BRAND] === true;
}
