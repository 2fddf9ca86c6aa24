// Attaching to processes that behave, die, overflow or are something else: what can be read is read
// and what was wrong is said.
#include "tools/trace/attach.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <thread>

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/tools/trace_builder.h"
#include "tools/trace/commands.h"
#include "tools/trace/reader.h"
#include "vmm/trace.h"

namespace weir::trace_tool {
namespace {

void Pause(int ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

// Represents a forked process that runs |body| and then waits to be killed.
class Child {
 public:
  explicit Child(const std::function<void()>& body) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      body();
      (void)!write(ready[1], "x", 1);
      for (;;) pause();
    }
    close(ready[1]);
    char c = 0;
    EXPECT_EQ(read(ready[0], &c, 1), 1);
    close(ready[0]);
  }
  ~Child() { Kill(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    dead_ = pid_;
    pid_ = 0;
  }
  int pid() const { return pid_ > 0 ? pid_ : dead_; }

 private:
  int pid_ = 0, dead_ = 0;
};

std::shared_ptr<TraceSegment> g_segment;  // of the child
Tracer* g_tracer = nullptr;

void MakeTracer(uint32_t ring_records) {
  g_segment = TraceSegment::Create(TraceSegment::Sharing::kShared, ring_records).value();
  g_tracer = new Tracer({.mask = 0, .segment = g_segment});
  (void)g_tracer->SetMetadata(TraceBuilder::DefaultMeta());
  SetTracer(g_tracer);
}

// A process that takes "steps" for ever: |events| records each, every |ms| milliseconds.
std::function<void()> Server(uint32_t ring_records, uint64_t events, int ms) {
  return [=] {
    MakeTracer(ring_records);
    std::thread([=] {
      for (uint64_t n = 0;; ++n) {
        if (g_tracer->FollowRecorder()) {
          TraceEmit(TraceType::kSnapshotBegin, 0);
          TraceEmit(TraceType::kQueue, 0, 1, 2, 3, 4, 5, 12);
          TraceEmit(TraceType::kSnapshotEnd, 0);
        }
        for (uint64_t i = 0; i < events; ++i) TraceEmit(TraceType::kStepEnd, 0, n, i, 1, 1000);
        Pause(ms);
      }
    }).detach();
  };
}

std::string Why(const std::function<void()>& what) {
  try {
    what();
  } catch (const TraceError& e) {
    return e.what();
  }
  return "";
}

struct Outcome {
  int status = 0;
  std::string out, err;
};
Outcome Command(std::vector<std::string> args) {
  args.insert(args.begin(), "weir-trace");
  std::vector<const char*> argv;
  for (const std::string& a : args) argv.push_back(a.c_str());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome o;
  o.status = Main(static_cast<int>(argv.size()), argv.data());
  o.out = ::testing::internal::GetCapturedStdout();
  o.err = ::testing::internal::GetCapturedStderr();
  return o;
}
bool Says(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

TEST(Attach, ReadsWhatARunningProcessEmits) {
  Child child(Server(1U << 12, 10, 2));
  TraceSegmentView segment(child.pid());
  EXPECT_TRUE(Says(segment.Metadata(), "\"model\": \"tiny\""));
  RingLease lease(segment, ~uint64_t{0});
  std::vector<TraceRecord> records;
  for (int i = 0; i < 100 && records.size() < 100; ++i) {
    Pause(10);
    ASSERT_TRUE(lease.Drain(&records));
  }
  ASSERT_GE(records.size(), 100U);
  EXPECT_EQ(records[0].type, static_cast<uint16_t>(TraceType::kSnapshotBegin));
  EXPECT_EQ(lease.Lost(), 0U);
  // Another one is told who records, as long as the first one reads.
  std::string why;
  std::atomic<bool> done{false};
  std::thread second([&] {
    why = Why([&] { RingLease other(segment, 1); });
    done = true;
  });
  while (!done) {
    Pause(20);
    EXPECT_TRUE(lease.Drain(&records));
  }
  second.join();
  EXPECT_TRUE(Says(why, "already being recorded by process " + std::to_string(getpid()))) << why;
}

TEST(Attach, AProcessThatDiesIsReadToItsLastRecord) {
  Child child(Server(1U << 12, 10, 2));
  const std::string path = ::testing::TempDir() + "/attach_dies_" + std::to_string(child.pid());
  std::thread killer([&] {
    Pause(300);
    child.Kill();
  });
  const Outcome record = Command({"record", "-p", std::to_string(child.pid()), "-o", path});
  killer.join();
  EXPECT_EQ(record.status, kExitOk) << record.err;
  EXPECT_TRUE(Says(record.err, "process " + std::to_string(child.pid()) + " has ended"))
      << record.err;
  TraceReader reader(OpenFile(path));
  EXPECT_GT(reader.records(), 100U);
  EXPECT_FALSE(reader.losses().any());
  EXPECT_EQ(reader.meta().model, "tiny");
  const Outcome report = Command({"report", path});
  EXPECT_EQ(report.status, kExitOk);
  EXPECT_TRUE(Says(report.out, "tiny"));
  std::remove(path.c_str());
}

TEST(Attach, RingsThatOverflowLoseCountedRecordsAndSayIt) {
  Child child(Server(16, 500, 5));
  const std::string path = ::testing::TempDir() + "/attach_overflows_" + std::to_string(getpid());
  const Outcome record =
      Command({"record", "-p", std::to_string(child.pid()), "-o", path, "--duration", "0.3"});
  EXPECT_EQ(record.status, kExitOk) << record.err;
  EXPECT_FALSE(Says(record.err, " 0 lost")) << record.err;
  TraceReader reader(OpenFile(path));
  EXPECT_GT(reader.records(), 16U);
  EXPECT_GT(reader.losses().ring_lost, 100U);
  EXPECT_GT(reader.losses().drop_records, 0U);
  const Outcome report = Command({"report", path});
  EXPECT_EQ(report.status, kExitOk);
  EXPECT_TRUE(Says(report.err, "the rings were full")) << report.err;
  EXPECT_TRUE(Says(report.out, "missing: ")) << report.out;
  std::remove(path.c_str());
}

// What a recorder has to write after it could not run for a while.
TEST(Attach, ARecorderThatWasHeldUpWritesWhatItMissed) {
  constexpr uint64_t kMissed = kMostTraceBlockRecords + 1;
  Child child(Server(1U << 20, 1000, 1));
  const std::string path = ::testing::TempDir() + "/attach_held_up_" + std::to_string(child.pid());
  const pid_t recorder = fork();
  if (recorder == 0) {
    const std::string pid = std::to_string(child.pid());
    const char* argv[] = {"weir-trace", "record", "-p", pid.c_str(), "-o", path.c_str()};
    _exit(Main(6, argv));
  }
  TraceSegmentView segment(child.pid());
  const auto await = [](const std::function<bool()>& what) {
    for (int i = 0; i < 10'000 && !what(); ++i) Pause(1);
    return what();
  };
  // Held up once it has read something.
  EXPECT_TRUE(await([&] { return segment.rings() > 0 && segment.ring(0).tail.load() > 0; }));
  kill(recorder, SIGSTOP);
  EXPECT_TRUE(
      await([&] { return segment.ring(0).head.load() - segment.ring(0).tail.load() >= kMissed; }));
  kill(recorder, SIGCONT);
  EXPECT_TRUE(
      await([&] { return segment.ring(0).head.load() - segment.ring(0).tail.load() < kMissed; }));
  kill(recorder, SIGINT);
  int status = -1;
  waitpid(recorder, &status, 0);
  EXPECT_EQ(status, 0);
  TraceReader reader(OpenFile(path));
  EXPECT_GE(reader.records(), kMissed);
  EXPECT_FALSE(reader.losses().any());
  std::remove(path.c_str());
}

TEST(Attach, TopShowsPicturesAndSaysThatTheProcessHasEnded) {
  Child child(Server(1U << 12, 10, 2));
  const std::string pid = std::to_string(child.pid());
  const Outcome shown = Command({"top", "-p", pid, "-n", "1", "--width", "60", "--ascii"});
  EXPECT_EQ(shown.status, kExitOk) << shown.err;
  EXPECT_TRUE(Says(shown.out, "1 running, 2 waiting")) << shown.out;
  EXPECT_TRUE(Says(shown.out, "3 used 4 cached 5 free of 12")) << shown.out;
  EXPECT_FALSE(Says(shown.out, "\x1b"));
  std::thread killer([&] {
    Pause(400);
    child.Kill();
  });
  const Outcome ended = Command({"top", "-p", pid, "--interval", "0.1"});
  killer.join();
  EXPECT_EQ(ended.status, kExitOk);
  EXPECT_TRUE(Says(ended.err, "process " + pid + " has ended")) << ended.err;
}

TEST(Attach, WhatCannotBeAttachedToIsNamed) {
  EXPECT_TRUE(Says(Why([] { TraceSegmentView view(999'999'999); }), "there is no process"));
  Child other([] {});
  const std::string why = Why([&] { TraceSegmentView view(other.pid()); });
  EXPECT_TRUE(Says(why, "is not a weir process")) << why;
  EXPECT_EQ(Command({"record", "-p", std::to_string(other.pid())}).status, kExitUnusable);
  other.Kill();
  EXPECT_TRUE(Says(Why([&] { TraceSegmentView view(other.pid()); }), "there is no process"));
}

TEST(Attach, ASegmentOfAnotherVersionOrShapeIsRefused) {
  Child newer([] {
    MakeTracer(64);
    g_segment->header().version = 9;
  });
  EXPECT_TRUE(Says(Why([&] { TraceSegmentView view(newer.pid()); }), "version 9"));
  Child torn([] {
    MakeTracer(64);
    g_segment->header().records_offset = UINT64_MAX - 64;
  });
  EXPECT_TRUE(Says(Why([&] { TraceSegmentView view(torn.pid()); }), "impossible layout"));
  Child half([] {
    MakeTracer(64);
    std::memset(g_segment->header().magic, 0, 8);
  });
  EXPECT_TRUE(Says(Why([&] { TraceSegmentView view(half.pid()); }), "has not finished"));
  Child tiny([] {
    const int fd = memfd_create(kTraceSegmentName, MFD_CLOEXEC);
    (void)!ftruncate(fd, 10);
  });
  EXPECT_TRUE(Says(Why([&] { TraceSegmentView view(tiny.pid()); }), "cannot be mapped"));
}

TEST(Commands, AFileThatIsCutIsReadUpToThereAndOneOfAnotherVersionIsRefused) {
  TraceBuilder builder;
  const std::string whole = builder.Life().File(16);
  const std::string cut = WriteScratch("cut.trace", whole.substr(0, whole.size() - 100));
  for (const char* command : {"report", "script", "hist"}) {
    const Outcome o = Command({command, cut});
    EXPECT_EQ(o.status, kExitOk) << command << o.err;
    EXPECT_TRUE(Says(o.err, "ends inside a block")) << command << o.err;
    EXPECT_FALSE(o.out.empty());
  }
  EXPECT_EQ(Command({"check", cut}).status, kExitUnusable);
  std::string other = whole;
  other[8] = 9;
  const std::string newer = WriteScratch("newer.trace", other);
  const Outcome o = Command({"report", newer});
  EXPECT_EQ(o.status, kExitUnusable);
  EXPECT_TRUE(Says(o.err, newer)) << o.err;
  EXPECT_TRUE(Says(o.err, "version 9")) << o.err;
  EXPECT_TRUE(Says(o.err, "reads version 1")) << o.err;
  for (const std::string& path : {cut, newer}) std::remove(path.c_str());
}

TEST(Commands, EveryOneHasAnExampleInItsHelp) {
  for (const std::string command :
       {"record", "top", "report", "plot", "hist", "export", "script", "check", "diff"}) {
    const Outcome o = Command({command, "--help"});
    EXPECT_EQ(o.status, kExitOk) << command;
    EXPECT_TRUE(Says(o.out, "weir-trace " + command + " ")) << command << "\n" << o.out;
    EXPECT_TRUE(Says(o.out, "Example")) << command;
    EXPECT_EQ(Command({command}).status, kExitUnusable) << command;
  }
}

TEST(Commands, AMistakeIsNamedAndWhatIsAcceptedIsSaid) {
  TraceBuilder builder;
  const std::string path = WriteScratch("good.trace", builder.Life().File());
  const auto says = [&](std::vector<std::string> args, const std::string& what) {
    const Outcome o = Command(args);
    EXPECT_EQ(o.status, kExitUnusable) << what;
    EXPECT_TRUE(Says(o.err, what)) << o.err;
  };
  says({"plot", path, "-o", "x.png"}, "a plot is an .html or an .svg file");
  says({"plot", path, "--from", "100"}, "nothing lies between");
  says({"export", path}, "--perfetto, --csv or --jsonl");
  says({"export", path, "--perfetto", "-o", "/no/such/place"}, "/no/such/place cannot be written");
  says({"script", path, "--type", "mapp"}, "there are: map unmap");
  says({"script", path, "--from", "5", "--to", "1"}, "--to 1 is before --from 5");
  says({"hist", path, "--of", "steps"}, "{step,stall,copy,remap}");
  says({"diff", path, "/no/such/trace"}, "/no/such/trace: No such file");
  for (const char* format : {"--perfetto", "--csv", "--jsonl"}) {
    const Outcome o = Command({"export", path, format, "-o", "-"});
    EXPECT_EQ(o.status, kExitOk);
    EXPECT_FALSE(o.out.empty());
  }
  EXPECT_EQ(Command({"diff", path, path, "--fail-over", "0"}).status, kExitOk);
  std::remove(path.c_str());
}

}  // namespace
}  // namespace weir::trace_tool
