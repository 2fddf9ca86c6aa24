// GGUF reader, after ggml's docs/gguf.md. Counts are compared with the bytes that are left before
// anything is allocated for them; sums and products are checked.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/model/convert.h"
#include "engine/model/no_throw.h"
#include "engine/model/tensor_file.h"
#include "vmm/checked_math.h"
#include "vmm/types.h"

namespace weir {

namespace {

constexpr uint32_t kMagic = 0x46554747;                  // "GGUF"
constexpr uint64_t kMinValueBytes = 8 + 4 + 1;           // key length, type, smallest value
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;  // name length, rank, one dim, type, offset
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxRank = 4;

// Bytes of one element, 0 for strings, arrays and unknown types.
uint64_t FixedBytes(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool: return 1;
    case GgufType::kUint16:
    case GgufType::kInt16: return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32: return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64: return 8;
    case GgufType::kString:
    case GgufType::kArray: return 0;
  }
  return 0;
}

// Names of ggml's tensor types, for messages only.
std::string GgmlTypeName(uint32_t type) {
  static constexpr std::string_view kNames[] = {
      "F32",     "F16",    "Q4_0",    "Q4_1",  "Q4_2",   "Q4_3",  "Q5_0",  "Q5_1",
      "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
      "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
      "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16"};
  if (type < std::size(kNames)) return std::string(kNames[type]);
  return "number " + std::to_string(type);
}

std::optional<DType> FromGgmlType(uint32_t type) {
  switch (type) {
    case 0: return DType::kF32;
    case 1: return DType::kF16;
    case 2: return DType::kQ4_0;
    case 3: return DType::kQ4_1;
    case 8: return DType::kQ8_0;
    case 30: return DType::kBF16;
    default: return std::nullopt;
  }
}

std::string Printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 64)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out;
}

template <typename T>
T LoadAs(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Element |p| of fixed-size |type| as the variant GgufValue holds.
GgufValue FixedValue(GgufType type, const std::byte* p) {
  GgufValue out;
  out.type = type;
  switch (type) {
    case GgufType::kUint8: out.value = uint64_t{LoadAs<uint8_t>(p)}; break;
    case GgufType::kInt8: out.value = int64_t{LoadAs<int8_t>(p)}; break;
    case GgufType::kUint16: out.value = uint64_t{LoadAs<uint16_t>(p)}; break;
    case GgufType::kInt16: out.value = int64_t{LoadAs<int16_t>(p)}; break;
    case GgufType::kUint32: out.value = uint64_t{LoadAs<uint32_t>(p)}; break;
    case GgufType::kInt32: out.value = int64_t{LoadAs<int32_t>(p)}; break;
    case GgufType::kUint64: out.value = LoadAs<uint64_t>(p); break;
    case GgufType::kInt64: out.value = LoadAs<int64_t>(p); break;
    case GgufType::kFloat32: out.value = double{LoadAs<float>(p)}; break;
    case GgufType::kFloat64: out.value = LoadAs<double>(p); break;
    case GgufType::kBool: out.value = LoadAs<uint8_t>(p) != 0; break;
    case GgufType::kString:
    case GgufType::kArray: break;
  }
  return out;
}

}  // namespace

// Represents one pass over a file's front; fills a GgufFile.
class GgufReader {
 public:
  explicit GgufReader(const ByteSource& source)
      : source_(source), cursor_(source, kMaxGgufMetadataBytes) {}

  Result<GgufFile> Read() {
    WEIR_TRY(ReadHeader());
    for (uint64_t i = 0; i < value_count_; ++i) WEIR_TRY(ReadKeyValue());
    WEIR_TRY(ReadAlignment());
    // Every record takes at least kMinTensorBytes of what is left, so this bounds the allocation.
    if (tensor_count_ > cursor_.remaining() / kMinTensorBytes) {
      return CountError("tensors", tensor_count_);
    }
    out_.tensors_.reserve(static_cast<size_t>(tensor_count_));
    for (uint64_t i = 0; i < tensor_count_; ++i) WEIR_TRY(ReadTensor());
    WEIR_TRY(PlaceTensors());
    return std::move(out_);
  }

 private:
  static Status CountError(std::string_view what, uint64_t count) {
    return DataLoss("claims " + std::to_string(count) + " " + std::string(what) +
                    ", more than the bytes that are left can hold");
  }

