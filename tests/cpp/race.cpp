// What must not pass under the thread sanitizer: threads that add to one number without an order.
#define ESL_ISA portable
#include "esl/parallel.h"

int main() {
  int64_t sum = 0;
  esl::portable::parallel_for(0, 1000, 4, [&](int64_t i) { sum += i; });
  return 0;
}
