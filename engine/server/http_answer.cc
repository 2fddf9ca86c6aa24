#include "engine/server/http_answer.h"

#include <utility>

#include "engine/server/http_format.h"

namespace weir::server {

// Callbacks are destroyed outside the lock: they may own what drops an exchange.

HttpAnswer::HttpAnswer(const Terms& terms, std::function<void()> wake)
    : head_(terms.head),
      http11_(terms.http11),
      keep_alive_(terms.keep_alive),
      max_unsent_(terms.max_buffered_bytes),
      wake_(std::move(wake)) {}

void HttpAnswer::Begin(unsigned status, std::string_view content_type, const HeaderList& headers,
                       uint64_t length, bool stream) {
  ResponseHead head{.status = status, .content_type = content_type, .http11 = http11_};
  const bool no_body = status == 204 || status == 304;
  bodiless_ = head_ || no_body;
  chunked_ = stream && http11_;
  if (stream && !http11_ && !bodiless_)
    keep_alive_ = false;  // only the end of the connection ends it
  head.keep_alive = keep_alive_;
  head.length = length;
  head.framing = no_body    ? BodyFraming::kNone
                 : !stream  ? BodyFraming::kLength
                 : chunked_ ? BodyFraming::kChunked
                            : BodyFraming::kUntilClose;
  const size_t before = queued_.size();
  AppendHead(queued_, head, headers);
  unsent_ += queued_.size() - before;
}

void HttpAnswer::Finish(State state, std::function<void()>& left) {
  state_ = state;
  left.swap(left_);
  Wake();
}

void HttpAnswer::Wake() {
  if (awake_ || !wake_) return;
  awake_ = true;
  wake_();
}

void HttpAnswer::Reply(const HttpResponse& response) {
  std::function<void()> left;
  const MutexLock lock(mutex_);
  if (state_ != State::kOpen) return;
  Begin(response.status, response.content_type, response.headers, response.body.size(), false);
  if (!bodiless_) {
    queued_ += response.body;
    unsent_ += response.body.size();
  }
  Finish(State::kComplete, left);
}

void HttpAnswer::BeginStream(unsigned status, std::string_view content_type,
                             const HeaderList& headers) {
  const MutexLock lock(mutex_);
  if (state_ != State::kOpen) return;
  Begin(status, content_type, headers, 0, true);
  state_ = State::kStreaming;
  Wake();
}

void HttpAnswer::AllowUnsent(uint64_t bytes) {
  const MutexLock lock(mutex_);
  max_unsent_ += bytes;
}

bool HttpAnswer::Write(std::string_view bytes) {
  const MutexLock lock(mutex_);
  if (state_ != State::kStreaming) return false;
  // One write passes whatever its size when nothing waits: otherwise it could never be sent.
  if (unsent_ > 0 && unsent_ + bytes.size() > max_unsent_) return false;
  Queue(bytes);
  Wake();
  return true;
}

bool HttpAnswer::EndStreamWith(std::string_view bytes) {
  std::function<void()> left;
  const MutexLock lock(mutex_);
  if (state_ != State::kStreaming) return false;
  Queue(bytes);
  if (chunked_ && !bodiless_) {
    queued_ += kLastChunk;
    unsent_ += kLastChunk.size();
  }
  Finish(State::kComplete, left);
  return true;
}

void HttpAnswer::Queue(std::string_view bytes) {
  if (bytes.empty() || bodiless_) return;
  const size_t before = queued_.size();
  if (chunked_) {
    AppendChunk(queued_, bytes);
  } else {
    queued_ += bytes;
  }
  unsent_ += queued_.size() - before;
}

void HttpAnswer::Abort() {
  std::function<void()> left;
  const MutexLock lock(mutex_);
  if (state_ != State::kOpen && state_ != State::kStreaming) return;
  Finish(State::kAborted, left);
}

void HttpAnswer::Drop() {
  {
    const MutexLock lock(mutex_);
    if (state_ != State::kOpen && state_ != State::kStreaming) return;
  }
  // Only the last owner drops, so no other answer comes between.
  HttpResponse response;
  response.status = 500;
  response.body = ErrorBody(500, "the request was given up without an answer");
  Reply(response);
  Abort();  // does nothing after a Reply
}

size_t HttpAnswer::buffered_bytes() const {
  const MutexLock lock(mutex_);
  return unsent_;
}

void HttpAnswer::OnClientLeft(std::function<void()> left) {
  bool gone = false;
  {
    const MutexLock lock(mutex_);
    gone = state_ == State::kGone;
    if (state_ == State::kOpen || state_ == State::kStreaming) left.swap(left_);
  }
  if (gone && left) left();
}

HttpAnswer::Progress HttpAnswer::Take(std::string& out) {
  const MutexLock lock(mutex_);
  if (state_ == State::kAborted) return Progress::kAborted;
  out.swap(queued_);
  if (out.empty()) awake_ = false;
  return state_ == State::kComplete ? Progress::kComplete : Progress::kMore;
}

void HttpAnswer::Sent(size_t bytes) {
  const MutexLock lock(mutex_);
  unsent_ -= bytes;
}

bool HttpAnswer::answered() const {
  const MutexLock lock(mutex_);
  return state_ == State::kComplete || state_ == State::kAborted;
}

bool HttpAnswer::keep_alive() const {
  const MutexLock lock(mutex_);
  return keep_alive_;
}

void HttpAnswer::CloseAfterwards() {
  const MutexLock lock(mutex_);
  keep_alive_ = false;
}

void HttpAnswer::Detach() {
  std::function<void()> left;
  std::function<void()> wake;
  {
    const MutexLock lock(mutex_);
    wake.swap(wake_);
    if (state_ != State::kOpen && state_ != State::kStreaming) return;
    state_ = State::kGone;
    left.swap(left_);
    std::string().swap(queued_);
    unsent_ = 0;
  }
  if (left) left();
}

}  // namespace weir::server
