#include "bench/kernels/cuda_kernel_bench_options.h"

#include <charconv>
#include <optional>
#include <string_view>

namespace weir::bench {
namespace {

constexpr uint32_t kMostTokens = 1 << 20;

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

std::optional<uint32_t> Number(std::string_view text, uint32_t least, uint32_t most) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (value < least || value > most) return std::nullopt;
  return value;
}

Status Wrong(std::string_view option, std::string_view accepted, std::string_view given) {
  return InvalidArgument(std::string(option) + " takes " + std::string(accepted) + ", got \"" +
                         std::string(given) + "\"");
}

Result<uint32_t> NumberOf(std::string_view option, std::string_view text, uint32_t least,
                          uint32_t most) {
  if (const auto value = Number(text, least, most)) return *value;
  return Wrong(option, "a number from " + std::to_string(least) + " to " + std::to_string(most),
               text);
}

Status AddDecodes(std::string_view text, std::vector<StepSpec>* specs) {
  if (text == "none") return OkStatus();
  for (const std::string_view item : Split(text, ',')) {
    const bool spread = item.ends_with('~');
    const auto parts = Split(item.substr(0, item.size() - (spread ? 1 : 0)), 'x');
    const auto batch = Number(parts[0], 1, 4096);
    const auto context = Number(parts.back(), 1, kMostTokens);
    if (parts.size() != 2 || !batch || !context || (spread && *batch < 2)) {
      return Wrong("--decode",
                   "none, or SEQUENCESxCONTEXT,... with 1 to 4096 sequences and contexts of 1 to "
                   "1048576 tokens (64x2048), with ~ behind it from 1 to twice as many (2 "
                   "sequences or more)",
                   item);
    }
    specs->push_back({.sequences = *batch, .rows = 1, .context = *context, .spread = spread});
  }
  return OkStatus();
}

Status AddPrefills(std::string_view text, std::vector<StepSpec>* specs) {
  if (text == "none") return OkStatus();
  for (const std::string_view item : Split(text, ',')) {
    const auto behind = Split(item, '@');
    const auto parts = Split(behind[0], 'x');
    const auto sequences = Number(parts[0], 1, 4096);
    const auto rows = Number(parts.back(), 2, 65536);
    const auto context = behind.size() == 2 ? Number(behind[1], 2, kMostTokens) : rows;
    if (parts.size() != 2 || behind.size() > 2 || !sequences || !rows || !context ||
        *context < *rows || uint64_t{*sequences} * *rows > 131072) {
      return Wrong("--prefill",
                   "none, or SEQUENCESxTOKENS[@CONTEXT],... with 2 to 65536 new tokens a sequence, "
                   "131072 in all, and contexts that include them (1x2048, 4x512@8192)",
                   item);
    }
    specs->push_back({.sequences = *sequences, .rows = *rows, .context = *context});
  }
  return OkStatus();
}

Status SetSections(std::string_view text, KernelBenchOptions* o) {
  o->profile = o->step = o->energy = o->gemm = false;
  for (const std::string_view item : Split(text, ',')) {
    if (item == "profile") {
      o->profile = true;
    } else if (item == "step") {
      o->step = true;
    } else if (item == "energy") {
      o->energy = true;
    } else if (item == "gemm") {
      o->gemm = true;
    } else if (item != "ceilings") {  // always measured
      return Wrong("--sections", "a list of ceilings, profile, step, energy, gemm", item);
    }
  }
  return OkStatus();
}

Status SetOption(std::string_view option, std::string_view value, std::string_view* decode,
                 std::string_view* prefill, KernelBenchOptions* o) {
  if (option == "--decode") {
    *decode = value;
  } else if (option == "--prefill") {
    *prefill = value;
  } else if (option == "--sections") {
    return SetSections(value, o);
  } else if (option == "--kv-order") {
    if (value != "token-head" && value != "head-token") {
      return Wrong(option, "token-head or head-token", value);
    }
    o->model.kv_order =
        value == "token-head" ? cuda::KvOrder::kTokenHead : cuda::KvOrder::kHeadToken;
  } else if (option == "--skinny") {
    using enum cuda::SkinnyUse;
    if (value != "timed" && value != "never" && value != "always") {
      return Wrong(option, "timed, never or always", value);
    }
    o->model.skinny = value == "timed" ? kTimed : value == "never" ? kNever : kAlways;
  } else if (option == "--decode-attention") {
    if (value != "auto" && value != "flashinfer") {
      return Wrong(option, "auto or flashinfer", value);
    }
    o->model.own_attention = value == "auto";
  } else if (option == "--overlap") {
    if (value != "none" && value != "prologue") return Wrong(option, "none or prologue", value);
    o->overlap = value == "none" ? cuda::Overlap::kNone : cuda::Overlap::kPrologue;
  } else if (option == "--candidates") {
    o->model.candidates = static_cast<int>(WEIR_TRY(NumberOf(option, value, 1, 64)));
  } else if (option == "--tune-layers") {
    o->model.tune_layers = WEIR_TRY(NumberOf(option, value, 0, 1024));
  } else if (option == "--gemm-rows") {
    o->gemm_rows = WEIR_TRY(NumberOf(option, value, 1, 4096));
  } else if (option == "--rounds") {
    o->rounds = WEIR_TRY(NumberOf(option, value, 1, 1000));
  } else if (option == "--budget") {
    o->budget_gib = WEIR_TRY(NumberOf(option, value, 2, 1024));
  } else if (option == "--device") {
    o->device = static_cast<int>(WEIR_TRY(NumberOf(option, value, 0, 63)));
  } else if (option == "--json") {
    o->json = value;
  } else {
    return InvalidArgument("no option " + std::string(option) + "\n" + KernelBenchOptions::Usage());
  }
  return OkStatus();
}

}  // namespace

