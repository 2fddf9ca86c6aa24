#include "engine/cli/command_line.h"

#include <cstdio>
#include <functional>
#include <set>
#include <string_view>

#include <CLI/CLI.hpp>

#include "engine/cli/bench_commands.h"
#include "engine/cli/logging.h"
#include "engine/cli/size_text.h"
#include "engine/cli/table_flags.h"
#include "policy/registry.h"

namespace weir::cli {
namespace {

// Represents the parsed command line.
struct Program {
  CLI::App app{"weir serves language models in less device memory than weights and KV cache want.",
               "weir"};
  TableFlags run_flags, generate_flags, chat_flags, info_flags, serve_flags;
  RunOptions run;
  GenerateOptions generate;
  ChatOptions chat;
  BenchCommands bench;
  std::string check_file;
  CLI::App *run_app = nullptr, *generate_app = nullptr, *chat_app = nullptr, *info_app = nullptr;
  CLI::App* serve_app = nullptr;
  CLI::App *policies_app = nullptr, *config_app = nullptr, *check_app = nullptr;
  CLI::App *docs_app = nullptr, *example_app = nullptr;

  Program() {
    app.set_version_flag("--version,-V", VersionText());
    app.require_subcommand(1);
    app.footer(
        "Examples:\n"
        "  weir run -m model.gguf                        the main job: tide against resident\n"
        "  weir chat -m model.gguf\n"
        "  weir generate -m model.gguf -p 'Once upon a time' -n 100\n"
        "  weir serve -m model.gguf                      for OpenAI clients, on port 8000\n"
        "  weir bench throughput -m model.gguf           and latency, serve-trace: measure\n"
        "  weir info model.gguf                          sizes, and the least budget that runs\n"
        "'weir COMMAND --help' has each command's options and examples.");
    AddRun();
    AddGenerate();
    AddChat();
    AddServe();
    bench.AddTo(app);
    AddOthers();
  }

  void AddRun() {
    run_app = app.add_subcommand("run", "run a file of prompts in a tight budget and compare");
    run_app
        ->add_option("--prompts", run.prompts, "JSON Lines; default: 300 prompts that come along")
        ->type_name("FILE");
    run_app->add_option("--limit", run.limit, "only the first so many prompts; 0: all")
        ->type_name("N");
    run_app
        ->add_option("--request-rate", run.request_rate,
                     "requests a second, Poisson arrivals; 0: all at once")
        ->check(CLI::NonNegativeNumber);
    run_app
        ->add_option("--kv-share", run.kv_share,
                     "share of the KV wanted that the budget has room for, when it is auto [0.1]")
        ->check(CLI::Range(0.0, 1.0));
    run_app->add_option("--arrival-seed", run.arrival_seed, "of the arrivals");
    run_app->add_flag("--verify", run.verify, "a third pass with room for everything");
    run_app->add_flag("--only", run.only, "no second pass under policy resident");
    run_app->add_flag("--verbose", run.verbose, "print every answer in full");
    run_app->add_flag("--quiet", run.quiet, "no progress and no answers, the report alone");
    run_app->add_option("--json", run.json, "write everything measured")->type_name("FILE");
    run_app->add_option("--out", run.out, "write the answers, JSON Lines")->type_name("FILE");
    run_flags.AddTo(*run_app, false, {"server"});
    run_app->footer(
        "Examples:\n"
        "  weir run -m model.gguf\n"
        "  weir run -m model.gguf --hbm-budget 320MiB --verify --json report.json\n"
        "  weir run -m model.gguf --prompts mine.jsonl --request-rate 4 --policy "
        "'tide{hold_steps=128}'\n"
        "Exit code: 0 when every request ended and all passes gave the same tokens.");
  }

  void AddGenerate() {
    generate_app = app.add_subcommand("generate", "complete one prompt");
    generate_app->add_option("-p,--prompt", generate.prompt, "the text; -: standard input")
        ->required()
        ->type_name("TEXT");
    generate_app->add_flag("--chat", generate.chat, "the prompt is a message: chat template");
    generate_app->add_option("--system", generate.system, "system message; implies --chat")
        ->type_name("TEXT");
    generate_app->add_option("--stop", generate.stop, "end before this text; may be repeated")
        ->type_name("TEXT");
    generate_app->add_flag("--raw", generate.raw, "print token ids, one a line");
    generate_flags.AddTo(*generate_app, false, {"server"});
    generate_app->footer(
        "Examples:\n"
        "  weir generate -m model.gguf -p 'The sea was' -n 50\n"
        "  weir generate -m model.gguf --chat -p 'Why is the sky blue?' --temperature 0.7\n"
        "  cat letter.txt | weir generate -m model.gguf --system 'Summarise.' -p -");
  }

  void AddChat() {
    chat_app = app.add_subcommand("chat", "talk to a model");
    chat_app->add_option("--system", chat.system, "system message")->type_name("TEXT");
    chat_flags.AddTo(*chat_app, false, {"server"});
    chat_app->footer(
        "Examples:\n"
        "  weir chat -m model.gguf\n"
        "  weir chat -m model.gguf --system 'You are a pirate.' --temperature 0.8\n"
        "/reset starts over, /exit or Ctrl-D ends, Ctrl-C stops an answer.");
  }

  void AddServe() {
    serve_app = app.add_subcommand("serve", "an OpenAI-compatible HTTP server");
    serve_flags.AddTo(*serve_app, false, {"sampling"});
    serve_app->footer(
        "Examples:\n"
        "  weir serve -m model.gguf\n"
        "  weir serve -m model.gguf --hbm-budget 320MiB --max-num-seqs 48\n"
        "  weir serve -m model.gguf --host 0.0.0.0 --api-key-file keys.txt --log-format json\n"
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n"
        "Routes: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics and others: "
        "docs/api.md.\n"
        "SIGTERM or Ctrl-C: new requests are refused, those in flight have --shutdown-timeout "
        "seconds; a second signal ends them at once.\n"
        "Exit code: 0 when all in flight ended, 1 when some were aborted or the engine failed.");
  }

