#include <stdexcept>

#include "testing.h"

namespace esl {
// Stands for a kernel: the same function in each instruction set's namespace, with a comma in its declaration.
ESL_DECLARE_CPU(const char* name_of(int first, int second))
namespace portable {
const char* name_of(int, int) { return "portable"; }
}  // namespace portable
namespace avx2 {
const char* name_of(int, int) { return "avx2"; }
}  // namespace avx2
namespace avx512 {
const char* name_of(int, int) { return "avx512"; }
}  // namespace avx512
}  // namespace esl

void run() {
  using namespace esl;
  const Isa isa = isa_current();
  ESL_EXPECT(isa_compiled(Isa::portable) && isa_supported(Isa::portable));
  ESL_EXPECT(isa_compiled(isa) && isa_supported(isa));
  ESL_EXPECT(isa <= isa_best());
  ESL_EXPECT(!std::strcmp(ESL_DISPATCH(name_of, 1, 2), isa_name(isa)));

  for (Isa other : kAllIsas) {
    if (isa_compiled(other) && isa_supported(other)) continue;
    bool refused = false;
    try {
      isa_set(other);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    ESL_EXPECT(refused && isa_current() == isa);
  }
}
