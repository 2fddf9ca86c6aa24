// ByteBudget: a limit on bytes held by many at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

namespace weir::server {

// Represents the bytes held now and how many may be. Thread-safe.
class ByteBudget {
 public:
  explicit ByteBudget(uint64_t limit) : limit_(limit) {}
  uint64_t used() const { return used_.load(); }

 private:
  friend class ByteShare;
  const uint64_t limit_;
  std::atomic<uint64_t> used_{0};
};

// Represents one holder's part of a budget; gives it back when it is destroyed. The budget may be
// outlived by its owner: the shares keep it. One thread at a time.
class ByteShare {
 public:
  explicit ByteShare(std::shared_ptr<ByteBudget> budget) : budget_(std::move(budget)) {}
  ByteShare(ByteShare&& other) noexcept
      : budget_(std::move(other.budget_)), bytes_(std::exchange(other.bytes_, 0)) {}
  ByteShare& operator=(ByteShare&&) = delete;
  ~ByteShare() { Release(); }

  uint64_t bytes() const { return bytes_; }
  // Makes it |bytes|, not fewer than now. False, and nothing changes, when the budget lacks them.
  bool GrowTo(uint64_t bytes) {
    const uint64_t more = bytes - bytes_;
    if (budget_->used_.fetch_add(more) + more > budget_->limit_) {
      budget_->used_.fetch_sub(more);
      return false;
    }
    bytes_ = bytes;
    return true;
  }
  void Release() {
    if (bytes_ > 0) budget_->used_.fetch_sub(std::exchange(bytes_, 0));
  }

 private:
  std::shared_ptr<ByteBudget> budget_;
  uint64_t bytes_ = 0;
};

}  // namespace weir::server
