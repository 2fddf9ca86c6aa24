// Writers of small model files, right and wrong, for the loader tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>
#include <stdlib.h>

#include "engine/model/byte_source.h"
#include "vmm/types.h"

namespace weir {

template <typename T>
void AppendValue(std::string& out, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof value);
  out.append(raw, sizeof value);
}

inline std::string FloatBytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

inline SpanSource AsSource(const std::string& bytes) {
  return SpanSource(std::as_bytes(std::span<const char>(bytes.data(), bytes.size())));
}

// A header and data as a .safetensors file.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  std::string out;
  AppendValue<uint64_t>(out, header.size());
  return out + header + data;
}

// Collects tensors and writes the header that fits them.
class SafetensorsBuilder {
 public:
  SafetensorsBuilder& Add(const std::string& name, std::string_view dtype,
                          const std::vector<uint64_t>& shape, const std::string& bytes) {
    header_ += header_.empty() ? "{" : ",";
    header_ += "\"" + name + "\":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":[";
    for (size_t i = 0; i < shape.size(); ++i) {
      header_ += (i == 0 ? "" : ",") + std::to_string(shape[i]);
    }
    header_ += "],\"data_offsets\":[" + std::to_string(data_.size()) + ",";
    data_ += bytes;
    header_ += std::to_string(data_.size()) + "]}";
    return *this;
  }
  std::string Build() const {
    return SafetensorsBytes(header_.empty() ? "{}" : header_ + "}", data_);
  }

 private:
  std::string header_;
  std::string data_;
};

// Writes GGUF files; the Raw... members allow any lie.
class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; write general.alignment yourself
  uint64_t extra_tensor_count = 0;
  uint64_t extra_value_count = 0;

  static std::string Str(std::string_view text) {
    std::string out;
    AppendValue<uint64_t>(out, text.size());
    return out + std::string(text);
  }
  GgufBuilder& Raw(std::string_view key, uint32_t type, const std::string& value) {
    values_ += Str(key);
    AppendValue(values_, type);
    values_ += value;
    ++value_count_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t v) { return Fixed(key, 4, v); }
  GgufBuilder& I32(std::string_view key, int32_t v) { return Fixed(key, 5, v); }
  GgufBuilder& F32(std::string_view key, float v) { return Fixed(key, 6, v); }
  GgufBuilder& Bool(std::string_view key, uint8_t v) { return Fixed(key, 7, v); }
  GgufBuilder& String(std::string_view key, std::string_view v) { return Raw(key, 8, Str(v)); }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& list) {
    std::string value;
    AppendValue<uint32_t>(value, 8);
    AppendValue<uint64_t>(value, list.size());
    for (const std::string& text : list) value += Str(text);
    return Raw(key, 9, value);
  }
  template <typename T>
  GgufBuilder& Array(std::string_view key, uint32_t type, const std::vector<T>& list) {
    std::string value;
    AppendValue(value, type);
    AppendValue<uint64_t>(value, list.size());
    for (const T v : list) AppendValue(value, v);
    return Raw(key, 9, value);
  }
  // |shape| outermost first, as in TensorInfo.
  GgufBuilder& Tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                      const std::string& bytes) {
    data_.resize(AlignUp(data_.size(), alignment), '\0');
    RawTensor(name, shape, type, data_.size());
    data_ += bytes;
    return *this;
  }
  GgufBuilder& RawTensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type,
                         uint64_t offset) {
    tensors_ += Str(name);
    AppendValue(tensors_, static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i > 0; --i) AppendValue<uint64_t>(tensors_, shape[i - 1]);
    AppendValue(tensors_, type);
    AppendValue(tensors_, offset);
    ++tensor_count_;
    return *this;
  }
  std::string Build() const {
    std::string out = "GGUF";
    AppendValue(out, version);
    AppendValue<uint64_t>(out, tensor_count_ + extra_tensor_count);
    AppendValue<uint64_t>(out, value_count_ + extra_value_count);
    out += values_ + tensors_;
    out.resize(AlignUp(out.size(), alignment), '\0');
    return out + data_;
  }

 private:
  template <typename T>
  GgufBuilder& Fixed(std::string_view key, uint32_t type, T v) {
    std::string value;
    AppendValue(value, v);
    return Raw(key, type, value);
  }
  std::string values_;
  std::string tensors_;
  std::string data_;
  uint64_t value_count_ = 0;
  uint64_t tensor_count_ = 0;
};

// A directory removed with what is in it.
class TempDir {
 public:
  TempDir() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "weir_model_test_XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string Write(const std::string& name, const std::string& bytes) const {
    const std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary) << bytes;
    return file;
  }

 private:
  std::string path_;
};

inline std::string ReadFixture(const std::string& name) {
  std::ifstream in("tests/fixtures/model/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace weir

// The status of |expr| has |code| and a message that contains |text|.
#define EXPECT_FAILS(expr, want_code, text)                                               \
  do {                                                                                    \
    const auto& failing_ = (expr);                                                        \
    EXPECT_FALSE(failing_.ok());                                                          \
    const ::weir::Status failure_ = ::weir::StatusOf(failing_);                           \
    EXPECT_EQ(::weir::StatusCodeName(failure_.code()), ::weir::StatusCodeName(want_code)) \
        << failure_.message();                                                            \
    EXPECT_NE(failure_.message().find(text), std::string::npos) << failure_.ToString();   \
  } while (0)

namespace weir {
inline const Status& StatusOf(const Status& status) {
  return status;
}
template <typename T>
const Status& StatusOf(const Result<T>& result) {
  return result.status();
}
}  // namespace weir
