// Counts the panels that a backend's codec really converted.
import type { BulkCodec } from "../../src/index.ts";

/** Runs `use` with a backend that counts; how many panels it encoded and decoded. */
export function blockDecoderUses(
  backend: { readonly codec: BulkCodec },
  use: (backend: { readonly codec: BulkCodec }) => void,
): { encoded: number; decoded: number } {
  const uses = { encoded: 0, decoded: 0 };
  const codec: BulkCodec = {
    ...backend.codec,
    blockEncoder(policy) {
      const encode = backend.codec.blockEncoder(policy);
      return encode && ((...args) => {
        const done = encode(...args);
        if (done) uses.encoded++;
        return done;
      });
    },
    blockDecoder(element, role) {
      const decode = backend.codec.blockDecoder(element, role);
      return decode && ((...args) => {
        const done = decode(...args);
        if (done) uses.decoded++;
        return done;
      });
    },
  }; // prettier-ignore
  use({ codec });
  return uses;
}