  Status ReadHeader() {
    const auto magic = WEIR_TRY(cursor_.Value<uint32_t>());
    if (magic != kMagic) return DataLoss("not a GGUF file: it does not start with \"GGUF\"");
    out_.version_ = WEIR_TRY(cursor_.Value<uint32_t>());
    if (out_.version_ != 0 && (out_.version_ & 0xffffu) == 0) {
      return Unsupported("big-endian GGUF (accepted: little-endian)");
    }
    if (out_.version_ != 2 && out_.version_ != 3) {
      return Unsupported("GGUF version " + std::to_string(out_.version_) + " (accepted: 2, 3)");
    }
    tensor_count_ = WEIR_TRY(cursor_.Value<uint64_t>());
    value_count_ = WEIR_TRY(cursor_.Value<uint64_t>());
    if (value_count_ > cursor_.remaining() / kMinValueBytes) {
      return CountError("metadata values", value_count_);
    }
    if (tensor_count_ > cursor_.remaining() / kMinTensorBytes) {
      return CountError("tensors", tensor_count_);
    }
    return {};
  }

  Result<std::string> ReadString(uint64_t max_bytes, std::string_view what) {
    const auto length = WEIR_TRY(cursor_.Value<uint64_t>());
    if (length > max_bytes || length > cursor_.remaining()) {
      return DataLoss(std::string(what) + " claims " + std::to_string(length) + " bytes, at most " +
                      std::to_string(std::min(max_bytes, cursor_.remaining())) + " are possible");
    }
    std::string text(static_cast<size_t>(length), '\0');
    WEIR_TRY(cursor_.Read(std::as_writable_bytes(std::span<char>(text.data(), text.size()))));
    return text;
  }

  Status ReadKeyValue() {
    std::string key = WEIR_TRY(ReadString(kMaxKeyBytes, "a metadata key"));
    if (key.empty()) return DataLoss("a metadata key is empty");
    const auto type = WEIR_TRY(cursor_.Value<uint32_t>());
    Result<GgufValue> value = ReadValue(static_cast<GgufType>(type));
    if (!value.ok()) return value.status().WithContext("metadata key " + Printable(key));
    if (!out_.values_.emplace(key, std::move(*value)).second) {
      return DataLoss("duplicate metadata key " + Printable(key));
    }
    return {};
  }

  Result<GgufValue> ReadValue(GgufType type) {
    GgufValue out;
    out.type = type;
    if (type == GgufType::kString) {
      out.value = WEIR_TRY(ReadString(kMaxGgufMetadataBytes, "a string"));
      return out;
    }
    if (type == GgufType::kArray) {
      out.value = WEIR_TRY(ReadArray());
      return out;
    }
    const uint64_t bytes = FixedBytes(type);
    if (bytes == 0) {
      return DataLoss("unknown value type " + std::to_string(static_cast<uint32_t>(type)));
    }
    std::byte raw[8] = {};
    WEIR_TRY(cursor_.Read(std::span<std::byte>(raw, static_cast<size_t>(bytes))));
    if (type == GgufType::kBool && std::to_integer<int>(raw[0]) > 1) {
      return DataLoss("a boolean is neither 0 nor 1");
    }
    return FixedValue(type, raw);
  }

  Result<GgufArray> ReadArray() {
    GgufArray array;
    array.element_type = static_cast<GgufType>(WEIR_TRY(cursor_.Value<uint32_t>()));
    array.count = WEIR_TRY(cursor_.Value<uint64_t>());
    if (array.element_type == GgufType::kString) {
      if (array.count > cursor_.remaining() / 8) return CountError("strings", array.count);
      array.strings.reserve(static_cast<size_t>(array.count));
      for (uint64_t i = 0; i < array.count; ++i) {
        array.strings.push_back(WEIR_TRY(ReadString(kMaxGgufMetadataBytes, "a string")));
      }
      return array;
    }
    if (array.element_type == GgufType::kArray) return Unsupported("an array of arrays");
    const uint64_t element_bytes = FixedBytes(array.element_type);
    if (element_bytes == 0) {
      return DataLoss("unknown element type " +
                      std::to_string(static_cast<uint32_t>(array.element_type)));
    }
    if (array.count > cursor_.remaining() / element_bytes) {
      return CountError("elements", array.count);
    }
    array.raw.resize(static_cast<size_t>(array.count * element_bytes));
    WEIR_TRY(cursor_.Read(array.raw));
    return array;
  }

