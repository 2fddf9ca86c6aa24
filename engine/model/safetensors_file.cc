// safetensors reader. The header is parsed by events against its one legal shape, so memory stays
// proportional to it whatever it says, and the tensors must tile the data section without holes.
#include <algorithm>
#include <filesystem>

#include "engine/model/convert.h"
#include "engine/model/json.h"
#include "engine/model/no_throw.h"
#include "engine/model/tensor_file.h"
#include "vmm/checked_math.h"

namespace weir {

namespace {

constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 4096;
constexpr uint64_t kMaxIndexBytes = 64u << 20;
constexpr size_t kMaxShards = 4096;

// All dtypes of the format, so that the tiling can be checked around tensors weir does not read.
struct SafeDType {
  std::string_view name;
  uint32_t bytes;
  std::optional<DType> dtype;
};
constexpr SafeDType kSafeDTypes[] = {
    {"F32", 4, DType::kF32},      {"F16", 2, DType::kF16},      {"BF16", 2, DType::kBF16},
    {"BOOL", 1, std::nullopt},    {"U8", 1, std::nullopt},      {"I8", 1, std::nullopt},
    {"F8_E5M2", 1, std::nullopt}, {"F8_E4M3", 1, std::nullopt}, {"F8_E8M0", 1, std::nullopt},
    {"I16", 2, std::nullopt},     {"U16", 2, std::nullopt},     {"I32", 4, std::nullopt},
    {"U32", 4, std::nullopt},     {"F64", 8, std::nullopt},     {"I64", 8, std::nullopt},
    {"U64", 8, std::nullopt},     {"C64", 8, std::nullopt}};

const SafeDType* FindSafeDType(std::string_view name) {
  for (const SafeDType& entry : kSafeDTypes) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string Shown(const std::string& name) {
  return "tensor \"" + name.substr(0, 128) + "\"";
}

}  // namespace

std::string ShapeString(std::span<const uint64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + "]";
}

// Represents the state machine over the header's events:
//   { "__metadata__": {string: string, ...}, name: {"dtype": s, "shape": [n...],
//     "data_offsets": [begin, end]}, ... }
class SafetensorsHeaderReader : public JsonEvents {
 public:
  SafetensorsHeaderReader(uint64_t data_begin, uint64_t data_bytes, SafetensorsFile& out)
      : data_begin_(data_begin), data_bytes_(data_bytes), out_(out) {}

  Status OnKey(std::string& key) override {
    if (level_ == 1) {
      name_ = std::move(key);
      in_metadata_ = name_ == "__metadata__";
      if (name_.empty() || name_.size() > kMaxNameBytes) {
        return DataLoss("a tensor name has " + std::to_string(name_.size()) +
                        " bytes, 1 to 4096 are accepted");
      }
      return {};
    }
    key_ = std::move(key);
    if (in_metadata_ || key_ == "dtype" || key_ == "shape" || key_ == "data_offsets") return {};
    return DataLoss(Shown(name_) + " has the unknown key \"" + key_.substr(0, 64) + "\"");
  }

  Status OnStartObject() override {
    if (level_ >= 2 || in_array_) return Unexpected("an object");
    ++level_;
    key_.clear();
    if (level_ == 2) tensor_ = Tensor();
    return {};
  }

  Status OnEndObject() override {
    --level_;
    if (level_ == 1 && !in_metadata_) return FinishTensor();
    return {};
  }

  Status OnString(std::string& value) override {
    if (level_ != 2 || in_array_) return Unexpected("a string");
    if (in_metadata_) {
      out_.metadata_.emplace(key_, std::move(value));
      return {};
    }
    if (key_ != "dtype") return Unexpected("a string");
    tensor_.dtype = FindSafeDType(value);
    if (tensor_.dtype == nullptr) {
      return Unsupported(Shown(name_) + " has the unknown dtype \"" + value.substr(0, 64) + "\"");
    }
    return {};
  }

  Status OnStartArray() override {
    if (level_ != 2 || in_metadata_ || in_array_ || key_ == "dtype") return Unexpected("an array");
    in_array_ = true;
    (key_ == "shape" ? tensor_.has_shape : tensor_.has_offsets) = true;
    return {};
  }

  Status OnEndArray() override {
    in_array_ = false;
    return {};
  }

  Status OnUnsigned(uint64_t value) override {
    if (!in_array_) return Unexpected("a number");
    std::vector<uint64_t>& list = key_ == "shape" ? tensor_.shape : tensor_.offsets;
    const size_t most = key_ == "shape" ? kMaxRank : 2;
    if (list.size() == most) {
      return DataLoss(Shown(name_) + ": " + key_ + " has more than " + std::to_string(most) +
                      " numbers");
    }
    list.push_back(value);
    return {};
  }

