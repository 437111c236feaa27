// llama-quantize as a command, from the library that node-llama-cpp ships, which exports it but not to JavaScript.
// Compiled and used by bench/llama-files.ts: llama-quantize in.gguf out.gguf FTYPE (llama_ftype of llama.h).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// The first fields of llama_model_quantize_params (llama.h); the rest is kept as the library makes it.
struct params {
  int32_t threads, ftype, output_tensor_type, token_embedding_type;
  uint8_t allow_requantize, quantize_output_tensor, only_copy, pure;
  char rest[256];
};
struct params llama_model_quantize_default_params(void);
uint32_t llama_model_quantize(const char *in, const char *out, const struct params *params);

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "expected: in.gguf out.gguf FTYPE\n"), 2;
  struct params p = llama_model_quantize_default_params();
  p.ftype = atoi(argv[3]);
  p.pure = 1;
  return llama_model_quantize(argv[1], argv[2], &p) != 0;
}