  Status ReadAlignment() {
    const std::optional<uint32_t> alignment = WEIR_TRY(out_.Uint("general.alignment"));
    if (!alignment) return {};
    if (!IsPowerOfTwo(*alignment) || *alignment < 8 || *alignment > 64 * kKiB) {
      return DataLoss("general.alignment is " + std::to_string(*alignment) +
                      ", a power of two from 8 to 65536 is accepted");
    }
    out_.alignment_ = *alignment;
    return {};
  }

  Status ReadTensor() {
    TensorInfo info;
    info.name = WEIR_TRY(ReadString(kMaxTensorNameBytes, "a tensor name"));
    const std::string shown = "tensor " + Printable(info.name);
    if (info.name.empty()) return DataLoss("a tensor name is empty");
    const auto rank = WEIR_TRY(cursor_.Value<uint32_t>());
    if (rank < 1 || rank > kMaxRank) {
      return DataLoss(shown + " has " + std::to_string(rank) + " dimensions, 1 to 4 are accepted");
    }
    uint64_t rows = 1;
    uint64_t cols = 0;
    for (uint32_t i = 0; i < rank; ++i) {
      const auto dim = WEIR_TRY(cursor_.Value<uint64_t>());
      if (dim == 0 || dim > kMaxTensorElements) {
        return DataLoss(shown + " has a dimension of " + std::to_string(dim) +
                        ", 1 to 2^48 is accepted");
      }
      info.shape.push_back(dim);
      if (i == 0) {
        cols = dim;
        continue;
      }
      const auto product = CheckedMul(rows, dim);
      if (!product || *product > kMaxTensorElements) return DataLoss(shown + " is too large");
      rows = *product;
    }
    const auto elements = CheckedMul(rows, cols);
    if (!elements || *elements > kMaxTensorElements) return DataLoss(shown + " is too large");
    std::reverse(info.shape.begin(), info.shape.end());  // the file has the innermost first
    const auto type = WEIR_TRY(cursor_.Value<uint32_t>());
    const std::optional<DType> dtype = FromGgmlType(type);
    if (!dtype) {
      return Unsupported(shown + " has type " + GgmlTypeName(type) +
                         " (accepted: " + std::string(kAcceptedDTypes) + ")");
    }
    info.dtype = *dtype;
    info.offset = WEIR_TRY(cursor_.Value<uint64_t>());  // from the data section until PlaceTensors
    const auto row_bytes = RowBytes(info.dtype, cols);
    if (!row_bytes) {
      return DataLoss(shown + " has rows of " + std::to_string(cols) + " elements, not whole " +
                      std::string(DTypeName(info.dtype)) + " blocks");
    }
    const auto bytes = CheckedMul(*row_bytes, rows);
    if (!bytes) return DataLoss(shown + " is too large");
    info.bytes = *bytes;
    if (!out_.by_name_.emplace(info.name, out_.tensors_.size()).second) {
      return DataLoss("duplicate " + shown);
    }
    out_.tensors_.push_back(std::move(info));
    return {};
  }

