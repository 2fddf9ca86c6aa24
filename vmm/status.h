// Status and Result<T>: how every layer reports what can be expected to go wrong.
//
// Exceptions do not cross a folder boundary. Running out of memory is a value (kNoMemory), not an
// exception path. A message names what was wrong and what would have been accepted.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "vmm/check.h"

namespace weir {

enum class StatusCode : unsigned char {
  kOk = 0,
  kNoMemory,         // a tier, a pool or the budget has no room; nothing was changed
  kShouldWait,       // in progress; ask again after the named thing completes
  kInvalidArgument,  // the caller's (or user's) input is wrong; the message says how
  kNotFound,         // no such file, tensor, model, policy, ...
  kBadState,         // the object is not in a state that allows the call
  kUnsupported,      // well-formed, but this build or back-end cannot do it
  kDataLoss,         // a file or a copy is truncated, malformed or fails its checksum
  kIo,               // the operating system reported an error
  kDriver,           // the device driver reported an error
  kCancelled,
};

// Short stable name of |code|, e.g. "no memory".
constexpr std::string_view StatusCodeName(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return "ok";
    case StatusCode::kNoMemory: return "no memory";
    case StatusCode::kShouldWait: return "should wait";
    case StatusCode::kInvalidArgument: return "invalid argument";
    case StatusCode::kNotFound: return "not found";
    case StatusCode::kBadState: return "bad state";
    case StatusCode::kUnsupported: return "unsupported";
    case StatusCode::kDataLoss: return "data loss";
    case StatusCode::kIo: return "i/o error";
    case StatusCode::kDriver: return "driver error";
    case StatusCode::kCancelled: return "cancelled";
  }
  return "unknown";
}

// Represents the outcome of a call. One pointer wide; success allocates nothing.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message)
      : rep_(code == StatusCode::kOk ? nullptr
                                     : std::make_unique<Rep>(Rep{code, std::move(message)})) {}
  Status(const Status& other) : rep_(other.rep_ ? std::make_unique<Rep>(*other.rep_) : nullptr) {}
  Status& operator=(const Status& other) {
    if (this != &other) rep_ = other.rep_ ? std::make_unique<Rep>(*other.rep_) : nullptr;
    return *this;
  }
  Status(Status&&) noexcept = default;
  Status& operator=(Status&&) noexcept = default;

  bool ok() const { return rep_ == nullptr; }
  StatusCode code() const { return rep_ ? rep_->code : StatusCode::kOk; }
  const std::string& message() const {
    static const std::string empty;
    return rep_ ? rep_->message : empty;
  }
  // "no memory: pool hbm has 3 free granules, 8 asked" or "ok".
  std::string ToString() const {
    if (ok()) return "ok";
    return std::string(StatusCodeName(code())) + ": " + message();
  }
  // The same status with |context| in front of the message: "loading model.safetensors: ...".
  Status WithContext(std::string_view context) const {
    if (ok()) return {};
    return {code(), std::string(context) + ": " + message()};
  }

 private:
  struct Rep {
    StatusCode code;
    std::string message;
  };
  std::unique_ptr<Rep> rep_;
};

inline Status OkStatus() {
  return {};
}
inline Status NoMemory(std::string m) {
  return {StatusCode::kNoMemory, std::move(m)};
}
inline Status ShouldWait(std::string m) {
  return {StatusCode::kShouldWait, std::move(m)};
}
inline Status InvalidArgument(std::string m) {
  return {StatusCode::kInvalidArgument, std::move(m)};
}
inline Status NotFound(std::string m) {
  return {StatusCode::kNotFound, std::move(m)};
}
inline Status BadState(std::string m) {
  return {StatusCode::kBadState, std::move(m)};
}
inline Status Unsupported(std::string m) {
  return {StatusCode::kUnsupported, std::move(m)};
}
inline Status DataLoss(std::string m) {
  return {StatusCode::kDataLoss, std::move(m)};
}
inline Status IoError(std::string m) {
  return {StatusCode::kIo, std::move(m)};
}
inline Status DriverError(std::string m) {
  return {StatusCode::kDriver, std::move(m)};
}
inline Status Cancelled(std::string m) {
  return {StatusCode::kCancelled, std::move(m)};
}

// Represents a T or the reason why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    WEIR_CHECK(!status_.ok(), "a Result without a value needs an error");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  T& value() & {
    WEIR_CHECK(ok(), status_.ToString().c_str());
    return *value_;
  }
  const T& value() const& {
    WEIR_CHECK(ok(), status_.ToString().c_str());
    return *value_;
  }
  T&& value() && {
    WEIR_CHECK(ok(), status_.ToString().c_str());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

namespace status_internal {
inline Status ErrorOf(Status&& s) {
  return std::move(s);
}
template <typename T>
Status ErrorOf(Result<T>&& r) {
  return r.status();
}
inline void ValueOf(Status&&) {}
template <typename T>
T ValueOf(Result<T>&& r) {
  return std::move(r).value();
}
}  // namespace status_internal

}  // namespace weir

// Evaluates to the value of a Result (or to nothing for a Status); on error returns the error from
// the enclosing function:  auto granule = WEIR_TRY(pool.Allocate());
// Not for use in an argument list or braced list after an element that owns something: on the early
// return compilers forget to destroy that element.
#define WEIR_TRY(expr)                                                      \
  __extension__({                                                           \
    auto weir_try_result_ = (expr);                                         \
    if (!weir_try_result_.ok())                                             \
      return ::weir::status_internal::ErrorOf(std::move(weir_try_result_)); \
    ::weir::status_internal::ValueOf(std::move(weir_try_result_));          \
  })
