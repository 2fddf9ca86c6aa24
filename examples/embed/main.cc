// Text from a model, by a program that embeds weir.
//
//   embed MODEL [PROMPT]      MODEL: a Hugging Face directory or a .gguf file
//
// Built with CMake as CMakeLists.txt says, or by hand:
//   g++ -std=c++20 -O2 main.cc $(pkg-config --cflags --libs weir) -o embed
#include <iostream>
#include <utility>

#include "engine/engine.h"

namespace {

int Fail(const weir::Status& status) {
  std::cerr << "embed: " << status.ToString() << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: embed MODEL [PROMPT]\n";
    return 2;
  }
  weir::EngineOptions options;
  options.model = argv[1];
  options.max_num_seqs = 4;
  options.max_model_len = 128;
  auto engine = weir::Engine::Open(options);
  if (!engine.ok()) return Fail(engine.status());

  weir::GenerationRequest request;
  request.prompt = argc == 3 ? argv[2] : "Once upon a time";
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 32;
  auto id = (*engine)->Submit(std::move(request));
  if (!id.ok()) return Fail(id.status());

  // One step computes the next tokens of every running request; false: nothing is left to do.
  for (;;) {
    auto busy = (*engine)->Step();
    if (!busy.ok()) return Fail(busy.status());
    for (const weir::GenerationOutput& output : (*engine)->TakeOutputs()) {
      std::cout << output.text << std::flush;
      if (output.reason == weir::FinishReason::kError) return Fail(output.error);
    }
    if (!*busy) break;
  }
  std::cout << "\n";
  return 0;
}
