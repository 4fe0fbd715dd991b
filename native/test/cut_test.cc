// "Atomic checkpoints" (DESIGN part 3): wherever a stream is cut, the replica
// and the device state are those of the last epoch that was committed.

#include <set>

#include "base/thread.h"
#include "receive/standby_stream.h"
#include "test/lab.h"
#include "wire/frame.h"

namespace holdfast::test {
namespace {

constexpr uint64_t kPages = 160;
constexpr uint64_t kEpochs = 5;

// The same guest each time: what RAM and device state are at every epoch.
struct Script {
  struct Epoch {
    std::vector<PageRun> runs;
    Bytes ram;
    Bytes device;
    Bytes prefix;  // as of this epoch
    bool new_prefix = false;
  };

  explicit Script(uint64_t seed, uint64_t pages = kPages)
      : random(seed), ram(pages, 4096), dirty_max(pages * 3 / 8) {
    ram.Scribble(random, pages / 2);
    (void)ram.TakeDirty();
    prefix_ahead = RandomBytes(random, 2000);
  }

  Random random;
  GuestRam ram;
  const uint64_t dirty_max;
  Bytes prefix_ahead;  // comes in the round; every other new one is this
  std::vector<Epoch> epochs;

  void Next() {
    Epoch epoch;
    ram.Scribble(random, 1 + random() % dirty_max);
    epoch.runs = ram.TakeDirty();
    epoch.ram = ram.Copy();
    epoch.device = RandomBytes(random, 1 + random() % 5000);
    epoch.new_prefix = epochs.size() % 2 == 0;
    epoch.prefix = !epoch.new_prefix         ? epochs.back().prefix
                   : epochs.size() % 4 == 0 ? prefix_ahead
                                            : RandomBytes(random, 1 + random() % 3000);
    epochs.push_back(std::move(epoch));
  }
};

Status SendBase(EpochWriter& writer, const Script& script) {
  HF_TRY(writer.BeginRound());
  HF_TRY(writer.PrefixAhead(script.prefix_ahead));
  HF_TRY(writer.Pages(script.ram.source(), script.ram.All(), false));
  return writer.EndRound();
}

// Sends base and epochs until something fails; the number of the last epoch
// that was acknowledged.
uint64_t Play(Script& script, uint16_t port, Strategy strategy, unsigned streams = 1,
              uint64_t epochs = kEpochs) {
  const CancelSignal cancel;
  auto writer =
      ConnectWriter(port, {Token(7), 4096, script.ram.bytes()}, strategy, cancel, streams);
  bool alive = writer.ok();
  uint64_t acknowledged = 0;
  if (alive) alive = SendBase(*writer.value(), script).ok();
  for (uint64_t epoch = 1; epoch <= epochs; epoch++) {
    script.Next();
    const Script::Epoch& now = script.epochs.back();
    if (alive) {
      alive = SendEpoch(*writer.value(), script.ram, now.runs, epoch, now.device,
                        now.new_prefix ? &now.prefix : nullptr)
                  .ok();
    }
    if (alive) acknowledged = epoch;
  }
  return acknowledged;
}

struct Recording {
  std::vector<uint64_t> boundaries;    // ends of header, table, payload of each frame
  std::vector<uint64_t> commit_ends;   // of epochs 1, 2, …
  uint64_t total = 0;
};

Recording Record() {
  const TempDir dir;
  Backup backup;
  Script script(42);
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", script.ram.bytes())));
  Bytes stream;
  {
    Proxy proxy(backup->port(), {.inspect = [&](uint64_t, std::byte* bytes, size_t count) {
                  stream.insert(stream.end(), bytes, bytes + count);
                }});
    Play(script, proxy.port(), Strategy::kCopy);
    backup.Await(ReceiverEvent::Type::kDisconnected);
  }
  CHECK_EQ(backup.Count(ReceiverEvent::Type::kCommitted), size_t{kEpochs});
  Recording recording;
  recording.total = stream.size();
  for (uint64_t at = 0; at < stream.size();) {
    auto header = DecodeHeader(std::span(stream).subspan(at).first<kFrameHeaderBytes>(), 1 << 20);
    CHECK_OK(header);
    recording.boundaries.push_back(at);
    at += kFrameHeaderBytes;
    recording.boundaries.push_back(at);
    at += header.value().table_bytes;
    recording.boundaries.push_back(at);
    at += header.value().payload_bytes;
    if (header.value().type == FrameType::kCommit) recording.commit_ends.push_back(at);
  }
  CHECK_EQ(recording.commit_ends.size(), size_t{kEpochs});
  return recording;
}

// The replica and what the standby is given are those of this epoch.
void CheckIs(const Script::Epoch& epoch, Backup& backup, const TempDir& dir) {
  CHECK(Same(ReadFile(dir / "ram"), epoch.ram));
  Standby standby(dir / "standby");
  StandbyStream stream(dir / "standby");
  if (epoch.device.size() % 2 == 0) CHECK_OK(backup->Feed(stream));
  CHECK_OK(backup->WriteState(stream));
  Bytes expected = epoch.prefix;
  expected.insert(expected.end(), epoch.device.begin(), epoch.device.end());
  CHECK(Same(standby.Received(), expected));
}

void CutAt(const Recording& recording, uint64_t offset, Strategy strategy) {
  const TempDir dir;
  Backup backup;
  Script script(42);
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", script.ram.bytes())));
  {
    Proxy proxy(backup->port(), {.forward_bytes_max = offset});
    Play(script, proxy.port(), strategy);
    // A stream cut within HELLO never becomes a connection.
    if (offset >= kFrameHeaderBytes + HelloBody::kBytes) {
      backup.Await(ReceiverEvent::Type::kDisconnected);
    }
  }
  const auto committed = static_cast<uint64_t>(std::count_if(
      recording.commit_ends.begin(), recording.commit_ends.end(),
      [offset](uint64_t end) { return end <= offset; }));
  auto fenced = backup->Fence();
  CHECK_OK(fenced);
  CHECK_EQ(fenced.value().epoch, committed);
  if (committed == 0) {
    CHECK_ERROR(backup->WriteState(dir / "standby"), ErrorCode::kStateLoad, "no epoch");
    return;
  }
  CheckIs(script.epochs[committed - 1], backup, dir);
  const bool mid_epoch = offset >= recording.commit_ends[committed - 1] + kFrameHeaderBytes;
  CHECK(fenced.value().partial_epoch_dropped == mid_epoch);
}

TEST("cut at every boundary and at random bytes: the last committed checkpoint, bit for bit") {
  const int before = OpenDescriptors();
  const Recording recording = Record();
  std::set<uint64_t> offsets(recording.boundaries.begin(), recording.boundaries.end());
  offsets.insert(recording.total);
  Random random(99);
  for (int i = 0; i < 40; i++) offsets.insert(random() % recording.total);
  int turn = 0;
  for (const uint64_t offset : offsets) {
    CutAt(recording, offset, kAllStrategies[turn++ % kStrategyCount]);
  }
  std::printf(": %zu cuts", offsets.size());
  CHECK_EQ(OpenDescriptors(), before);
  CHECK_EQ(g_descriptors_open.load(), 0);
}

constexpr unsigned kStreams = 3;
constexpr uint64_t kStripedPages = 600;
constexpr uint64_t kStripedEpochs = 2;

// Which stream carries what differs from run to run: frames are counted as they
// pass, and cut at the n-th boundary or at the n-th byte of one stream.
class FrameWalk {
 public:
  FrameWalk(uint64_t boundary, uint64_t byte) : boundary_(boundary), byte_(byte) {}

