// A client for benchmarks: many streams at once, read by one thread with epoll.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace weir::bench {

struct StreamResult {
  int fd = -1;
  std::chrono::steady_clock::time_point began;
  double first_byte_s = -1;  // from before connecting
  uint64_t events = 0;       // "data:" lines
  std::string tail;          // the last bytes: "0\r\n\r\n" if it ended well
};

// Connects all of |streams|, sends |request| on each and reads until every one ended. Returns how
// many failed. |cpu_s|: what the calling thread took.
size_t RunStreams(uint16_t port, const std::string& request, std::vector<StreamResult>& streams,
                  double& cpu_s);

// Seconds from sending |request| to the first byte of the answer's body, |times| times one after
// the other on one connection. Empty when something failed.
std::vector<double> FirstByteTimes(uint16_t port, const std::string& request, size_t times);

// CPU seconds of this process's threads, summed by name.
std::map<std::string, double> CpuByThreadName();

double Percentile(std::vector<double> values, double percent);

}  // namespace weir::bench
