// How many prompt tokens a step computes while requests wait for KV.
//
// A step that takes as many prompt tokens as fit (chunked prefill: Sarathi-Serve, OSDI'24) makes
// long steps and, until the next request ends, short ones that only decode. While KV is full
// prompts can do no more than take the place of requests that end, so they may as well come evenly:
// their products then share the reading of the weights with every step's, and what streams in hides
// behind every step, not behind some.
#pragma once

#include "policy/policy.h"

namespace weir {

// A prompt is not spread thinner: it would hold KV for long before it generates.
inline constexpr double kLeastPromptTokens = 64;

// What users read of the parameter.
inline constexpr char kPromptPaceHelp[] =
    "prompt tokens of a step while requests wait for KV, over those that take the place of what it "
    "generates; 0: as many as fit";

// What PolicyDecision::prompt_tokens is to be: |pace| times the prompt tokens that take the place
// of what a step generates, or more while KV is far from full; 0, as many as fit, where every
// request waiting has room, where nothing is known of requests yet, or |pace| is 0.
uint32_t PacedPromptTokens(const PolicySnapshot& snapshot, double pace);

}  // namespace weir