  void AddOthers() {
    info_app = app.add_subcommand("info", "what a model weighs, and the least budget that runs");
    info_flags.AddTo(*info_app, true, {"server"});
    info_app->footer(
        "Examples:\n  weir info model.gguf\n  weir info model-directory "
        "--max-num-seqs 8");
    policies_app = app.add_subcommand("policies", "list the policies and their parameters");
    policies_app->footer(
        "Examples:\n  weir policies\n  weir run -m model.gguf --policy "
        "'fixed{granules_per_layer=2}'");
    config_app = app.add_subcommand("config", "check a configuration file, print its reference");
    config_app->require_subcommand(1);
    check_app = config_app->add_subcommand("check", "check a file: exit code 0 or 2");
    check_app->add_option("FILE", check_file, "a TOML file")->required();
    docs_app = config_app->add_subcommand("docs", "print docs/configuration.md");
    example_app = config_app->add_subcommand("example", "print weir.example.toml");
    config_app->footer(
        "Examples:\n  weir config check weir.toml\n  weir config example > "
        "weir.toml");
  }

  int Dispatch();
  int CheckFile() const {
    Config config;
    const Status status = config.ApplyFile(check_file);
    if (!status.ok()) return Fail(status, kExitUsage);
    std::printf("%s: ok\n", OneLine(check_file, 300).c_str());
    return kExitOk;
  }
};

// Sets what differs from the table's defaults for `run`.
Status RunDefaults(Config* config) {
  WEIR_TRY(config->SetDefault("scheduler.max_num_seqs", "48", "default of run"));
  WEIR_TRY(config->SetDefault("scheduler.max_model_len", "2048", "default of run"));
  return config->SetDefault("sampling.max_tokens", "64", "default of run");
}

// A server says what it does.
Status ServeDefaults(Config* config) {
  return config->SetDefault("log.level", "info", "default of serve");
}

int Program::Dispatch() {
  if (policies_app->parsed()) return PoliciesCommand();
  if (bench.parsed()) return bench.Run();
  if (check_app->parsed()) return CheckFile();
  if (docs_app->parsed() || example_app->parsed()) {
    std::fputs((docs_app->parsed() ? ConfigurationPage() : ExampleToml()).c_str(), stdout);
    return kExitOk;
  }
  const TableFlags& flags = run_app->parsed()        ? run_flags
                            : generate_app->parsed() ? generate_flags
                            : chat_app->parsed()     ? chat_flags
                            : serve_app->parsed()    ? serve_flags
                                                     : info_flags;
  Config config;
  Status status = run_app->parsed()     ? RunDefaults(&config)
                  : serve_app->parsed() ? ServeDefaults(&config)
                                        : OkStatus();
  if (status.ok()) status = flags.Apply(&config);
  if (!status.ok()) return Fail(status, kExitUsage);
  if (flags.print()) {
    std::fputs(config.ToToml().c_str(), stdout);
    return kExitOk;
  }
  StartLog(config.settings());
  if (run_app->parsed()) return RunCommand(config, run);
  if (generate_app->parsed()) return GenerateCommand(config, generate);
  if (chat_app->parsed()) return ChatCommand(config, chat);
  if (serve_app->parsed()) return ServeCommand(config);
  return InfoCommand(config);
}

// What can stand where a sub-command is missing: "; accepted: run, generate, ...".
std::string Accepted(const CLI::App& app) {
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  std::string out;
  for (const std::string& word : at->remaining()) out += (out.empty() ? ", not " : " ") + word;
  out += "; accepted: ";
  const auto subcommands = at->get_subcommands([](const CLI::App*) { return true; });
  for (const CLI::App* sub : subcommands) {
    out += (sub == subcommands.front() ? "" : ", ") + sub->get_name();
  }
  return out;
}

// The nearest flag to an argument nobody knows; empty when there is none.
std::string Hint(const CLI::App& app, const std::string& message) {
  std::set<std::string> known;
  const std::function<void(const CLI::App&)> collect = [&](const CLI::App& a) {
    for (const CLI::Option* o : a.get_options()) {
      for (const std::string& name : o->get_lnames()) known.insert("--" + name);
    }
    for (const CLI::App* sub : a.get_subcommands()) collect(*sub);
  };
  for (const CLI::App* sub : app.get_subcommands()) collect(*sub);
  const size_t at = message.find("--");
  if (at == std::string::npos) return "";
  const size_t end = message.find_first_of(" =", at);
  const std::string name = message.substr(at, end == std::string::npos ? end : end - at);
  const std::string nearest = NearestName(name, {known.begin(), known.end()});
  return nearest.empty() ? "" : "; did you mean " + nearest + "?";
}

}  // namespace

int Fail(const Status& status, int code) {
  std::fflush(stdout);
  std::fprintf(stderr, "weir: error: %s\n", OneLine(status.ToString(), 2000).c_str());
  return code;
}

int Main(int argc, const char* const* argv) {
  Program program;
  try {
    program.app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return program.app.exit(e);  // help, version
    std::string hint;
    if (dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr) hint = Hint(program.app, e.what());
    if (std::string_view(e.what()).starts_with("A subcommand")) hint = Accepted(program.app);
    return Fail(InvalidArgument(e.what() + hint + " (see weir --help)"), kExitUsage);
  }
  return program.Dispatch();
}

}  // namespace weir::cli
