// Streamed writes a second through the HTTP server, and the time to the first byte of many streams.
// The client is in this process: one thread that reads all connections with epoll. CPU time is
// taken a thread, so that the server's share (its I/O thread and the thread that writes) is known
// apart.
//   weir_http_bench [CONNECTIONS [WRITES_A_CONNECTION]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine/server/http.h"

namespace {

using Clock = std::chrono::steady_clock;
using weir::server::HttpExchange;
using weir::server::HttpServer;

double Seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}
double CpuSeconds(int who) {
  rusage usage = {};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}
double ThreadCpuSeconds(std::thread& thread) {
  clockid_t clock = {};
  timespec now = {};
  if (pthread_getcpuclockid(thread.native_handle(), &clock) != 0) return 0;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Stream {
  int fd = -1;
  Clock::time_point began;
  double first_byte_s = -1;
  std::string tail;
};

// Connects all, sends the requests, reads until every stream ended. Returns how many failed.
size_t RunClient(uint16_t port, std::vector<Stream>& streams, double& cpu_s) {
  const int poll = epoll_create1(0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const std::string request = "GET /stream HTTP/1.1\r\nHost: bench\r\n\r\n";
  size_t failed = 0, open = 0;
  for (size_t i = 0; i < streams.size(); ++i) {
    Stream& stream = streams[i];
    stream.began = Clock::now();
    stream.fd = socket(AF_INET, SOCK_STREAM, 0);
    const bool sent = connect(stream.fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0 &&
                      send(stream.fd, request.data(), request.size(), MSG_NOSIGNAL) ==
                          static_cast<ssize_t>(request.size());
    epoll_event event = {.events = EPOLLIN, .data = {.u64 = i}};
    if (!sent || epoll_ctl(poll, EPOLL_CTL_ADD, stream.fd, &event) != 0) {
      ++failed;
    } else {
      ++open;
    }
  }
  std::vector<char> bytes(64 << 10);
  while (open > 0) {
    epoll_event events[256];
    const int ready = epoll_wait(poll, events, 256, 10'000);
    if (ready <= 0) return failed + open;
    for (int i = 0; i < ready; ++i) {
      Stream& stream = streams[events[i].data.u64];
      const ssize_t got = recv(stream.fd, bytes.data(), bytes.size(), 0);
      if (got > 0 && stream.first_byte_s < 0) {
        stream.first_byte_s = Seconds(Clock::now() - stream.began);
      }
      if (got > 0) stream.tail.append(bytes.data(), static_cast<size_t>(got));
      if (stream.tail.size() > 5) stream.tail.erase(0, stream.tail.size() - 5);
      if (got > 0 && stream.tail != "0\r\n\r\n") continue;
      if (got <= 0) ++failed;
      close(stream.fd);
      --open;
    }
  }
  close(poll);
  cpu_s = CpuSeconds(RUSAGE_THREAD);
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t connections = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 256;
  const size_t writes = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1000;
  std::mutex mutex;
  std::vector<std::shared_ptr<HttpExchange>> exchanges;
  auto server = HttpServer::Start({.port = 0}, [&](std::shared_ptr<HttpExchange> exchange) {
    exchange->BeginStream(200, "text/event-stream", {});
    exchange->Write("data: first\n\n");
    const std::lock_guard lock(mutex);
    exchanges.push_back(std::move(exchange));
  });
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.status().ToString().c_str());
    return 1;
  }
  std::vector<Stream> streams(connections);
  size_t failed = 0;
  double client_cpu_s = 0;
  const auto count = [&] {
    const std::lock_guard lock(mutex);
    return exchanges.size();
  };
  const uint16_t port = (*server)->port();
  std::thread client([&] { failed = RunClient(port, streams, client_cpu_s); });
  const Clock::time_point give_up = Clock::now() + std::chrono::seconds(20);
  while (count() < connections && Clock::now() < give_up) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const double cpu_before = CpuSeconds(RUSAGE_SELF);
  const double client_cpu_before = ThreadCpuSeconds(client);
  const Clock::time_point begin = Clock::now();
  const std::string token = "data: " + std::string(192, 'x') + "\n\n";
  size_t held = 0;
  for (size_t i = 0; i < writes; ++i) {
    for (const auto& exchange : exchanges) {
      while (!exchange->Write(token) && exchange->buffered_bytes() > 0) {
        ++held;
        std::this_thread::yield();
      }
    }
    // As an engine's steps do: nothing of one round joins the next, each write is a send.
    while (std::any_of(exchanges.begin(), exchanges.end(),
                       [](const auto& exchange) { return exchange->buffered_bytes() > 0; })) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  for (const auto& exchange : exchanges) exchange->EndStream();
  client.join();
  const double wall = Seconds(Clock::now() - begin);
  const double server_cpu =
      CpuSeconds(RUSAGE_SELF) - cpu_before - (client_cpu_s - client_cpu_before);
  std::vector<double> first;
  for (const Stream& stream : streams) first.push_back(stream.first_byte_s);
  std::sort(first.begin(), first.end());
  const double total = static_cast<double>(writes * exchanges.size());
  std::printf(
      "{\"connections\": %zu, \"writes\": %.0f, \"failed\": %zu, \"held\": %zu, \"wall_s\": %.3f, "
      "\"writes_per_s\": %.0f, \"server_cpu_s\": %.3f, \"writes_per_server_core_s\": %.0f, "
      "\"first_byte_p50_ms\": %.1f, \"first_byte_p99_ms\": %.1f}\n",
      connections, total, failed, held, wall, total / wall, server_cpu, total / server_cpu,
      first[first.size() / 2] * 1e3, first[first.size() * 99 / 100] * 1e3);
  exchanges.clear();
  return failed == 0 ? 0 : 1;
}
