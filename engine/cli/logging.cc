#include "engine/cli/logging.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

constexpr size_t kMostLogBytes = 4000;
constexpr size_t kMostFieldBytes = 500;

std::atomic<LogFormat> g_format{LogFormat::kText};

std::string Quoted(std::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool IsPlain(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("-_.:/").find(c) != std::string_view::npos;
  });
}

std::string Compose(std::string_view message, LogFields fields) {
  const bool json = g_format == LogFormat::kJson;
  std::string line = OneLine(message, kMostLogBytes);
  if (json) line = "\"message\":" + Quoted(line);
  for (const LogField& f : fields) {
    const std::string value = OneLine(f.value, kMostFieldBytes);
    line += json ? "," + Quoted(f.name) + ":" : " " + std::string(f.name) + "=";
    line += f.is_number || (!json && IsPlain(value)) ? value : Quoted(value);
  }
  return line;
}

void Log(spdlog::level::level_enum level, std::string_view message, LogFields fields) {
  if (!spdlog::should_log(level)) return;
  spdlog::log(level, Compose(message, fields));
}

}  // namespace

void StartLog(const Settings& settings) {
  g_format = settings.log_format;
  auto logger =
      std::make_shared<spdlog::logger>("weir", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(settings.log_format == LogFormat::kJson
                          ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l",%v})"
                          : "%Y-%m-%d %H:%M:%S.%e %l: %v");
  logger->set_level(spdlog::level::from_str(settings.log_level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

void LogDebug(std::string_view message, LogFields fields) {
  Log(spdlog::level::debug, message, fields);
}
void LogInfo(std::string_view message, LogFields fields) {
  Log(spdlog::level::info, message, fields);
}
void LogWarn(std::string_view message, LogFields fields) {
  Log(spdlog::level::warn, message, fields);
}
void LogError(std::string_view message, LogFields fields) {
  Log(spdlog::level::err, message, fields);
}

}  // namespace weir::cli
