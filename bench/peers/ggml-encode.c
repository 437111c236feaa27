// ggml's encoders of k-quants as a command, beside ours in `npm run bench -- gguf-encode`. In a checkout of ggml-org/ggml:
//   gcc -O3 -march=native -w -Isrc -Iinclude src/ggml-quants.c ggml-encode.c -lm -o ggml-encode
//   ./ggml-encode TYPE in.f32 out.bin ROUNDS      TYPE: q2_k q3_k q4_k q5_k q6_k; the LOWBIT_GGML_ENCODE of the bench
#include "ggml-quants.h"
#include "ggml.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// What the rest of ggml would define.
void ggml_abort(const char *file, int line, const char *format, ...) { abort(); }
void ggml_log_internal(enum ggml_log_level level, const char *format, ...) {}
void ggml_critical_section_start(void) {}
void ggml_critical_section_end(void) {}
const char *ggml_type_name(enum ggml_type type) { return ""; }
size_t ggml_type_size(enum ggml_type type) { return 0; }
size_t ggml_row_size(enum ggml_type type, int64_t n) {
  switch (type) {
    case GGML_TYPE_Q2_K: return n / 256 * 84;
    case GGML_TYPE_Q3_K: return n / 256 * 110;
    case GGML_TYPE_Q4_K: return n / 256 * 144;
    case GGML_TYPE_Q5_K: return n / 256 * 176;
    case GGML_TYPE_Q6_K: return n / 256 * 210;
    default: abort();
  }
}

typedef size_t encoder(const float *, void *, int64_t, int64_t, const float *);
static const struct { const char *name; encoder *encode; size_t bytes; } types[] = {
  {"q2_k", quantize_q2_K, 84}, {"q3_k", quantize_q3_K, 110}, {"q4_k", quantize_q4_K, 144},
  {"q5_k", quantize_q5_K, 176}, {"q6_k", quantize_q6_K, 210},
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

int main(int argc, char **argv) {
  if (argc != 5) return fprintf(stderr, "expected: TYPE in.f32 out.bin ROUNDS\n"), 2;
  FILE *in = fopen(argv[2], "rb");
  if (!in) return perror(argv[2]), 1;
  fseek(in, 0, SEEK_END);
  long n = ftell(in) / 4;
  rewind(in);
  float *x = malloc(4 * n);
  if (fread(x, 4, n, in) != n) return 1;
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    if (strcmp(argv[1], types[i].name)) continue;
    char *out = malloc(n / 256 * types[i].bytes);
    double best = 1e30;
    for (int round = atoi(argv[4]); round > 0; round--) {
      double start = now();
      types[i].encode(x, out, n / 256, 256, NULL);
      if (now() - start < best) best = now() - start;
    }
    printf("%s best %.3f ms\n", argv[1], best);
    FILE *file = fopen(argv[3], "wb");
    return fwrite(out, types[i].bytes, n / 256, file) != n / 256 || fclose(file);
  }
  return fprintf(stderr, "no such type: %s\n", argv[1]), 2;
}
