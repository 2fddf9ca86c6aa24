// docs/configuration.md and weir.example.toml, written from the table of options.
#include <algorithm>

#include "engine/cli/config.h"

namespace weir::cli {
namespace {

std::string Escaped(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) {
    text.insert(at, "\\");
  }
  return text;
}

bool NeedsQuotes(OptionType type) {
  return type == OptionType::kText || type == OptionType::kSize || type == OptionType::kChoice;
}

}  // namespace

std::string ConfigurationPage() {
  const Settings defaults;
  std::string out =
      "# Configuration\n\n"
      "<!-- Written by `weir config docs`; a test compares. -->\n\n"
      "Every option can be given in three ways. The first of these that names it wins:\n\n"
      "1. a flag, `--max-num-seqs 64`; switches have a `--no-` form;\n"
      "2. an environment variable, `WEIR_<SECTION>_<KEY>`, such as "
      "`WEIR_SCHEDULER_MAX_NUM_SEQS=64`;\n"
      "3. a TOML file named by `--config FILE`.\n\n"
      "A size is a number of bytes, or a number with `KiB`, `MiB`, `GiB`, `TiB`, `KB`, `MB`, "
      "`GB`, `TB`. Unknown keys, sections and `WEIR_<SECTION>_...` variables are errors. "
      "`--print-config` prints what is in force and where each value comes from; `weir config "
      "check FILE` checks a file; `weir.example.toml` lists everything.\n";
  for (const std::string& section : Sections()) {
    out += "\n## [" + section +
           "]\n\n| key | flag | accepted | default | meaning |\n| --- | --- | --- | --- | --- |\n";
    for (const OptionInfo& o : OptionTable()) {
      if (o.section != section) continue;
      const std::string value = o.get(defaults);
      out += "| `" + o.key + "` | `" + (o.short_flag.empty() ? "" : o.short_flag + "`, `") +
             o.flag + "` | " + Escaped(o.accepted) + " | " +
             (value.empty() ? "" : "`" + value + "`") + " | " + Escaped(o.help) + " |\n";
    }
  }
  out +=
      "\n`weir run` has defaults of its own: `max_num_seqs` 48, `max_tokens` 64, "
      "`max_model_len` 2048 (or the model's, if smaller), and a tight `hbm_budget`.\n";
  return out;
}

std::string ExampleToml() {
  const Settings defaults;
  std::string out =
      "# Every option of weir with its default. weir run --config weir.toml\n"
      "# Flags and WEIR_<SECTION>_<KEY> win over this file. Unknown keys are errors.\n";
  for (const std::string& section : Sections()) {
    out += "\n[" + section + "]\n";
    for (const OptionInfo& o : OptionTable()) {
      if (o.section != section) continue;
      std::string value = o.get(defaults);
      if (NeedsQuotes(o.type)) value = "\"" + value + "\"";
      if (o.type == OptionType::kReal && value.find('.') == std::string::npos) value += ".0";
      out += "# " + o.help + ". Accepted: " + o.accepted + ".\n# " + o.key + " = " + value + "\n";
    }
  }
  return out;
}

}  // namespace weir::cli
