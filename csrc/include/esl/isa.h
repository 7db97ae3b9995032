// Instruction sets: which ones this binary holds, which ones this machine runs, and the call to the chosen one.
//
// Every csrc/cpu/<op>.cpp is compiled once per instruction set with ESL_ISA defined to its name, and puts its functions
// into namespace esl::ESL_ISA. A header declares them with ESL_DECLARE_CPU, a binding calls them with ESL_DISPATCH.
#pragma once

namespace esl {

enum class Isa { portable, avx2, avx512 };  // each one includes those before it
constexpr Isa kAllIsas[] = {Isa::portable, Isa::avx2, Isa::avx512};

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);   // in this binary
bool isa_supported(Isa isa);  // by this processor and operating system
Isa isa_best();               // the last one that is both
Isa isa_current();            // what ESL_DISPATCH uses: isa_best() until isa_set()
void isa_set(Isa isa);        // throws std::invalid_argument unless it is both

}  // namespace esl

// ESL_DECLARE_CPU(void f(const Params& p)) inside namespace esl declares esl::portable::f, esl::avx2::f,
// esl::avx512::f.
#define ESL_DECLARE_CPU(...) \
  namespace portable {       \
  __VA_ARGS__;               \
  }                          \
  namespace avx2 {           \
  __VA_ARGS__;               \
  }                          \
  namespace avx512 {         \
  __VA_ARGS__;               \
  }

#ifdef ESL_HAVE_AVX2
#define ESL_CASE_AVX2(fn, ...) \
  case ::esl::Isa::avx2:       \
    return ::esl::avx2::fn(__VA_ARGS__);
#else
#define ESL_CASE_AVX2(fn, ...)
#endif
#ifdef ESL_HAVE_AVX512
#define ESL_CASE_AVX512(fn, ...) \
  case ::esl::Isa::avx512:       \
    return ::esl::avx512::fn(__VA_ARGS__);
#else
#define ESL_CASE_AVX512(fn, ...)
#endif

// ESL_DISPATCH(f, args...) is the value of esl::<isa_current()>::f(args...).
#define ESL_DISPATCH(fn, ...)                    \
  [&] {                                          \
    switch (::esl::isa_current()) {              \
      ESL_CASE_AVX512(fn, __VA_ARGS__)           \
      ESL_CASE_AVX2(fn, __VA_ARGS__)             \
      default:                                   \
        return ::esl::portable::fn(__VA_ARGS__); \
    }                                            \
  }()