  // Offsets become absolute; inside the file, aligned and disjoint.
  Status PlaceTensors() {
    const auto data = CheckedAlignUp(cursor_.position(), out_.alignment_);
    if (!data) return DataLoss("the data section has no possible start");
    std::vector<const TensorInfo*> by_offset;
    by_offset.reserve(out_.tensors_.size());
    for (TensorInfo& info : out_.tensors_) {
      const std::string shown = "tensor " + Printable(info.name);
      if (info.offset % out_.alignment_ != 0) {
        return DataLoss(shown + " is at offset " + std::to_string(info.offset) +
                        ", not a multiple of the alignment " + std::to_string(out_.alignment_));
      }
      const auto begin = CheckedAdd(*data, info.offset);
      const auto end = begin ? CheckedAdd(*begin, info.bytes) : std::nullopt;
      if (!end || *end > source_.size()) {
        return DataLoss(shown + " ends past the end of the file of " +
                        std::to_string(source_.size()) + " bytes");
      }
      info.offset = *begin;
      by_offset.push_back(&info);
    }
    std::sort(by_offset.begin(), by_offset.end(),
              [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
    for (size_t i = 1; i < by_offset.size(); ++i) {
      const TensorInfo& before = *by_offset[i - 1];
      if (before.offset + before.bytes > by_offset[i]->offset) {  // both were checked above
        return DataLoss("tensors " + Printable(before.name) + " and " +
                        Printable(by_offset[i]->name) + " overlap");
      }
    }
    return {};
  }

  const ByteSource& source_;
  ByteCursor cursor_;
  uint64_t tensor_count_ = 0;
  uint64_t value_count_ = 0;
  GgufFile out_;
};

Result<GgufFile> GgufFile::Parse(const ByteSource& source) {
  return NoThrow([&]() -> Result<GgufFile> { return GgufReader(source).Read(); });
}

Result<GgufFile> GgufFile::Open(const std::string& path) {
  auto file = WEIR_TRY(FileSource::Open(path));
  Result<GgufFile> parsed = Parse(*file);
  if (!parsed.ok()) return parsed.status().WithContext(path);
  parsed->file_ = std::move(file);
  return parsed;
}

const TensorInfo* GgufFile::Find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

const GgufValue* GgufFile::FindValue(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

namespace {

Status WrongType(std::string_view key, std::string_view accepted) {
  return InvalidArgument("metadata key " + Printable(key) + " is not " + std::string(accepted));
}

}  // namespace

Result<std::optional<std::string>> GgufFile::String(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return std::optional<std::string>();
  const auto* text = std::get_if<std::string>(&value->value);
  if (text == nullptr) return WrongType(key, "a string");
  return std::optional<std::string>(*text);
}

Result<std::optional<uint32_t>> GgufFile::Uint(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return std::optional<uint32_t>();
  constexpr uint64_t kMax = std::numeric_limits<uint32_t>::max();
  if (const auto* u = std::get_if<uint64_t>(&value->value); u != nullptr && *u <= kMax) {
    return std::optional<uint32_t>(static_cast<uint32_t>(*u));
  }
  if (const auto* i = std::get_if<int64_t>(&value->value);
      i != nullptr && *i >= 0 && static_cast<uint64_t>(*i) <= kMax) {
    return std::optional<uint32_t>(static_cast<uint32_t>(*i));
  }
  return WrongType(key, "a whole number in [0, 2^32)");
}

Result<std::optional<double>> GgufFile::Float(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return std::optional<double>();
  const auto* d = std::get_if<double>(&value->value);
  if (d == nullptr || !std::isfinite(*d)) return WrongType(key, "a finite number");
  return std::optional<double>(*d);
}

Result<std::optional<bool>> GgufFile::Bool(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return std::optional<bool>();
  const auto* b = std::get_if<bool>(&value->value);
  if (b == nullptr) return WrongType(key, "a boolean");
  return std::optional<bool>(*b);
}

Result<const std::vector<std::string>*> GgufFile::Strings(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return static_cast<const std::vector<std::string>*>(nullptr);
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element_type != GgufType::kString) {
    return WrongType(key, "an array of strings");
  }
  return &array->strings;
}

Result<std::optional<std::vector<float>>> GgufFile::Floats(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return std::optional<std::vector<float>>();
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element_type != GgufType::kFloat32) {
    return WrongType(key, "an array of 32-bit floats");
  }
  std::vector<float> out(static_cast<size_t>(array->count));
  if (!out.empty()) std::memcpy(out.data(), array->raw.data(), array->raw.size());
  return std::optional<std::vector<float>>(std::move(out));
}

Result<std::optional<std::vector<int32_t>>> GgufFile::Ints(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return std::optional<std::vector<int32_t>>();
  const auto* array = std::get_if<GgufArray>(&value->value);
  const bool four_bytes = array != nullptr && (array->element_type == GgufType::kInt32 ||
                                               array->element_type == GgufType::kUint32);
  if (!four_bytes) return WrongType(key, "an array of 32-bit integers");
  std::vector<int32_t> out(static_cast<size_t>(array->count));
  if (!out.empty()) std::memcpy(out.data(), array->raw.data(), array->raw.size());
  if (array->element_type == GgufType::kUint32 &&
      std::any_of(out.begin(), out.end(), [](int32_t v) { return v < 0; })) {
    return WrongType(key, "an array of numbers below 2^31");
  }
  return std::optional<std::vector<int32_t>>(std::move(out));
}

}  // namespace weir
