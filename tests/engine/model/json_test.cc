#include "engine/model/json.h"

#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

TEST(Json, TreeEqualsTheDocument) {
  const std::string text =
      R"({"a":[1,-2,3.5,true,false,null,"é\n"],"b":{"c":{},"d":[]},"e":18446744073709551615})";
  const auto tree = ParseJson(text);
  ASSERT_TRUE(tree.ok()) << tree.status().ToString();
  EXPECT_EQ(*tree, nlohmann::json::parse(text));
}

TEST(Json, ScalarsAloneAreDocuments) {
  EXPECT_EQ(*ParseJson("7"), 7);
  EXPECT_EQ(*ParseJson(" \"x\" "), "x");
}

TEST(Json, DuplicateKeysAreErrorsWithAPosition) {
  EXPECT_FAILS(ParseJson(R"({"a":1,"a":2})"), StatusCode::kDataLoss,
               "byte 10: duplicate key \"a\"");
  EXPECT_FAILS(ParseJson(R"({"x":{"a":1,"\u0061":2}})"), StatusCode::kDataLoss, "duplicate key");
  EXPECT_TRUE(ParseJson(R"({"a":{"a":1},"b":{"a":1}})").ok());
}

TEST(Json, SixtyFourLevelsAreTheLimit) {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_TRUE(ParseJson(nested(64)).ok());
  EXPECT_FAILS(ParseJson(nested(65)), StatusCode::kDataLoss, "more than 64 levels");
  EXPECT_FAILS(ParseJson(std::string(1'000'000, '[')), StatusCode::kDataLoss, "64 levels");
}

TEST(Json, MalformedDocumentsAreErrorsWithAPosition) {
  for (const char* text : {"", "{", "{\"a\"}", "[1,]", "nul", "{} x", "01", "\"\x01\"", "NaN",
                           "{\"a\":1e999}", "'a'", "[1 2]"}) {
    SCOPED_TRACE(text);
    EXPECT_FAILS(ParseJson(text), StatusCode::kDataLoss, "byte ");
  }
}

TEST(Json, InvalidUtf8IsAnError) {
  EXPECT_FAILS(ParseJson("{\"a\":\"\xff\"}"), StatusCode::kDataLoss, "byte");
  EXPECT_FAILS(ParseJson("{\"a\":\"\xc3\"}"), StatusCode::kDataLoss, "byte");
  EXPECT_FAILS(ParseJson("{\"a\":\"\xed\xa0\x80\"}"), StatusCode::kDataLoss, "byte");  // surrogate
  EXPECT_FAILS(ParseJson(R"({"a":"\ud800"})"), StatusCode::kDataLoss, "byte");
}

TEST(Json, EventsAreRefusedByDefault) {
  class Nothing : public JsonEvents {};
  Nothing nothing;
  EXPECT_FAILS(ParseJsonEvents("[]", nothing), StatusCode::kDataLoss, "unexpected an array");
  EXPECT_FAILS(ParseJsonEvents("-1", nothing), StatusCode::kDataLoss, "unexpected a negative");
}

}  // namespace
}  // namespace weir
