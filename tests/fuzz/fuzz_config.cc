// Any bytes as weir.toml. What is accepted must survive its own echo: the printed configuration is
// accepted too and gives the same settings. What is refused names the file.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/cli/config.h"
#include "vmm/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  weir::cli::Config config;
  const weir::Status status = config.ApplyToml(input, "fuzz.toml");
  if (!status.ok()) {
    WEIR_CHECK(status.message().find("fuzz.toml") != std::string::npos, "an error names the file");
    for (const char c : status.message()) {
      WEIR_CHECK(static_cast<unsigned char>(c) >= 0x20, "an error is one line");
    }
  }
  // A refused file may be half applied: that much must be valid as well.
  const std::string echo = config.ToToml();
  weir::cli::Config copy;
  WEIR_CHECK(copy.ApplyToml(echo, "echo.toml").ok(), "the echo is accepted");
  for (const weir::cli::OptionInfo& option : weir::cli::OptionTable()) {
    WEIR_CHECK(option.get(copy.settings()) == option.get(config.settings()),
               "the echo gives the same settings");
  }
  return 0;
}
