// Tensor containers: which tensors a safetensors or GGUF file holds and where their bytes are.
//
// Opening reads and checks headers only, with pread, and everything is checked before it is
// returned: every extent lies inside its file, none overlap, shape times dtype equals the extent.
// The objects are immutable afterwards and may be read from any thread. Errors: kIo and kNotFound
// from the system, kDataLoss for a malformed file, kUnsupported for what is well-formed but
// foreign.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/model/byte_source.h"
#include "engine/model/dtype.h"
#include "vmm/status.h"

namespace weir {

// Represents where one tensor lies. [offset, offset + bytes) is inside file |file_index|.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<uint64_t> shape;  // row-major, outermost first; empty: a scalar
  uint32_t file_index = 0;
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;
};

// "[576, 1536]".
std::string ShapeString(std::span<const uint64_t> shape);

// Limits on what is believed before it is checked.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr uint64_t kMaxTensorElements = uint64_t{1} << 48;
inline constexpr uint64_t kMaxGgufMetadataBytes = uint64_t{256} << 20;

// Represents the tensors of one .safetensors file or of the shards of one index file.
class SafetensorsFile {
 public:
  // |path|: a .safetensors file, or a .safetensors.index.json whose shards lie beside it.
  static Result<SafetensorsFile> Open(const std::string& path);
  // One file's worth of bytes from |source|; used by Open, tests and fuzzers.
  static Result<SafetensorsFile> Parse(const ByteSource& source);

  // Sorted by name. Tensors of a dtype weir does not read are left out; Find reports them.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // kNotFound, or kUnsupported if it is there with a foreign dtype.
  Result<const TensorInfo*> Find(std::string_view name) const;
  bool Contains(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // By TensorInfo::file_index; empty after Parse.
  const std::vector<std::shared_ptr<FileSource>>& files() const { return files_; }

 private:
  friend class SafetensorsHeaderReader;
  static Result<SafetensorsFile> ParseSource(const ByteSource& source);
  Status AddShards(const std::string& index_path);
  void BuildIndex();

  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string, std::less<>> foreign_;  // name -> dtype as written
  std::unordered_map<std::string, size_t> by_name_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::shared_ptr<FileSource>> files_;
};

// Value types of GGUF metadata, numbered as in the format.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Represents a metadata array: of strings, or of fixed-size elements kept as they are stored.
struct GgufArray {
  GgufType element_type = GgufType::kUint8;
  uint64_t count = 0;
  std::vector<std::byte> raw;        // fixed-size elements
  std::vector<std::string> strings;  // element_type == kString
};

struct GgufValue {
  GgufType type = GgufType::kUint8;
  // Unsigned types as uint64_t, signed as int64_t, floats as double.
  std::variant<uint64_t, int64_t, double, bool, std::string, GgufArray> value;
};

// Represents one GGUF file (version 2 or 3, little-endian): metadata and tensor directory.
class GgufFile {
 public:
  static Result<GgufFile> Open(const std::string& path);
  static Result<GgufFile> Parse(const ByteSource& source);

  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in file order
  const TensorInfo* Find(std::string_view name) const;                 // null: no such tensor
  const std::shared_ptr<FileSource>& file() const { return file_; }    // null after Parse

  // Typed metadata access. Null or nullopt inside an ok Result: the key is absent. A key of another
  // type, or a number that does not fit, is kInvalidArgument naming the key.
  const GgufValue* FindValue(std::string_view key) const;
  Result<std::optional<std::string>> String(std::string_view key) const;
  Result<std::optional<uint32_t>> Uint(std::string_view key) const;
  Result<std::optional<double>> Float(std::string_view key) const;
  Result<std::optional<bool>> Bool(std::string_view key) const;
  Result<const std::vector<std::string>*> Strings(std::string_view key) const;
  Result<std::optional<std::vector<float>>> Floats(std::string_view key) const;
  Result<std::optional<std::vector<int32_t>>> Ints(std::string_view key) const;

 private:
  friend class GgufReader;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  std::map<std::string, GgufValue, std::less<>> values_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> by_name_;
  std::shared_ptr<FileSource> file_;
};

}  // namespace weir