  // After the parse: every byte of the data section belongs to exactly one tensor.
  Status CheckTiling() {
    std::sort(extents_.begin(), extents_.end());
    uint64_t expected = 0;
    for (const auto& [begin, end] : extents_) {
      if (begin != expected) {
        return DataLoss((begin < expected ? "tensors overlap at data offset "
                                          : "there is a hole before data offset ") +
                        std::to_string(begin));
      }
      expected = end;
    }
    if (expected != data_bytes_) {
      return DataLoss("the tensors end at data offset " + std::to_string(expected) +
                      ", the file at " + std::to_string(data_bytes_));
    }
    return {};
  }

 private:
  struct Tensor {
    const SafeDType* dtype = nullptr;
    bool has_shape = false;
    bool has_offsets = false;
    std::vector<uint64_t> shape;
    std::vector<uint64_t> offsets;
  };

  Status FinishTensor() {
    if (tensor_.dtype == nullptr || !tensor_.has_shape || tensor_.offsets.size() != 2) {
      return DataLoss(Shown(name_) + " needs dtype, shape and two data_offsets");
    }
    uint64_t elements = 1;
    for (const uint64_t dim : tensor_.shape) {
      const auto product = CheckedMul(elements, dim);
      if (dim > kMaxTensorElements || !product || *product > kMaxTensorElements) {
        return DataLoss(Shown(name_) + " has the impossible shape " + ShapeString(tensor_.shape));
      }
      elements = *product;
    }
    const uint64_t begin = tensor_.offsets[0];
    const uint64_t end = tensor_.offsets[1];
    if (begin > end || end > data_bytes_) {
      return DataLoss(Shown(name_) + " has data_offsets [" + std::to_string(begin) + ", " +
                      std::to_string(end) + "], the data section has " +
                      std::to_string(data_bytes_) + " bytes");
    }
    const auto bytes = CheckedMul(elements, tensor_.dtype->bytes);
    if (!bytes || *bytes != end - begin) {
      return DataLoss(Shown(name_) + " of shape " + ShapeString(tensor_.shape) + " and dtype " +
                      std::string(tensor_.dtype->name) + " does not fill its " +
                      std::to_string(end - begin) + " bytes");
    }
    extents_.emplace_back(begin, end);
    if (!tensor_.dtype->dtype) {
      out_.foreign_.emplace(name_, tensor_.dtype->name);
      return {};
    }
    // begin <= data_bytes and data_begin + data_bytes is the file size: no overflow.
    out_.tensors_.push_back(TensorInfo{std::move(name_), *tensor_.dtype->dtype,
                                       std::move(tensor_.shape), 0, data_begin_ + begin, *bytes});
    return {};
  }

  const uint64_t data_begin_;
  const uint64_t data_bytes_;
  SafetensorsFile& out_;
  int level_ = 0;  // open objects
  bool in_array_ = false;
  bool in_metadata_ = false;
  std::string name_;
  std::string key_;
  Tensor tensor_;
  std::vector<std::pair<uint64_t, uint64_t>> extents_;
};

Result<SafetensorsFile> SafetensorsFile::Parse(const ByteSource& source) {
  return NoThrow([&] { return ParseSource(source); });
}

Result<SafetensorsFile> SafetensorsFile::ParseSource(const ByteSource& source) {
  ByteCursor cursor(source, source.size());
  const auto header_bytes = WEIR_TRY(cursor.Value<uint64_t>());
  if (header_bytes > kMaxSafetensorsHeaderBytes || header_bytes > cursor.remaining() ||
      header_bytes < 2) {
    return DataLoss("the header claims " + std::to_string(header_bytes) + " bytes, 2 to " +
                    std::to_string(std::min(kMaxSafetensorsHeaderBytes, cursor.remaining())) +
                    " are possible");
  }
  std::string header(static_cast<size_t>(header_bytes), '\0');
  WEIR_TRY(cursor.Read(std::as_writable_bytes(std::span<char>(header.data(), header.size()))));
  if (header[0] != '{') return DataLoss("the header does not start with '{'");
  SafetensorsFile out;
  SafetensorsHeaderReader reader(cursor.position(), cursor.remaining(), out);
  WEIR_TRY(ParseJsonEvents(header, reader));
  WEIR_TRY(reader.CheckTiling());
  out.BuildIndex();
  return out;
}

namespace {

// Represents {"metadata": {...}, "weight_map": {name: shard, ...}}.
class IndexReader : public JsonEvents {
 public:
  std::map<std::string, std::vector<std::string>> shards;  // shard -> tensor names
  bool has_map = false;

