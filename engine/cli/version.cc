// The only file that knows the commit it was built from.
#include <string_view>

#include "engine/cli/command_line.h"

namespace weir::cli {

std::string VersionText() {
  return std::string("weir ") + WEIR_VERSION + " (" +
         (std::string_view(WEIR_BUILD_TYPE).empty() ? "no build type" : WEIR_BUILD_TYPE) +
         ", commit " + WEIR_COMMIT + ")";
}

std::string VersionNumber() {
  return WEIR_VERSION;
}

std::string CommitText() {
  return WEIR_COMMIT;
}

}  // namespace weir::cli
