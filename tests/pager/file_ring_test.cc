#include "pager/file_ring.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "pager/file_ring_internal.h"

namespace weir {
namespace {

using file_ring_internal::Advance;
using file_ring_internal::Next;

// An unlinked file of |bytes| bytes; byte i is i * 31 mod 251.
class TempFile {
 public:
  explicit TempFile(size_t bytes, int flags = 0) {
    fd_ = ::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    std::vector<std::byte> data(bytes);
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(i * 31 % 251);
    if (bytes > 0) {
      EXPECT_EQ(::pwrite(fd_, data.data(), bytes, 0), static_cast<ssize_t>(bytes));
    }
  }
  ~TempFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

class FileRingTest : public testing::TestWithParam<FileRing::Mode> {
 protected:
  std::unique_ptr<FileRing> Make(uint32_t depth = 8, std::span<std::byte> fixed = {}) {
    auto ring = FileRing::Create({.depth = depth, .fixed = fixed, .mode = GetParam()});
    EXPECT_TRUE(ring.ok()) << ring.status().ToString();
    return std::move(*ring);
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, FileRingTest,
                         testing::Values(FileRing::Mode::kIoUring, FileRing::Mode::kPread),
                         [](const auto& param) {
                           return param.param == FileRing::Mode::kIoUring ? "IoUring" : "Pread";
                         });

FileRequest Read(int fd, uint64_t offset, std::span<std::byte> buffer) {
  FileRequest r;
  r.fd = fd;
  r.offset = offset;
  r.buffer = buffer;
  return r;
}

TEST_P(FileRingTest, ReadsComeWithTheirBytesInAnyOrderAndBeyondTheDepth) {
  const TempFile file(100'000);
  auto ring = Make(4);
  std::vector<std::vector<std::byte>> buffers(50, std::vector<std::byte>(1777));
  std::vector<FileRequest> requests;
  for (size_t i = 0; i < buffers.size(); ++i) {
    requests.push_back(Read(file.fd(), i * 1900, buffers[i]));
  }
  for (FileRequest& r : requests) ASSERT_TRUE(ring->Submit(&r).ok());
  ASSERT_TRUE(ring->Wait(&requests[37]).ok());
  ASSERT_TRUE(ring->Wait(nullptr).ok());
  for (size_t i = 0; i < buffers.size(); ++i) {
    EXPECT_TRUE(requests[i].done);
    EXPECT_TRUE(requests[i].status.ok()) << requests[i].status.ToString();
    EXPECT_EQ(requests[i].transferred, 1777U);
    for (size_t k = 0; k < 1777; ++k) {
      ASSERT_EQ(buffers[i][k], static_cast<std::byte>((i * 1900 + k) * 31 % 251));
    }
  }
}

TEST_P(FileRingTest, WhatIsWrittenIsRead) {
  const TempFile file(1);
  auto ring = Make();
  std::vector<std::byte> out(300'000);
  std::mt19937_64 rng(5);
  for (std::byte& b : out) b = static_cast<std::byte>(rng());
  FileRequest write = Read(file.fd(), 123, out);
  write.op = FileRequest::Op::kWrite;
  ASSERT_TRUE(ring->Submit(&write).ok());
  ASSERT_TRUE(ring->Wait(&write).ok());
  std::vector<std::byte> in(out.size());
  FileRequest read = Read(file.fd(), 123, in);
  ASSERT_TRUE(ring->Submit(&read).ok());
  ASSERT_TRUE(ring->Wait(&read).ok());
  EXPECT_EQ(in, out);
}

TEST_P(FileRingTest, AFileThatEndsTooEarlyIsDataLossAndSaysHowFarItCame) {
  const TempFile file(5000);
  auto ring = Make();
  std::vector<std::byte> buffer(4096);
  FileRequest r = Read(file.fd(), 4000, buffer);
  ASSERT_TRUE(ring->Submit(&r).ok());
  const Status status = ring->Wait(&r);
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("after 1000 bytes"), std::string::npos) << status.ToString();
  EXPECT_EQ(r.transferred, 1000U);
}

TEST_P(FileRingTest, DirectReadsIntoRegisteredMemoryWork) {
  const TempFile file(0, O_DIRECT);
  if (file.fd() < 0) GTEST_SKIP() << "no O_DIRECT in /tmp";
  constexpr size_t kBytes = 256 * 1024;
  void* memory = std::aligned_alloc(4096, kBytes);
  const std::span<std::byte> fixed(static_cast<std::byte*>(memory), kBytes);
  auto ring = Make(8, fixed);
  for (size_t i = 0; i < kBytes; ++i) fixed[i] = static_cast<std::byte>(i * 7 % 253);
  FileRequest write = Read(file.fd(), 0, fixed);
  write.op = FileRequest::Op::kWrite;
  ASSERT_TRUE(ring->Submit(&write).ok());
  ASSERT_TRUE(ring->Wait(&write).ok()) << write.status.ToString();
  std::memset(memory, 0, kBytes);
  std::vector<FileRequest> requests;
  for (size_t at = 0; at < kBytes; at += 32'768) {
    requests.push_back(Read(file.fd(), at, fixed.subspan(at, 32'768)));
  }
  for (FileRequest& r : requests) ASSERT_TRUE(ring->Submit(&r).ok());
  ASSERT_TRUE(ring->Wait(nullptr).ok());
  for (size_t i = 0; i < kBytes; ++i) ASSERT_EQ(fixed[i], static_cast<std::byte>(i * 7 % 253));
  // A direct read that goes beyond the end.
  FileRequest beyond = Read(file.fd(), kBytes - 4096, fixed.first(8192));
  ASSERT_TRUE(ring->Submit(&beyond).ok());
  EXPECT_EQ(ring->Wait(&beyond).code(), StatusCode::kDataLoss) << beyond.status.ToString();
  ring.reset();
  std::free(memory);
}

TEST_P(FileRingTest, ErrorsOfTheSystemBelongToTheirRequestOnly) {
  const TempFile file(5000);
  auto ring = Make();
  std::vector<std::byte> a(100), b(100);
  const int read_only = ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  FileRequest bad = Read(read_only, 0, a);
  bad.op = FileRequest::Op::kWrite;
  FileRequest good = Read(file.fd(), 0, b);
  ASSERT_TRUE(ring->Submit(&bad).ok());
  ASSERT_TRUE(ring->Submit(&good).ok());
  EXPECT_EQ(ring->Wait(&bad).code(), StatusCode::kIo);
  EXPECT_TRUE(ring->Wait(&good).ok());
  ::close(read_only);
}

TEST_P(FileRingTest, SenselessRequestsAreRefused) {
  auto ring = Make();
  FileRequest r = Read(-1, 0, {});
  EXPECT_EQ(ring->Submit(&r).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(r.done);
  FileRequest never;
  EXPECT_EQ(ring->Wait(&never).code(), StatusCode::kBadState);
  EXPECT_FALSE(FileRing::Create({.depth = 0, .mode = GetParam()}).ok());
}

TEST_P(FileRingTest, ARingThatIsDestroyedFirstFinishesWhatIsInFlight) {
  const TempFile file(100'000);
  std::vector<std::byte> buffer(50'000);
  FileRequest r = Read(file.fd(), 0, buffer);
  {
    auto ring = Make();
    ASSERT_TRUE(ring->Submit(&r).ok());
  }
  if (GetParam() == FileRing::Mode::kIoUring) {
    EXPECT_TRUE(r.done);
  }
}

TEST(FileRingModeTest, TheModeAndItsReasonAreReported) {
  auto plain = FileRing::Create({.mode = FileRing::Mode::kPread});
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ((*plain)->mode(), FileRing::Mode::kPread);
  EXPECT_FALSE((*plain)->mode_reason().empty());
  auto ring = FileRing::Create({});
  ASSERT_TRUE(ring.ok());
  EXPECT_EQ((*ring)->mode_reason().empty(), (*ring)->mode() == FileRing::Mode::kIoUring);
}

class AdvanceTest : public testing::Test {
 protected:
  AdvanceTest() : buffer_(100) { r_ = Read(3, 0, buffer_); }
  std::vector<std::byte> buffer_;
  FileRequest r_;
};

TEST_F(AdvanceTest, ShortCountsInterruptionsAndFullQueuesAreResumed) {
  EXPECT_EQ(Advance(r_, 30), Next::kResubmit);
  EXPECT_EQ(Advance(r_, -EINTR), Next::kResubmit);
  EXPECT_EQ(Advance(r_, -EAGAIN), Next::kResubmit);
  EXPECT_EQ(r_.transferred, 30U);
  EXPECT_EQ(Advance(r_, 70), Next::kDone);
  EXPECT_TRUE(r_.done);
  EXPECT_TRUE(r_.status.ok());
}

TEST_F(AdvanceTest, AnErrorEndsTheRequestAndNamesIt) {
  EXPECT_EQ(Advance(r_, -EIO), Next::kDone);
  EXPECT_EQ(r_.status.code(), StatusCode::kIo);
  EXPECT_NE(r_.status.message().find("read of 100 bytes"), std::string::npos);
}

TEST_F(AdvanceTest, TheRestOfADirectReadAtTheEndOfAFileIsDataLossNotAnArgumentError) {
  EXPECT_EQ(Advance(r_, 50), Next::kResubmit);
  EXPECT_EQ(Advance(r_, -EINVAL), Next::kDone);
  EXPECT_EQ(r_.status.code(), StatusCode::kDataLoss);
}

TEST_F(AdvanceTest, AWriteThatMovesNothingIsAnError) {
  r_.op = FileRequest::Op::kWrite;
  EXPECT_EQ(Advance(r_, 0), Next::kDone);
  EXPECT_EQ(r_.status.code(), StatusCode::kIo);
}

}  // namespace
}  // namespace weir
