// "Atomic checkpoints" (DESIGN part 3): wherever the stream is cut, the replica
// and the device state are those of the last epoch that was committed.

#include <set>

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

  explicit Script(uint64_t seed) : random(seed), ram(kPages, 4096) {
    ram.Scribble(random, 80);
    base = ram.Copy();
    (void)ram.TakeDirty();
  }

  Random random;
  GuestRam ram;
  Bytes base;
  std::vector<Epoch> epochs;

  void Next() {
    Epoch epoch;
    ram.Scribble(random, 1 + random() % 60);
    epoch.runs = ram.TakeDirty();
    epoch.ram = ram.Copy();
    epoch.device = RandomBytes(random, 1 + random() % 5000);
    epoch.new_prefix = epochs.size() % 2 == 0;
    epoch.prefix = epoch.new_prefix ? RandomBytes(random, 1 + random() % 3000)
                                    : epochs.back().prefix;
    epochs.push_back(std::move(epoch));
  }
};

// Sends base and epochs until something fails.
void Play(Script& script, uint16_t port, Strategy strategy) {
  const CancelSignal cancel;
  auto writer = EpochWriter::Connect("127.0.0.1", port, {Token(7), 4096, script.ram.bytes()},
                                     strategy, 5'000, cancel);
  bool alive = writer.ok();
  if (alive) alive = SendRound(*writer.value(), script.ram, script.ram.All()).ok();
  for (uint64_t epoch = 1; epoch <= kEpochs; epoch++) {
    script.Next();
    const Script::Epoch& now = script.epochs.back();
    if (alive) {
      alive = SendEpoch(*writer.value(), script.ram, now.runs, epoch, now.device,
                        now.new_prefix ? &now.prefix : nullptr)
                  .ok();
    }
  }
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
  const Script::Epoch& last = script.epochs[committed - 1];
  CHECK(Same(ReadFile(dir / "ram"), last.ram));
  Standby standby(dir / "standby");
  CHECK_OK(backup->WriteState(dir / "standby"));
  Bytes expected = last.prefix;
  expected.insert(expected.end(), last.device.begin(), last.device.end());
  CHECK(Same(standby.Received(), expected));
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
    CutAt(recording, offset, static_cast<Strategy>(turn++ % 3));
  }
  std::printf(": %zu cuts", offsets.size());
  CHECK_EQ(OpenDescriptors(), before);
  CHECK_EQ(g_descriptors_open.load(), 0);
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
    auto writer =
        EpochWriter::Connect("127.0.0.1", backup->port(), {Token(7), 4096, script.ram.bytes()},
                             static_cast<Strategy>(i % 3), 5'000, cancel);
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
