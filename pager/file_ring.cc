#include "pager/file_ring.h"

#include <algorithm>
#include <deque>

#include <liburing.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pager/file_ring_internal.h"

namespace weir {
namespace {

using file_ring_internal::Advance;
using file_ring_internal::Next;

// One transfer never asks for more: the kernel's own limit is 2 GiB - 4 KiB.
constexpr uint64_t kMaxTransfer = uint64_t{1} << 30;

std::span<std::byte> Rest(const FileRequest& request) {
  const auto rest = request.buffer.subspan(request.transferred);
  return rest.first(std::min<uint64_t>(rest.size(), kMaxTransfer));
}

// False, and |request| is done with an error, when it makes no sense.
bool Prepare(FileRequest* request) {
  request->done = false;
  request->transferred = 0;
  request->status = OkStatus();
  if (request->fd >= 0 && !request->buffer.empty()) return true;
  request->status =
      InvalidArgument(file_ring_internal::Where(*request) + " of file descriptor " +
                      std::to_string(request->fd) + ": a request needs an open file and a buffer");
  request->done = true;
  return false;
}

// Executes a request when it is waited for. What a container without io_uring gets.
class PreadRing final : public FileRing {
 public:
  PreadRing(uint32_t depth, std::string reason) : depth_(depth), reason_(std::move(reason)) {}

  Mode mode() const override { return Mode::kPread; }
  std::string_view mode_reason() const override { return reason_; }

  Status Submit(FileRequest* request) override {
    if (!Prepare(request)) return request->status;
    if (queue_.size() >= depth_) ExecuteFront();
    queue_.push_back(request);
    return OkStatus();
  }

  Status Wait(FileRequest* request) override {
    while (!queue_.empty() && (request == nullptr || !request->done)) ExecuteFront();
    if (request == nullptr) return OkStatus();
    if (!request->done) return BadState("waiting for a file request that was never submitted");
    return request->status;
  }

 private:
  void ExecuteFront() {
    FileRequest& r = *queue_.front();
    queue_.pop_front();
    Next next = Next::kResubmit;
    while (next == Next::kResubmit) {
      const std::span<std::byte> rest = Rest(r);
      const auto at = static_cast<off_t>(r.offset + r.transferred);
      const ssize_t n = r.op == FileRequest::Op::kRead
                            ? ::pread(r.fd, rest.data(), rest.size(), at)
                            : ::pwrite(r.fd, rest.data(), rest.size(), at);
      next = Advance(r, n < 0 ? -errno : n);
    }
  }

  uint32_t depth_;
  std::string reason_;
  std::deque<FileRequest*> queue_;
};

class UringRing final : public FileRing {
 public:
  UringRing() = default;
  ~UringRing() override {
    if (!initialised_) return;
    // B2: nothing may write into a caller's buffer after this.
    (void)Wait(nullptr);
    io_uring_queue_exit(&ring_);
  }

  // Negative errno when the kernel refuses.
  int Init(const Options& options) {
    depth_ = options.depth;
    const int r = io_uring_queue_init(options.depth, &ring_, 0);
    if (r < 0) return r;
    initialised_ = true;
    if (!options.fixed.empty() && options.fixed.size() <= kMaxTransfer) {
      const iovec vec{options.fixed.data(), options.fixed.size()};
      // Refused (a locked-memory limit, usually): the same requests work unregistered, only slower.
      if (io_uring_register_buffers(&ring_, &vec, 1) == 0) fixed_ = options.fixed;
    }
    return 0;
  }

  Mode mode() const override { return Mode::kIoUring; }
  std::string_view mode_reason() const override { return {}; }

  Status Submit(FileRequest* request) override {
    if (!Prepare(request)) return request->status;
    while (in_flight_ >= depth_) WEIR_TRY(ReapOne());
    ++in_flight_;
    const Status started = Start(*request);
    if (!started.ok()) {
      --in_flight_;
      request->status = started;
      request->done = true;
    }
    return started;
  }

  Status Wait(FileRequest* request) override {
    while (in_flight_ > 0 && (request == nullptr || !request->done)) WEIR_TRY(ReapOne());
    if (request == nullptr) return OkStatus();
    if (!request->done) return BadState("waiting for a file request that was never submitted");
    return request->status;
  }

 private:
  Status Start(FileRequest& r) {
    WEIR_TRY(Status(broken_));
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr)
      return IoError("io_uring has no free submission entry");  // depth_ bounds it
    const std::span<std::byte> rest = Rest(r);
    const auto bytes = static_cast<unsigned>(rest.size());
    const uint64_t at = r.offset + r.transferred;
    const bool fixed = !fixed_.empty() && rest.data() >= fixed_.data() &&
                       rest.data() + rest.size() <= fixed_.data() + fixed_.size();
    if (r.op == FileRequest::Op::kRead) {
      fixed ? io_uring_prep_read_fixed(sqe, r.fd, rest.data(), bytes, at, 0)
            : io_uring_prep_read(sqe, r.fd, rest.data(), bytes, at);
    } else {
      fixed ? io_uring_prep_write_fixed(sqe, r.fd, rest.data(), bytes, at, 0)
            : io_uring_prep_write(sqe, r.fd, rest.data(), bytes, at);
    }
    io_uring_sqe_set_data(sqe, &r);
    for (;;) {
      const int n = io_uring_submit(&ring_);
      if (n >= 0) return OkStatus();  // 0: reaping below started another request, and this with it
      if (n == -EINTR) continue;
      if (n == -EAGAIN || n == -EBUSY) {  // the kernel wants completions reaped first
        if (in_flight_ > 1) {
          WEIR_TRY(ReapOne());
        } else {
          ::usleep(100);
        }
        continue;
      }
      // The entry stays in the queue; submitting nothing more keeps the kernel away from its
      // buffer.
      broken_ = IoError(std::string("io_uring_submit: ") + std::strerror(-n));
      return broken_;
    }
  }

  // Waits for one completion and starts its rest if it was short.
  Status ReapOne() {
    io_uring_cqe* cqe = nullptr;
    int r = 0;
    do {
      r = io_uring_wait_cqe(&ring_, &cqe);
    } while (r == -EINTR || r == -EAGAIN);
    if (r < 0) return IoError(std::string("io_uring_wait_cqe: ") + std::strerror(-r));
    auto& request = *static_cast<FileRequest*>(io_uring_cqe_get_data(cqe));
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    if (Advance(request, result) == Next::kResubmit) {
      const Status started = Start(request);
      if (started.ok()) return OkStatus();
      request.status = started;
      request.done = true;
    }
    --in_flight_;
    return OkStatus();
  }

  io_uring ring_{};
  bool initialised_ = false;
  uint32_t depth_ = 0;
  uint32_t in_flight_ = 0;
  Status broken_;  // why the ring takes no more requests
  std::span<std::byte> fixed_;
};

}  // namespace

Result<std::unique_ptr<FileRing>> FileRing::Create(const Options& options) {
  if (options.depth == 0 || options.depth > 4096) {
    return InvalidArgument("a file ring of depth " + std::to_string(options.depth) +
                           "; 1 to 4096 are accepted");
  }
  if (options.mode == Mode::kPread) {
    return std::unique_ptr<FileRing>(new PreadRing(options.depth, "asked for"));
  }
  auto ring = std::make_unique<UringRing>();
  const int r = ring->Init(options);
  if (r == 0) return std::unique_ptr<FileRing>(std::move(ring));
  return std::unique_ptr<FileRing>(
      new PreadRing(options.depth, std::string("io_uring_queue_init: ") + std::strerror(-r)));
}

}  // namespace weir
