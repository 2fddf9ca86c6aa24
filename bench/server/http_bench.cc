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

#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

#include "bench/server/stream_client.h"
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
  std::vector<weir::bench::StreamResult> streams(connections);
  size_t failed = 0;
  double client_cpu_s = 0;
  const auto count = [&] {
    const std::lock_guard lock(mutex);
    return exchanges.size();
  };
  const uint16_t port = (*server)->port();
  std::thread client([&] {
    const std::string request = "GET /stream HTTP/1.1\r\nHost: bench\r\n\r\n";
    failed = weir::bench::RunStreams(port, request, streams, client_cpu_s);
  });
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
  for (const auto& stream : streams) first.push_back(stream.first_byte_s);
  const double total = static_cast<double>(writes * exchanges.size());
  std::printf(
      "{\"connections\": %zu, \"writes\": %.0f, \"failed\": %zu, \"held\": %zu, \"wall_s\": %.3f, "
      "\"writes_per_s\": %.0f, \"server_cpu_s\": %.3f, \"writes_per_server_core_s\": %.0f, "
      "\"first_byte_p50_ms\": %.1f, \"first_byte_p99_ms\": %.1f}\n",
      connections, total, failed, held, wall, total / wall, server_cpu, total / server_cpu,
      weir::bench::Percentile(first, 50) * 1e3, weir::bench::Percentile(first, 99) * 1e3);
  exchanges.clear();
  return failed == 0 ? 0 : 1;
}
