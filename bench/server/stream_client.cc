#include "bench/server/stream_client.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

namespace weir::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int Connect(uint16_t port) {
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) return fd;
  close(fd);
  return -1;
}

bool Send(int fd, const std::string& request) {
  return fd >= 0 && send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
                        static_cast<ssize_t>(request.size());
}

// An event's line may be cut by the end of a read: the tail of the last one is looked at again.
uint64_t CountEvents(std::string_view bytes) {
  uint64_t count = 0;
  for (size_t at = 0; (at = bytes.find("data: ", at)) != std::string_view::npos; at += 6) ++count;
  return count;
}

}  // namespace

size_t RunStreams(uint16_t port, const std::string& request, std::vector<StreamResult>& streams,
                  double& cpu_s) {
  const int poll = epoll_create1(0);
  size_t failed = 0, open = 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    StreamResult& stream = streams[i];
    stream.began = Clock::now();
    stream.fd = Connect(port);
    epoll_event event = {.events = EPOLLIN, .data = {.u64 = i}};
    if (!Send(stream.fd, request) || epoll_ctl(poll, EPOLL_CTL_ADD, stream.fd, &event) != 0) {
      ++failed;
    } else {
      ++open;
    }
  }
  constexpr size_t kTail = 5;
  std::vector<char> bytes(64 << 10);
  while (open > 0) {
    epoll_event events[256];
    const int ready = epoll_wait(poll, events, 256, 20'000);
    if (ready <= 0) break;
    for (int i = 0; i < ready; ++i) {
      StreamResult& stream = streams[events[i].data.u64];
      std::copy(stream.tail.begin(), stream.tail.end(), bytes.begin());
      const size_t before = stream.tail.size();
      const ssize_t got = recv(stream.fd, bytes.data() + before, bytes.size() - before, 0);
      if (got > 0) {
        if (stream.first_byte_s < 0) stream.first_byte_s = SecondsSince(stream.began);
        const std::string_view seen(bytes.data(), before + static_cast<size_t>(got));
        stream.events += CountEvents(seen);
        stream.tail = seen.substr(seen.size() - std::min(seen.size(), kTail));
        if (stream.tail != "0\r\n\r\n") continue;
      } else {
        ++failed;
      }
      close(stream.fd);
      --open;
    }
  }
  close(poll);
  rusage usage = {};
  getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  cpu_s = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  return failed + open;
}

std::vector<double> FirstByteTimes(uint16_t port, const std::string& request, size_t times) {
  const int fd = Connect(port);
  std::vector<double> first;
  std::string answer;
  char bytes[16 << 10];
  for (size_t i = 0; i < times; ++i) {
    answer.clear();
    const Clock::time_point begin = Clock::now();
    if (!Send(fd, request)) break;
    double took = -1;
    while (!answer.ends_with("\r\n0\r\n\r\n")) {
      const ssize_t got = recv(fd, bytes, sizeof(bytes), 0);
      if (got <= 0) break;
      answer.append(bytes, static_cast<size_t>(got));
      if (took < 0 && answer.find("data: ") != std::string::npos) took = SecondsSince(begin);
    }
    if (took < 0 || answer.find(" 200 ") == std::string::npos) break;
    first.push_back(took);
  }
  close(fd);
  return first.size() == times ? first : std::vector<double>();
}

std::map<std::string, double> CpuByThreadName() {
  std::map<std::string, double> sum;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream comm(task.path() / "comm"), schedstat(task.path() / "schedstat");
    std::string name;
    uint64_t ns = 0;
    if (std::getline(comm, name) && schedstat >> ns) sum[name] += static_cast<double>(ns) * 1e-9;
  }
  return sum;
}

double Percentile(std::vector<double> values, double percent) {
  if (values.empty()) return -1;
  std::sort(values.begin(), values.end());
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<size_t>(last * percent / 100)];
}

}  // namespace weir::bench
