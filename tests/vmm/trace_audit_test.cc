// Every rule of the audit is broken once by hand.
#include "vmm/trace_audit.h"

#include <initializer_list>

#include "tests/vmm/test_util.h"

namespace weir {
namespace {

class TraceAuditTest : public ::testing::Test {
 protected:
  void Put(TraceType type, std::initializer_list<uint64_t> args, uint8_t cause = 0) {
    TraceRecord r;
    r.type = static_cast<uint16_t>(type);
    r.cause = cause;
    size_t i = 0;
    for (const uint64_t a : args) r.args[i++] = a;
    audit_.Add(r);
  }
  void Granule(uint64_t id) {
    Put(TraceType::kCreate, {id, 4096});
    Put(TraceType::kGranuleState, {id, 0, 1});
  }
  void ExpectProblem(const char* text) {
    const Status s = audit_.Check();
    EXPECT_CODE(s, kDataLoss);
    EXPECT_NE(s.message().find(text), std::string::npos) << s.message();
  }
  TraceAudit audit_;
};

TEST_F(TraceAuditTest, AProperLifeIsAccepted) {
  Granule(0);
  Put(TraceType::kPlanBegin, {1, 2});
  Put(TraceType::kMap, {0, 5, 0});
  Put(TraceType::kMap, {0, 6, 0, 1});
  Put(TraceType::kGranuleState, {0, 1, 2});
  Put(TraceType::kPlanCommit, {1});
  Put(TraceType::kUnmap, {0, 5, 0});
  Put(TraceType::kUnmap, {0, 6, 0});
  Put(TraceType::kGranuleState, {0, 2, 1});
  Put(TraceType::kGranuleState, {0, 1, 0});
  Put(TraceType::kRelease, {0});
  EXPECT_OK(audit_.CheckAtEnd());
}

TEST_F(TraceAuditTest, ASlotIsMappedOnce) {
  Granule(0);
  Granule(1);
  Put(TraceType::kPlanBegin, {1});
  Put(TraceType::kMap, {0, 5, 0});
  Put(TraceType::kMap, {0, 5, 1});
  ExpectProblem("mapped already");
}

TEST_F(TraceAuditTest, AGranuleIsInTwoSlotsOnlyByAlias) {
  Granule(0);
  Put(TraceType::kPlanBegin, {1});
  Put(TraceType::kMap, {0, 5, 0});
  Put(TraceType::kMap, {0, 6, 0});
  ExpectProblem("without an alias");
}

TEST_F(TraceAuditTest, AnUnmapNamesAnEarlierMap) {
  Granule(0);
  Put(TraceType::kUnmap, {0, 5, 0});
  ExpectProblem("M1");
}

TEST_F(TraceAuditTest, MappingsHappenInPlans) {
  Granule(0);
  Put(TraceType::kMap, {0, 5, 0});
  ExpectProblem("outside every plan");
}

TEST_F(TraceAuditTest, AFreeGranuleIsNotMapped) {
  Put(TraceType::kCreate, {0, 4096});
  Put(TraceType::kPlanBegin, {1});
  Put(TraceType::kMap, {0, 5, 0});
  ExpectProblem("without being allocated");
}

TEST_F(TraceAuditTest, AMappedGranuleDoesNotGoBack) {
  Granule(0);
  Put(TraceType::kPlanBegin, {1});
  Put(TraceType::kMap, {0, 5, 0});
  Put(TraceType::kGranuleState, {0, 1, 0});
  ExpectProblem("while it is mapped");
}

TEST_F(TraceAuditTest, StatesFollowTheDrawing) {
  Put(TraceType::kCreate, {0, 4096});
  Put(TraceType::kGranuleState, {0, 0, 2});
  ExpectProblem("no such transition");
}

TEST_F(TraceAuditTest, ARollbackRestoresTheSlots) {
  Granule(0);
  Put(TraceType::kPlanBegin, {1});
  Put(TraceType::kMap, {0, 5, 0});
  Put(TraceType::kPlanRollback, {1, 9, 0});
  ExpectProblem("T2");
}

TEST_F(TraceAuditTest, ABrokenRollbackIsAllowedToLeaveThem) {
  Granule(0);
  Put(TraceType::kPlanBegin, {1});
  Put(TraceType::kMap, {0, 5, 0});
  Put(TraceType::kPlanRollback, {1, 9, 1});
  EXPECT_OK(audit_.Check());
}

TEST_F(TraceAuditTest, LoansStepsAndGatesArePaired) {
  Put(TraceType::kLoan, {0}, 0);
  Put(TraceType::kLoan, {0}, 2);
  ExpectProblem("a loan is active");
  audit_ = {};
  Put(TraceType::kStepBegin, {1});
  Put(TraceType::kStepBegin, {2});
  ExpectProblem("a step inside a step");
  audit_ = {};
  Put(TraceType::kGateArrive, {1, 2, 3});
  EXPECT_CODE(audit_.CheckAtEnd(), kDataLoss);
  Put(TraceType::kGatePass, {1, 2, 3});
  EXPECT_OK(audit_.CheckAtEnd());
  Put(TraceType::kGatePass, {1, 2, 3});
  ExpectProblem("nobody arrived");
}

TEST_F(TraceAuditTest, ALossIsAProblem) {
  Put(TraceType::kDrop, {3, 3});
  ExpectProblem("3 records are lost");
}

}  // namespace
}  // namespace weir
