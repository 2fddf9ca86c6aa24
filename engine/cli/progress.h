// Progress: what a waiting person sees on stderr. One updating line on a terminal, plain lines now
// and then elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/engine.h"

namespace weir::cli {

class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress() { Clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Shows |line| if the last one is long enough ago.
  void Update(std::string_view line);
  // Whether Update would show anything now: saves making the line.
  bool Due() const;
  // Takes the updating line away, so that something else can be printed.
  void Clear();
  // Of Engine::Open.
  Engine::ProgressFn ForLoading();

 private:
  bool terminal_ = false;
  bool quiet_ = false;
  bool shown_ = false;
  uint64_t interval_ns_ = 0;
  uint64_t last_ns_ = 0;
};

}  // namespace weir::cli
