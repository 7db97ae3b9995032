#include "esl/isa.h"

#include <atomic>
#include <stdexcept>
#include <string>

namespace esl {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool isa_compiled(Isa isa) {
  switch (isa) {
    case Isa::avx512:
#ifdef ESL_HAVE_AVX512
      return true;
#else
      return false;
#endif
    case Isa::avx2:
#ifdef ESL_HAVE_AVX2
      return true;
#else
      return false;
#endif
    default:
      return true;
  }
}

// One term per -m flag in CMakeLists.txt. __builtin_cpu_supports also asks the operating system (xgetbv) whether it
// saves the wide registers. f16c is not asked for: older Clang does not know the name, and every processor with AVX2
// has it.
bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  const bool avx2 = false, avx512 = false;
#endif
  return isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : true;
}

Isa isa_best() {
  Isa best = Isa::portable;
  for (Isa isa : kAllIsas) {
    if (isa_compiled(isa) && isa_supported(isa)) best = isa;
  }
  return best;
}

static std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{isa_best()};
  return isa;
}

Isa isa_current() { return current().load(std::memory_order_relaxed); }

void isa_set(Isa isa) {
  if (!isa_compiled(isa)) throw std::invalid_argument(std::string(isa_name(isa)) + " is not compiled into this binary");
  if (!isa_supported(isa)) throw std::invalid_argument(std::string("this machine does not run ") + isa_name(isa));
  current().store(isa, std::memory_order_relaxed);
}

}  // namespace esl
