// What a completion means for a request; shared by both ways of executing it. Private to pager/.
#pragma once

#include <cerrno>
#include <cstring>
#include <string>

#include "pager/file_ring.h"

namespace weir::file_ring_internal {

inline const char* OpName(const FileRequest& request) {
  return request.op == FileRequest::Op::kRead ? "read" : "write";
}

inline std::string Where(const FileRequest& request) {
  return std::string(OpName(request)) + " of " + std::to_string(request.buffer.size()) +
         " bytes at offset " + std::to_string(request.offset);
}

enum class Next : uint8_t { kResubmit, kDone };

// Applies |result| (bytes moved or -errno) to |request|. kResubmit: the rest is still to be moved
// (a short count, an interruption, a full queue). kDone sets |status| and |done|.
inline Next Advance(FileRequest& request, int64_t result) {
  const auto finish = [&request](Status status) {
    request.status = std::move(status);
    request.done = true;
    return Next::kDone;
  };
  const std::string progress = " after " + std::to_string(request.transferred) + " bytes";
  if (result == -EINTR || result == -EAGAIN) return Next::kResubmit;
  // With O_DIRECT the rest of a file that ends inside a block cannot be asked for: EINVAL.
  const bool rest_refused = result == -EINVAL && request.transferred > 0;
  if (result == 0 || (rest_refused && request.op == FileRequest::Op::kRead)) {
    return finish(request.op == FileRequest::Op::kRead
                      ? DataLoss(Where(request) + ": the file ends" + progress)
                      : IoError(Where(request) + ": nothing written" + progress));
  }
  if (result < 0) {
    return finish(
        IoError(Where(request) + ": " + std::strerror(static_cast<int>(-result)) + progress));
  }
  request.transferred += static_cast<uint64_t>(result);
  if (request.transferred < request.buffer.size()) return Next::kResubmit;
  return finish(OkStatus());
}

}  // namespace weir::file_ring_internal
