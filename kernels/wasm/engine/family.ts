// Families of kernels: a family prints modules from specs. A kernel is compiled once per process and cached by its
// whole spec. Only families made by `family` are compiled, and a test holds that kernels/registry.ts lists every one of
// them: no kernel can run that the registry does not know.
import { engine, type Kernel } from "./engine.ts";

export interface Family<Spec extends object> {
  readonly name: string;
  build(spec: Spec): Uint8Array<ArrayBuffer>;
  /** What the code depends on, as text. */
  key(spec: Spec): string;
}

const made = new Map<string, Family<never>>();

/** Makes a family. `key`: for specs that are not plain data. @throws TypeError where the name is taken */
export function family<Spec extends object>(
  name: string,
  build: (spec: Spec) => Uint8Array<ArrayBuffer>,
  key: (spec: Spec) => string = (spec) => JSON.stringify(spec),
): Family<Spec> {
  if (made.has(name)) throw new TypeError(`family: expected a name of its own, got ${name} twice.`);
  const own = { name, build, key };
  made.set(name, own);
  return own;
}

/** Families by name, those of modules that are loaded. */
export const families = (): ReadonlyMap<string, Family<never>> => made;

const kernels = new Map<string, Kernel>();
/** The same by the object that a spec is, for callers that keep theirs: no text is made for a call of microseconds. */
const bySpec = new WeakMap<object, { readonly name: string; readonly kernel: Kernel }>();

/** A kernel module by its spec; compiled once per process. @throws TypeError for a family that `family` did not make */
export function kernel<Spec extends object>(of: Family<Spec>, spec: Spec): Kernel {
  if (made.get(of.name) !== (of as Family<never>)) throw new TypeError(`kernel: expected a family made by family(), got ${of.name}.`);
  const known = bySpec.get(spec);
  if (known?.name === of.name) return known.kernel;
  const key = `${of.name} ${of.key(spec)}`;
  let found = kernels.get(key);
  if (found === undefined) {
    const bytes = of.build(spec);
    found = { id: kernels.size + 1, bytes, module: new engine.Module(bytes) };
    kernels.set(key, found);
  }
  bySpec.set(spec, { name: of.name, kernel: found });
  return found;
}