  // How much of what comes next may pass.
  size_t Pass(uint64_t offset, const std::byte* bytes, size_t count) {
    seen_.insert(seen_.end(), bytes, bytes + count);
    while (seen_.size() >= frame_at_ + kFrameHeaderBytes) Walk();
    const uint64_t cut_at = boundary_ < boundaries_.size() ? boundaries_[boundary_] : byte_;
    const auto passed = static_cast<size_t>(std::min<uint64_t>(count, cut_at - offset));
    passed_ = offset + passed;
    return passed;
  }

  // Epochs of which this stream's part went through.
  uint64_t epochs_passed() const {
    return static_cast<uint64_t>(std::count_if(part_ends_.begin(), part_ends_.end(),
                                               [this](uint64_t end) { return end <= passed_; }));
  }
  size_t boundaries() const { return boundaries_.size(); }
  uint64_t bytes() const { return seen_.size(); }

 private:
  void Walk() {
    auto header =
        DecodeHeader(std::span(seen_).subspan(frame_at_).first<kFrameHeaderBytes>(), 1 << 20);
    CHECK_OK(header);
    const FrameHeader& frame = header.value();
    const uint64_t table_at = frame_at_ + kFrameHeaderBytes;
    const uint64_t payload_at = table_at + frame.table_bytes;
    frame_at_ = payload_at + frame.payload_bytes;
    boundaries_.insert(boundaries_.end(), {table_at, payload_at, frame_at_});
    const bool ends = frame.type == FrameType::kCommit || frame.type == FrameType::kEndPart;
    if (ends && frame.epoch > 0) part_ends_.push_back(frame_at_);
  }

