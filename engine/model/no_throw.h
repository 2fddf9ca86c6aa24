// The edge of this folder: exceptions of the standard library become a Status.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "vmm/status.h"

namespace weir {

// |function()|, which returns a Status or a Result. Sizes are checked before they are allocated, so
// what remains is real exhaustion of memory, and bugs of libraries.
template <typename Function>
auto NoThrow(const Function& function) -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return NoMemory("out of memory while reading a model");
  } catch (const std::exception& error) {
    return DataLoss(std::string("unexpected: ") + error.what());
  }
}

}  // namespace weir
