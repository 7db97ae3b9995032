// Argument checks at the bindings: std::invalid_argument arrives in Python as ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace esl {

inline void check(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

inline void check(bool ok, const std::string& message) { check(ok, message.c_str()); }

}  // namespace esl