  Status OnStartObject() override {
    ++level_;
    if (level_ == 2 && key_ == "weight_map") has_map = in_map_ = true;
    return in_map_ && level_ > 2 ? Unexpected("an object") : Status();
  }
  Status OnEndObject() override {
    --level_;
    if (level_ == 1) in_map_ = false;
    return {};
  }
  Status OnKey(std::string& key) override {
    key_ = std::move(key);
    return {};
  }
  Status OnString(std::string& value) override {
    if (!in_map_) return level_ > 0 ? Status() : Unexpected("a string");
    // A shard is a plain name beside the index: never a path out of the model's directory.
    // The ending also keeps an index from naming itself.
    if (value.size() > 255 || !value.ends_with(".safetensors") ||
        value.find('/') != std::string::npos || value.find('\0') != std::string::npos) {
      return DataLoss("weight_map names the shard \"" + value.substr(0, 64) +
                      "\", a *.safetensors file name without directories is accepted");
    }
    shards[value].push_back(key_);
    if (shards.size() > kMaxShards) return DataLoss("weight_map names more than 4096 shards");
    return {};
  }
  Status OnStartArray() override {
    if (level_ == 1 && key_ == "weight_map") return Unexpected("an array");
    return Ignore("an array");
  }
  Status OnNull() override { return Ignore("null"); }
  Status OnBool(bool) override { return Ignore("a boolean"); }
  Status OnUnsigned(uint64_t) override { return Ignore("a number"); }
  Status OnNegative(int64_t) override { return Ignore("a number"); }
  Status OnDouble(double) override { return Ignore("a number"); }

 private:
  // Anything may stand outside the map, inside the top object.
  Status Ignore(std::string_view what) const {
    return in_map_ || level_ == 0 ? Unexpected(what) : Status();
  }
  int level_ = 0;
  bool in_map_ = false;
  std::string key_;
};

}  // namespace

Status SafetensorsFile::AddShards(const std::string& index_path) {
  const std::string text = WEIR_TRY(ReadTextFile(index_path, kMaxIndexBytes));
  IndexReader index;
  const Status parsed = ParseJsonEvents(text, index);
  if (!parsed.ok()) return parsed.WithContext(index_path);
  if (!index.has_map || index.shards.empty()) {
    return DataLoss(index_path + ": weight_map is missing or empty");
  }
  const auto directory = std::filesystem::path(index_path).parent_path();
  for (const auto& [shard, names] : index.shards) {
    SafetensorsFile file = WEIR_TRY(Open((directory / shard).string()));
    const auto file_index = static_cast<uint32_t>(files_.size());
    for (const std::string& name : names) {
      Result<const TensorInfo*> found = file.Find(name);
      if (!found.ok() && found.status().code() == StatusCode::kUnsupported) {
        foreign_.emplace(name, file.foreign_.find(name)->second);
        continue;
      }
      if (!found.ok()) {
        return DataLoss(index_path + ": " + Shown(name) + " is not in its shard " + shard);
      }
      tensors_.push_back(**found);
      tensors_.back().file_index = file_index;
    }
    files_.push_back(file.files_[0]);
  }
  BuildIndex();
  return {};
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  if (path.ends_with(".json")) {
    return NoThrow([&]() -> Result<SafetensorsFile> {
      SafetensorsFile out;
      WEIR_TRY(out.AddShards(path));
      return out;
    });
  }
  auto file = WEIR_TRY(FileSource::Open(path));
  Result<SafetensorsFile> parsed = Parse(*file);
  if (!parsed.ok()) return parsed.status().WithContext(path);
  parsed->files_.push_back(std::move(file));
  return parsed;
}

void SafetensorsFile::BuildIndex() {
  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  by_name_.clear();
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
}

bool SafetensorsFile::Contains(std::string_view name) const {
  return by_name_.contains(std::string(name)) || foreign_.contains(name);
}

Result<const TensorInfo*> SafetensorsFile::Find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it != by_name_.end()) return &tensors_[it->second];
  const auto foreign = foreign_.find(name);
  if (foreign != foreign_.end()) {
    return Unsupported(Shown(std::string(name)) + " has dtype " + foreign->second +
                       " (accepted: F32, F16, BF16)");
  }
  return NotFound(Shown(std::string(name)) + " is not in the file");
}

}  // namespace weir
