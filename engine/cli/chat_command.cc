#include <cerrno>
#include <cstdio>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>
#include <unistd.h>

#include "engine/cli/command_line.h"
#include "engine/cli/progress.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"
#include "engine/engine.h"

namespace weir::cli {
namespace {

using nlohmann::json;

// Represents standard input as lines; a read that Ctrl-C interrupts gives an empty line.
class LineReader {
 public:
  std::optional<std::string> Next() {
    for (;;) {
      if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      char chunk[4096];
      const ssize_t n = read(STDIN_FILENO, chunk, sizeof(chunk));
      if (n > 0) {
        buffer_.append(chunk, static_cast<size_t>(n));
      } else if (n < 0 && errno == EINTR) {
        buffer_.clear();
        return std::string();
      } else if (!buffer_.empty()) {
        return std::exchange(buffer_, {});
      } else {
        return std::nullopt;
      }
    }
  }

 private:
  std::string buffer_;
};

// Represents one conversation. Prefix caching makes the earlier turns of each prompt cheap.
class Conversation {
 public:
  Conversation(Engine& engine, SamplingParams sampling, std::string system)
      : engine_(engine), sampling_(std::move(sampling)), system_(std::move(system)) {
    Reset();
  }

  void Reset() {
    messages_ = json::array();
    if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
  }

  // Streams the answer. What was said so far stays when an answer is interrupted; a turn that could
  // not start is forgotten.
  Status Say(const std::string& text) {
    messages_.push_back({{"role", "user"}, {"content", text}});
    Result<std::string> answer = Answer();
    if (!answer.ok()) {
      messages_.erase(messages_.size() - 1);
      return answer.status();
    }
    messages_.push_back({{"role", "assistant"}, {"content", *answer}});
    return OkStatus();
  }

 private:
  Result<std::string> Answer() {
    GenerationRequest request;
    request.prompt = WEIR_TRY(
        engine_.ApplyChatTemplate(messages_.dump(-1, ' ', false, json::error_handler_t::replace)));
    request.add_special_tokens = false;
    request.sampling = sampling_;
    const RequestId id = WEIR_TRY(engine_.Submit(std::move(request)));
    std::string answer;
    bool cancelled = false;
    for (;;) {
      WEIR_TRY(engine_.Step());
      for (const GenerationOutput& output : engine_.TakeOutputs()) {
        answer += output.text;
        std::fwrite(output.text.data(), 1, output.text.size(), stdout);
        std::fflush(stdout);
        if (!output.finished) continue;
        std::printf("%s\n", cancelled ? " [interrupted]" : "");
        WEIR_TRY(Status(output.error));
        return answer;
      }
      if (Interrupted() && !cancelled) {
        cancelled = true;
        ClearInterrupt();
        const Status ended = engine_.Cancel(id);
        if (!ended.ok() && ended.code() != StatusCode::kNotFound) return ended;
      }
    }
  }

  Engine& engine_;
  SamplingParams sampling_;
  std::string system_;
  json messages_;
};

}  // namespace

int ChatCommand(const Config& config, const ChatOptions& options) {
  Progress progress(/*quiet=*/false);
  Result<std::unique_ptr<Engine>> opened =
      Engine::Open(config.settings().engine, progress.ForLoading());
  progress.Clear();
  if (!opened.ok()) return Fail(opened.status(), kExitUsage);
  Engine& engine = **opened;
  if (engine.chat_template() == nullptr) {
    return Fail(Unsupported(engine.chat_template_error() + "; 'weir generate' completes text"),
                kExitUsage);
  }
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (terminal) {
    std::printf("/reset starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer\n");
  }
  CatchInterrupts();
  Conversation conversation(engine, config.settings().sampling, options.system);
  LineReader lines;
  for (;;) {
    if (terminal) std::printf("> ");
    std::fflush(stdout);
    const std::optional<std::string> line = lines.Next();
    if (Interrupted()) {
      ClearInterrupt();
      std::printf("\n");
      continue;
    }
    if (!line || *line == "/exit") break;
    if (line->empty()) continue;
    if (*line == "/reset") {
      conversation.Reset();
    } else if (line->starts_with("/")) {
      std::fprintf(stderr, "weir: unknown command %s; known are /reset and /exit\n",
                   OneLine(*line, 60).c_str());
    } else if (const Status said = conversation.Say(*line); !said.ok()) {
      Fail(said, kExitFailed);
      if (!terminal) return kExitFailed;
    }
  }
  if (terminal) std::printf("\n");
  return kExitOk;
}

}  // namespace weir::cli
