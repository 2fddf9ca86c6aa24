// The answer to one request, between the threads that give it and the connection that sends it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "engine/server/http.h"
#include "vmm/mutex.h"

namespace weir::server {

// Represents the bytes of an answer on their way out:
//
//   open ──Reply──► complete          open, streaming ──Abort──► aborted
//   open ──BeginStream──► streaming ──EndStream──► complete
//
// and, from open or streaming, gone: the client left. Owned by the exchange and by the connection.
// Thread-safe, one lock; nothing is waited for under it. Calls that do not fit the state do
// nothing.
class HttpAnswer {
 public:
  struct Terms {
    bool head = false;  // the request was HEAD: no body leaves
    bool http11 = true;
    bool keep_alive = true;
    uint32_t max_buffered_bytes = 0;
  };
  // |wake| asks the connection to call Take soon. Runs under the lock: it may post, nothing else.
  HttpAnswer(const Terms& terms, std::function<void()> wake);

  // For whoever answers; see HttpExchange.
  void Reply(const HttpResponse& response);
  void BeginStream(unsigned status, std::string_view content_type, const HeaderList& headers);
  void AllowUnsent(uint64_t bytes);
  bool Write(std::string_view bytes);
  void EndStream() { (void)EndStreamWith({}); }
  bool EndStreamWith(std::string_view bytes);
  void Abort();
  size_t buffered_bytes() const;
  void OnClientLeft(std::function<void()> left);
  // Nobody can answer any more: a 500, or, in the middle of a stream, Abort.
  void Drop();

  // For the connection, on its thread.
  enum class Progress : uint8_t { kMore, kComplete, kAborted };
  // Swaps what is queued into |out|, which is empty. Until it gave nothing, it is to be called
  // again after |out| was sent; then |wake| runs.
  Progress Take(std::string& out);
  void Sent(size_t bytes);  // of what was taken
  bool answered() const;    // complete or aborted: nothing will be added
  bool keep_alive() const;
  void CloseAfterwards();  // the connection does not live on after this answer
  // The connection forgets this answer. Runs the callback of OnClientLeft unless answered.
  void Detach();

 private:
  enum class State : uint8_t { kOpen, kStreaming, kComplete, kAborted, kGone };
  void Begin(unsigned status, std::string_view content_type, const HeaderList& headers,
             uint64_t length, bool stream) WEIR_REQUIRES(mutex_);
  void Queue(std::string_view bytes) WEIR_REQUIRES(mutex_);
  void Finish(State state, std::function<void()>& left) WEIR_REQUIRES(mutex_);
  void Wake() WEIR_REQUIRES(mutex_);

  const bool head_;
  const bool http11_;
  mutable Mutex mutex_{LockRank::kHttpAnswer};
  State state_ WEIR_GUARDED_BY(mutex_) = State::kOpen;
  bool keep_alive_ WEIR_GUARDED_BY(mutex_);
  bool chunked_ WEIR_GUARDED_BY(mutex_) = false;
  bool bodiless_ WEIR_GUARDED_BY(mutex_) = false;
  bool awake_ WEIR_GUARDED_BY(mutex_) = false;  // the connection will call Take
  uint64_t max_unsent_ WEIR_GUARDED_BY(mutex_);
  size_t unsent_ WEIR_GUARDED_BY(mutex_) = 0;  // queued, and taken but not yet sent
  std::string queued_ WEIR_GUARDED_BY(mutex_);
  std::function<void()> wake_ WEIR_GUARDED_BY(mutex_);  // empty once detached
  std::function<void()> left_ WEIR_GUARDED_BY(mutex_);
};

}  // namespace weir::server
