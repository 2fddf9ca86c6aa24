#include "policy/registry.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "policy/resident.h"

namespace weir {
namespace {

TEST(PolicyRegistry, MakesEveryBuiltinByItsName) {
  const auto policies = ListPolicies();
  ASSERT_GE(policies.size(), 4u);
  for (const PolicyInfo& info : policies) {
    auto policy = MakePolicy(info.name);
    ASSERT_TRUE(policy.ok()) << policy.status().ToString();
    EXPECT_EQ((*policy)->name(), info.name);
    EXPECT_FALSE(info.help.empty());
    const auto values = (*policy)->Parameters();
    ASSERT_EQ(values.size(), info.params.size());
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(values[i].first, info.params[i].name);
      EXPECT_EQ(values[i].second, info.params[i].default_value);
      EXPECT_FALSE(info.params[i].help.empty());
    }
  }
}

TEST(PolicyRegistry, OnlyTheStressPolicyIsForTests) {
  for (const PolicyInfo& info : ListPolicies()) {
    EXPECT_EQ(info.use == PolicyUse::kTests, info.name == "stress_random") << info.name;
  }
}

TEST(PolicyRegistry, ParsesParameters) {
  auto policy = MakePolicy("  tide { hold_steps = 7 ;min_gain=0.5; } ");
  ASSERT_TRUE(policy.ok()) << policy.status().ToString();
  const auto values = (*policy)->Parameters();
  const auto has = [&](const std::string& key, const std::string& value) {
    return std::count(values.begin(), values.end(), std::make_pair(key, value)) == 1;
  };
  EXPECT_TRUE(has("hold_steps", "7"));
  EXPECT_TRUE(has("min_gain", "0.5"));
  EXPECT_TRUE(has("headroom", "1.15"));
}

TEST(PolicyRegistry, AnEffectiveParameterListMakesTheSamePolicyAgain) {
  for (const PolicyInfo& info : ListPolicies()) {
    auto policy = MakePolicy(info.name);
    ASSERT_TRUE(policy.ok());
    std::string spec = info.name + "{";
    for (const auto& [key, value] : (*policy)->Parameters()) spec += key + "=" + value + ";";
    auto again = MakePolicy(spec + "}");
    ASSERT_TRUE(again.ok()) << again.status().ToString();
    EXPECT_EQ((*again)->Parameters(), (*policy)->Parameters());
  }
}

TEST(PolicyRegistry, AnUnknownNameListsTheKnownOnesAndTheNearest) {
  auto policy = MakePolicy("tied");
  ASSERT_FALSE(policy.ok());
  EXPECT_EQ(policy.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(policy.status().message(),
            "unknown policy \"tied\"; known are: resident, fixed, static, zero-inference, "
            "oneiros, tide, stress_random. "
            "Did you mean \"tide\"?");
}

TEST(PolicyRegistry, AnUnknownParameterNamesThePolicyToo) {
  auto policy = MakePolicy("tide{hold_step=3}");
  ASSERT_FALSE(policy.ok());
  EXPECT_EQ(policy.status().code(), StatusCode::kNotFound);
  EXPECT_NE(policy.status().message().find("policy tide: unknown parameter \"hold_step\""),
            std::string::npos);
  EXPECT_NE(policy.status().message().find("Did you mean \"hold_steps\"?"), std::string::npos);
  EXPECT_NE(MakePolicy("resident{x=1}").status().message().find("there are none here"),
            std::string::npos);
}

TEST(PolicyRegistry, MalformedSpecsAreRejectedWithTheAcceptedForm) {
  for (const char* spec : {"", "   ", "{}", "tide{", "tide}", "tide{min_gain}", "tide{;}",
                           "tide{min_gain=1;min_gain=2}", "tide{{}}", "tide{min_gain=1}x",
                           "tide{min_gain=}", "tide{=1}", "tide{min_gain=2000}"}) {
    auto policy = MakePolicy(spec);
    EXPECT_FALSE(policy.ok()) << spec;
  }
  EXPECT_NE(MakePolicy("tide{").status().message().find("name{key=value; key=value}"),
            std::string::npos);
}

TEST(PolicyRegistry, ANameIsRegisteredOnce) {
  PolicyRegistry registry;
  ASSERT_TRUE(RegisterBuiltinPolicies(registry).ok());
  const auto factory = [](const PolicyParams&) -> Result<std::unique_ptr<Policy>> {
    return std::unique_ptr<Policy>(std::make_unique<ResidentPolicy>());
  };
  EXPECT_EQ(registry.Register({.name = "tide", .help = "h", .params = {}}, factory).code(),
            StatusCode::kInvalidArgument);
  EXPECT_FALSE(registry.Register({.name = "Bad-Name", .help = "h", .params = {}}, factory).ok());
  EXPECT_TRUE(registry.Register({.name = "mine", .help = "h", .params = {}}, factory).ok());
  EXPECT_TRUE(registry.Make("mine").ok());
}

}  // namespace
}  // namespace weir
