#include <cstdio>

#include "engine/cli/command_line.h"
#include "engine/cli/model_sizes.h"
#include "engine/cli/size_text.h"
#include "policy/registry.h"

namespace weir::cli {
namespace {

void Line(const char* label, const std::string& text) {
  std::printf("%-22s %s\n", label, text.c_str());
}

}  // namespace

int InfoCommand(const Config& config) {
  const EngineOptions& options = config.settings().engine;
  const Result<ModelSizes> sizes = MeasureModel(options);
  if (!sizes.ok()) return Fail(sizes.status(), kExitUsage);
  const ModelConfig& c = sizes->config;
  Line("model", OneLine(options.model, 300));
  Line("family", std::string(ModelFamilyName(c.family)));
  Line("shape", std::to_string(c.num_layers) + " layers, hidden " + std::to_string(c.hidden_size) +
                    ", MLP " + std::to_string(c.intermediate_size) + ", " +
                    std::to_string(c.num_heads) + " heads of " + std::to_string(c.head_dim) +
                    " on " + std::to_string(c.num_kv_heads) + " KV heads");
  Line("vocabulary", Grouped(c.vocab_size) + " tokens" +
                         (c.tie_word_embeddings ? ", output tied to the embedding" : ""));
  Line("context", Grouped(c.max_position) + " tokens");
  Line("chat template", sizes->has_chat_template ? "yes" : "no");
  Line("tokenizer", sizes->tokenizer ? "yes" : "no");
  Line("files", HumanSize(sizes->stored_bytes));
  Line("weights in memory", HumanSize(sizes->weight_bytes));
  Line("step buffers", HumanSize(sizes->scratch_bytes) + " (max_num_seqs " +
                           std::to_string(options.max_num_seqs) + ", max_num_batched_tokens " +
                           std::to_string(options.max_num_batched_tokens) + ")");
  Line("KV cache", HumanSize(sizes->kv_block_bytes / 16) + " a token, " +
                       HumanSize(sizes->kv_block_bytes) + " a block of 16");
  const uint64_t fixed = sizes->weight_bytes + sizes->scratch_bytes;
  Line("one full sequence", HumanSize(sizes->kv_block_bytes * ((sizes->max_model_len + 15) / 16)) +
                                " of KV (" + Grouped(sizes->max_model_len) + " tokens)");
  Line("nothing ever moves at",
       HumanSize(fixed) + " + KV; for max_num_seqs of 512 tokens " +
           HumanSize(fixed + options.max_num_seqs * 32 * sizes->kv_block_bytes));
  Line("least budget", LeastBudget(options));
  return kExitOk;
}

int PoliciesCommand() {
  for (const PolicyInfo& policy : ListPolicies()) {
    std::printf("%s%s\n    %s\n", policy.name.c_str(),
                policy.use == PolicyUse::kTests ? " (for tests)" : "", policy.help.c_str());
    for (const ParamInfo& p : policy.params) {
      std::printf("    %-20s default %-6s %-16s %s\n", p.name.c_str(), p.default_value.c_str(),
                  p.range.c_str(), p.help.c_str());
    }
  }
  std::printf("\nUse: --policy 'tide{hold_steps=128; min_gain=0.05}'\n");
  return kExitOk;
}

}  // namespace weir::cli