std::string KernelBenchOptions::Usage() {
  return "weir_cuda_kernel_bench CONFIG [options]\n"
         "  CONFIG                     a model's config.json, or a folder with one\n"
         "  --decode BxC[~],...|none   B sequences behind C tokens each "
         "(1x1024,64x2048,256x1024);\n"
         "                             ~: behind 1 to twice as many\n"
         "  --prefill NxR[@C],...|none N sequences with R new tokens each, context C "
         "(1x2048,4x2048)\n"
         "  --sections LIST            of ceilings, profile, step, energy, gemm (all); "
         "ceilings always run\n"
         "  --kv-order ORDER           token-head (default) or head-token\n"
         "  --overlap HOW              none (default) or prologue: kernels timed alone\n"
         "  --no-split-k               no split-K in products\n"
         "  --compress-weights         gate and up compressed (docs/gpu.md)\n"
         "  --skinny USE               our own products of few rows: timed (default), never, "
         "always\n"
         "  --decode-attention USE     of decode steps: auto (default; our own kernel where it "
         "takes\n"
         "                             the shape) or flashinfer; the other is timed beside it\n"
         "  --candidates N             algorithms timed a product (6, as the engine)\n"
         "  --tune-layers N            layers' weights to time them with (0: 256 MiB; the engine: "
         "4)\n"
         "  --gemm-rows N              the last bucket of the gemm section (512)\n"
         "  --rounds N                 replays timed (21)\n"
         "  --budget GIB               device memory at most (70)\n"
         "  --device N                 CUDA device (0)\n"
         "  --json FILE\n";
}

Result<KernelBenchOptions> KernelBenchOptions::Parse(const std::vector<std::string>& arguments) {
  KernelBenchOptions o;
  std::string_view decode = "1x1024,64x2048,256x1024";
  std::string_view prefill = "1x2048,4x2048";
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& option = arguments[i];
    if (option == "--no-split-k") {
      o.model.split_k = false;
    } else if (option == "--compress-weights") {
      o.model.compress_weights = true;
    } else if (!option.starts_with("-")) {
      if (!o.config.empty()) {
        return InvalidArgument("one CONFIG, got \"" + o.config + "\" and \"" + option + "\"");
      }
      o.config = option;
    } else if (i + 1 == arguments.size()) {
      return InvalidArgument("the last argument, " + option +
                             ", is no option, or one without its value\n" + Usage());
    } else {
      WEIR_TRY(SetOption(option, arguments[++i], &decode, &prefill, &o));
    }
  }
  if (o.config.empty()) return InvalidArgument("a model's config.json is missing\n" + Usage());
  WEIR_TRY(AddDecodes(decode, &o.specs));
  WEIR_TRY(AddPrefills(prefill, &o.specs));
  return o;
}

}  // namespace weir::bench
