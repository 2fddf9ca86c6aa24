// What the tests of vmm/ share: unwrapping results, patterns, statuses as matchers.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/driver.h"

#define EXPECT_OK(expr)                                       \
  do {                                                        \
    const ::weir::Status expect_ok_ = ::weir::AsStatus(expr); \
    EXPECT_TRUE(expect_ok_.ok()) << expect_ok_.ToString();    \
  } while (0)
#define ASSERT_OK(expr)                                       \
  do {                                                        \
    const ::weir::Status assert_ok_ = ::weir::AsStatus(expr); \
    ASSERT_TRUE(assert_ok_.ok()) << assert_ok_.ToString();    \
  } while (0)
#define EXPECT_CODE(expr, expected)                                 \
  do {                                                              \
    const ::weir::Status expect_code_ = ::weir::AsStatus(expr);     \
    EXPECT_EQ(::weir::StatusCodeName(expect_code_.code()),          \
              ::weir::StatusCodeName(::weir::StatusCode::expected)) \
        << expect_code_.ToString();                                 \
  } while (0)

namespace weir {

inline Status AsStatus(const Status& s) {
  return s;
}
template <typename T>
Status AsStatus(const Result<T>& r) {
  return r.status();
}

// Bytes that differ between granules and between words of one granule.
inline std::vector<std::byte> Pattern(uint64_t seed, uint64_t bytes) {
  std::vector<std::byte> data(bytes);
  for (uint64_t i = 0; i * 8 < bytes; ++i) {
    const uint64_t word = (seed + 1) * 0x9e3779b97f4a7c15ULL + i * 0xd1342543de82ef95ULL;
    std::memcpy(&data[i * 8], &word, std::min<uint64_t>(8, bytes - i * 8));
  }
  return data;
}

inline std::vector<std::byte> ReadBytes(Driver& driver, VirtAddr at, uint64_t bytes) {
  std::vector<std::byte> data(bytes);
  const Status s = driver.Read(at, data);
  EXPECT_TRUE(s.ok()) << s.ToString();
  return data;
}

}  // namespace weir
