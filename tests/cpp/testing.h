// The smallest test frame: each test_<op>.cpp defines run(), which is called with the instruction set of argv[1] in
// use.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "esl/isa.h"

#define ESL_EXPECT(condition)                                                        \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (0)

void run();

int main(int argc, char** argv) {
  for (esl::Isa isa : esl::kAllIsas) {
    if (argc != 2 || std::strcmp(argv[1], esl::isa_name(isa))) continue;
    if (!esl::isa_compiled(isa) || !esl::isa_supported(isa)) {
      std::fprintf(stderr, "%s is not compiled in, or this machine does not run it\n", argv[1]);
      return 77;  // "skipped" to CTest and others
    }
    esl::isa_set(isa);
    run();
    return 0;
  }
  std::fprintf(stderr, "usage: %s portable|avx2|avx512\n", argv[0]);
  return 2;
}
