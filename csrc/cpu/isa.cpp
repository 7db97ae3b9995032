#include "esl/isa.h"

#include <atomic>
#include <stdexcept>
#include <string>

#ifdef _MSC_VER
#include <intrin.h>
#endif

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

#if defined(_MSC_VER) && defined(_M_X64)
// A bit of eax, ebx, ecx or edx (0 to 3) as cpuid answers for a leaf.
static bool cpuid_bit(int leaf, int reg, int bit) {
  int answer[4];
  __cpuid(answer, 0);
  if (leaf > answer[0]) return false;
  __cpuidex(answer, leaf, 0);
  return (answer[reg] >> bit & 1) != 0;
}
#endif

// One term per -m flag in CMakeLists.txt. The operating system must save the wide registers too: that is OSXSAVE and
// two bits of xgetbv, which __builtin_cpu_supports looks at by itself. f16c is not asked for: older Clang does not know
// the name, and every processor with AVX2 has it. MSVC compiles nothing for AVX-512.
bool isa_supported(Isa isa) {
#if defined(_MSC_VER) && defined(_M_X64)
  const bool saved = cpuid_bit(1, 2, 27) && (_xgetbv(0) & 6) == 6;
  const bool avx2 = saved && cpuid_bit(7, 1, 5) && cpuid_bit(1, 2, 12) && cpuid_bit(7, 1, 3) && cpuid_bit(7, 1, 8);
  const bool avx512 = false;
#elif defined(__x86_64__)
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
