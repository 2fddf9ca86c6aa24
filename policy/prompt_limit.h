// How many prompt tokens a step may compute for the sake of those who wait for their next token.
//
// A step is as long for everybody in it: one that computes a whole prompt keeps all sequences that
// decode waiting (chunked prefill against a target between tokens: Sarathi-Serve, OSDI'24, 4.3).
#pragma once

#include "policy/policy.h"

namespace weir {

// A prompt is not spread thinner: it would hold KV for long before it generates.
inline constexpr double kLeastPromptTokens = 64;

// What users read of the parameter.
inline constexpr char kItlHelp[] =
    "time between tokens that no prompt shall make longer, milliseconds: steps compute fewer "
    "prompt tokens; 0: as many as fit";

// Represents what a step does beside the prompt tokens it computes.
struct BesidePrompts {
  double decoding = 0;        // sequences, a token each
  double context = 0;         // tokens that they attend to, all together
  double prompt = 0;          // length, mean, with what of it is cached; 0: not known
  double streamed_bytes = 0;  // of weights that are away
  double in_place_bytes = 0;
  // With the last chunk of a prompt, which attends to nearly all of it.
  double StepNs(const StepCost& cost, double prompt_tokens) const;
};

// The most prompt tokens, up to |most|, with which such a step takes no longer than |limit_ns|; 0
// where it takes longer without any.
double PromptTokensWithin(const StepCost& cost, const BesidePrompts& step, double most,
                          double limit_ns);

// How many sequences may decode, up to those of |step|, if each comes with |a_token| prompt tokens
// a step and that is to take no longer than |limit_ns|; 0 where none may. The context goes with
// them.
double DecodingWithin(const StepCost& cost, const BesidePrompts& step, double a_token,
                      double limit_ns);

// What PolicyDecision::prompt_tokens is to be for a target of |itl_ms|: as many as keep it, but
// kLeastPromptTokens or more; 0, as many as fit, without a target, while nobody waits for a next
// token, where the target does not limit a step, or where costs are not known yet.
uint32_t PromptTokensFor(const PolicySnapshot& snapshot, double itl_ms);

}  // namespace weir
