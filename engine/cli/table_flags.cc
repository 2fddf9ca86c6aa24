#include "engine/cli/table_flags.h"

#include <CLI/CLI.hpp>

namespace weir::cli {

void TableFlags::AddTo(CLI::App& app, bool positional_model, const std::set<std::string>& without) {
  app.add_option("--config", file_, "TOML file; see weir.example.toml")->type_name("FILE");
  app.add_flag("--print-config", print_, "print what is in force, with sources, and stop");
  for (const OptionInfo& o : OptionTable()) {
    if (without.contains(o.section)) continue;
    std::string names = o.short_flag.empty() ? o.flag : o.short_flag + "," + o.flag;
    if (positional_model && o.name() == "model.path") names += ",MODEL";
    const std::string help = o.help + " [" + o.get(Settings()) + "]";
    CLI::Option* option = nullptr;
    if (o.type == OptionType::kSwitch) {
      const std::string off = "--no-" + o.flag.substr(2);
      option = app.add_flag(o.flag + "{true}," + off + "{false}", texts_[o.name()], help);
    } else {
      option = app.add_option(names, texts_[o.name()], help)->type_name("(" + o.accepted + ")");
    }
    option->group("[" + o.section + "]");
    flags_.emplace_back(option, &o);
  }
}

Status TableFlags::Apply(Config* config) const {
  if (!file_.empty()) WEIR_TRY(config->ApplyFile(file_));
  WEIR_TRY(config->ApplyEnvironment(ProcessEnvironment()));
  for (const auto& [option, info] : flags_) {
    if (option->count() > 0) WEIR_TRY(config->ApplyFlag(*info, texts_.at(info->name())));
  }
  return OkStatus();
}

}  // namespace weir::cli
