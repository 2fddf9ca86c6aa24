// Parts of the HTTP layer that need no socket.
#include "engine/server/http.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace weir::server {
namespace {

TEST(HttpRequest, HeaderGivesTheFirstValueOrNothing) {
  HttpRequest request;
  request.headers = {{"accept", "a"}, {"accept", "b"}};
  EXPECT_EQ(request.Header("accept"), "a");
  EXPECT_EQ(request.Header("host"), "");
}

TEST(HttpErrorBody, IsAnOpenAiErrorObject) {
  const auto body = nlohmann::json::parse(ErrorBody(413, "body of 5 MiB; at most 4 MiB"));
  EXPECT_EQ(body["error"]["message"], "body of 5 MiB; at most 4 MiB");
  EXPECT_EQ(body["error"]["type"], "invalid_request_error");
  EXPECT_TRUE(body["error"]["param"].is_null());
  EXPECT_EQ(body["error"]["code"], 413);
  EXPECT_EQ(nlohmann::json::parse(ErrorBody(503, "full"))["error"]["type"], "server_error");
}

TEST(HttpErrorBody, IsJsonWhateverTheMessageQuotes) {
  EXPECT_TRUE(nlohmann::json::accept(ErrorBody(400, "\"\\\n\xff\xfe" + std::string(1, '\0'))));
}

}  // namespace
}  // namespace weir::server