  const uint64_t boundary_;
  const uint64_t byte_;
  Bytes seen_;
  uint64_t frame_at_ = 0;
  uint64_t passed_ = 0;
  std::vector<uint64_t> boundaries_;
  std::vector<uint64_t> part_ends_;
};

FrameWalk CutStream(unsigned victim, uint64_t boundary, uint64_t byte, Strategy strategy) {
  const TempDir dir;
  Backup backup;
  Script script(42, kStripedPages);
  FrameWalk walk(boundary, byte);
  CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", script.ram.bytes())));
  uint64_t acknowledged = 0;
  {
    Proxy proxy(backup->port(),
                {.pass = [&walk](uint64_t offset, const std::byte* bytes,
                                 size_t count) { return walk.Pass(offset, bytes, count); },
                 .victim = victim});
    acknowledged = Play(script, proxy.port(), strategy, kStreams, kStripedEpochs);
  }
  // Ends the connection, if it was one; what is committed is applied.
  auto fenced = backup->Fence();
  CHECK_OK(fenced);
  const uint64_t committed = fenced.value().epoch;
  // The other streams' parts may be under way when this one's end is seen.
  CHECK(committed == walk.epochs_passed() || committed + 1 == walk.epochs_passed());
  CHECK(acknowledged <= committed);
  if (committed > 0) CheckIs(script.epochs[committed - 1], backup, dir);
  return walk;
}

TEST("one stream of three cut at every boundary and at random bytes") {
  const int before = OpenDescriptors();
  constexpr uint64_t kNever = ~uint64_t{0};
  Random random(77);
  int cuts = 0;
  for (unsigned victim = 0; victim < kStreams; victim++) {
    const FrameWalk whole = CutStream(victim, kNever, kNever, Strategy::kCopy);
    CHECK_EQ(whole.epochs_passed(), kStripedEpochs);
    for (uint64_t boundary = 0; boundary < whole.boundaries(); boundary++) {
      CutStream(victim, boundary, kNever, kAllStrategies[cuts++ % kStrategyCount]);
    }
    for (int i = 0; i < 8; i++) {
      CutStream(victim, kNever, random() % whole.bytes(), kAllStrategies[cuts++ % kStrategyCount]);
    }
  }
  std::printf(": %d cuts", cuts);
  CHECK_EQ(OpenDescriptors(), before);
  CHECK_EQ(g_descriptors_open.load(), 0);
  CHECK_EQ(g_threads_open.load(), 0);
}

TEST("a byte changed on any stream is noticed; without digests it is not") {
  for (const bool verify : {true, false}) {
    for (unsigned victim = 0; victim < kStreams; victim++) {
      const TempDir dir;
      Backup backup;
      Script script(42, kStripedPages);
      auto session = Backup::SessionFor(dir / "ram", script.ram.bytes());
      session.verify = verify;
      CHECK_OK(backup->OpenSession(session));
      // The last byte of the first page in the first PAGES frame of an epoch.
      Bytes seen;
      uint64_t frame_at = 0;
      uint64_t target = ~uint64_t{0};
      Proxy proxy(backup->port(),
                  {.inspect =
                       [&](uint64_t offset, std::byte* bytes, size_t count) {
                         seen.insert(seen.end(), bytes, bytes + count);
                         while (seen.size() >= frame_at + kFrameHeaderBytes) {
                           auto header = DecodeHeader(
                               std::span(seen).subspan(frame_at).first<kFrameHeaderBytes>(),
                               1 << 20);
                           CHECK_OK(header);
                           const FrameHeader& frame = header.value();
                           const uint64_t pages_at =
                               frame_at + kFrameHeaderBytes + frame.table_bytes;
                           frame_at = pages_at + frame.payload_bytes;
                           if (frame.type == FrameType::kPages && frame.epoch > 0) {
                             target = std::min(target, pages_at + 4095);
                           }
                         }
                         if (target >= offset && target - offset < count) {
                           bytes[target - offset] ^= std::byte{1};
                         }
                       },
                   .victim = victim});
      const uint64_t acknowledged = Play(script, proxy.port(), Strategy::kSplice, kStreams);
      // A stream that is never free in time carries no pages.
      const bool struck = target != ~uint64_t{0};
      CHECK(struck || victim > 0);
      CHECK((acknowledged == kEpochs) == !(verify && struck));
      if (verify && struck) {
        CHECK_EQ(backup.Await(ReceiverEvent::Type::kDisconnected).error.code,
                 ErrorCode::kChecksum);
      }
      auto fenced = backup->Fence();
      CHECK_OK(fenced);
      CHECK_EQ(fenced.value().epoch, acknowledged);
    }
  }
}

TEST("a changed byte is noticed: the epoch is void and the primary is told") {
  const Recording recording = Record();
  Random random(7);
  for (int i = 0; i < 30; i++) {
    // Within an epoch: base rounds carry no digest.
    const uint64_t from = recording.commit_ends[0];
    const uint64_t victim = from + random() % (recording.total - from);
    const TempDir dir;
    Backup backup;
    Script script(42);
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", script.ram.bytes())));
    {
      Proxy proxy(backup->port(),
                  {.inspect = [victim](uint64_t offset, std::byte* bytes, size_t count) {
                    if (victim >= offset && victim - offset < count) {
                      bytes[victim - offset] ^= std::byte{0x10};
                    }
                  }});
      Play(script, proxy.port(), Strategy::kCopy);
      const ReceiverEvent ended = backup.Await(ReceiverEvent::Type::kDisconnected);
      CHECK(ended.error.code == ErrorCode::kChecksum || ended.error.code == ErrorCode::kProtocol);
    }
    const auto committed = static_cast<uint64_t>(std::count_if(
        recording.commit_ends.begin(), recording.commit_ends.end(),
        [victim](uint64_t end) { return end <= victim; }));
    auto fenced = backup->Fence();
    CHECK_OK(fenced);
    CHECK_EQ(fenced.value().epoch, committed);
    CHECK(Same(ReadFile(dir / "ram"), script.epochs[committed - 1].ram));
  }
}

TEST("fencing at any moment: what was acknowledged is in the replica, nothing after it") {
  Random random(5);
  for (int i = 0; i < 40; i++) {
    const TempDir dir;
    Backup backup;
    Script script(static_cast<uint64_t>(i));
    CHECK_OK(backup->OpenSession(Backup::SessionFor(dir / "ram", script.ram.bytes())));
    const CancelSignal cancel;
    auto writer = ConnectWriter(backup->port(), {Token(7), 4096, script.ram.bytes()},
                                kAllStrategies[i % kStrategyCount], cancel, i % 4 + 1);
    CHECK_OK(writer);
    CHECK_OK(SendRound(*writer.value(), script.ram, script.ram.All()));
    uint64_t acknowledged = 0;
    std::thread primary([&] {
      for (uint64_t epoch = 1;; epoch++) {
        script.Next();
        const Script::Epoch& now = script.epochs.back();
        const Status sent = SendEpoch(*writer.value(), script.ram, now.runs, epoch, now.device,
                                      now.new_prefix ? &now.prefix : nullptr);
        if (!sent.ok()) {
          CHECK(sent.error().code == ErrorCode::kFenced ||
                sent.error().code == ErrorCode::kPeerLost);
          return;
        }
        acknowledged = epoch;
      }
    });
    backup.Await(ReceiverEvent::Type::kCommitted, 1 + random() % 4);
    ::usleep(static_cast<useconds_t>(random() % 3000));
    auto fenced = backup->Fence();
    CHECK_OK(fenced);
    const uint64_t epoch = fenced.value().epoch;
    // The replica is final when Fence() returns: compare before the primary ends.
    const Bytes replica = ReadFile(dir / "ram");
    primary.join();
    // An ACK may be lost with the connection, but none may leave later.
    CHECK(acknowledged <= epoch && epoch <= acknowledged + 1);
    CHECK(Same(replica, script.epochs[epoch - 1].ram));
    CHECK_EQ(backup.Await(ReceiverEvent::Type::kDisconnected).error.code, ErrorCode::kFenced);
    auto again = backup->Fence();
    CHECK_OK(again);
    CHECK_EQ(again.value().epoch, epoch);
  }
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
