// The bookkeeping of zero-copy sends without a kernel: ids against a model, the
// policy, and the loop that zerocopy and uring share against a kernel that
// answers whatever it likes.

#include <sys/socket.h>

#include <map>

#include "primary/round_pace.h"
#include "send/completion_ledger.h"
#include "send/completion_sender.h"
#include "send/zero_copy_policy.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

TEST("ranges of completions, out of order and across the wrap, as in a model") {
  for (const uint32_t first_id : {0u, 5u, 0xffffff80u, 0xffffffffu}) {
    Random random(first_id);
    CompletionLedger ledger(first_id);
    std::map<uint64_t, uint64_t> in_flight;  // by number of call, which does not wrap
    uint64_t sent = 0;
    uint64_t reference_bytes = 0, copied_bytes = 0, completions = 0;
    for (int step = 0; step < 3000; step++) {
      if (random() % 2 == 0) {
        const uint64_t bytes = random() % 100'000;
        CHECK_EQ(ledger.next_id(), static_cast<uint32_t>(first_id + sent));
        ledger.Sent(bytes);
        in_flight[sent++] = bytes;
      } else if (!in_flight.empty()) {
        const auto first = std::next(in_flight.begin(),
                                     static_cast<ptrdiff_t>(random() % in_flight.size()));
        auto last = first;
        const uint64_t count_max = 1 + random() % 6;
        uint64_t bytes = first->second;
        uint64_t count = 1;
        for (auto next = std::next(last);
             next != in_flight.end() && next->first == last->first + 1 && count < count_max;
             ++next) {
          last = next;
          bytes += next->second;
          count++;
        }
        const bool copied = random() % 3 == 0;
        CHECK(ledger.Completed(static_cast<uint32_t>(first_id + first->first),
                               static_cast<uint32_t>(first_id + last->first), copied));
        (copied ? copied_bytes : reference_bytes) += bytes;
        completions += count;
        in_flight.erase(first, std::next(last));
      }
      uint64_t bytes_in_flight = 0;
      for (const auto& [id, bytes] : in_flight) bytes_in_flight += bytes;
      CHECK_EQ(ledger.bytes_in_flight(), bytes_in_flight);
      CHECK_EQ(ledger.calls_in_flight(),
               in_flight.empty() ? 0 : sent - in_flight.begin()->first);
      CHECK_EQ(ledger.totals().reference_bytes, reference_bytes);
      CHECK_EQ(ledger.totals().copied_bytes, copied_bytes);
      CHECK_EQ(ledger.totals().completions, completions);
    }
  }
}

TEST("a completion of calls that are not in flight is refused whole") {
  CompletionLedger ledger(0xfffffffe);
  CHECK(!ledger.Completed(0xfffffffe, 0xfffffffe, false));
  for (int i = 0; i < 4; i++) ledger.Sent(10);  // fffffffe ffffffff 0 1
  CHECK(!ledger.Completed(0xfffffffd, 0, false));
  CHECK(!ledger.Completed(0, 2, false));
  CHECK(!ledger.Completed(1, 0, false));
  CHECK(ledger.Completed(0xffffffff, 0, true));
  CHECK(!ledger.Completed(0xffffffff, 0xffffffff, true));
  CHECK(!ledger.Completed(0xfffffffe, 1, false));
  CHECK_EQ(ledger.bytes_in_flight(), 20u);
  CHECK_EQ(ledger.calls_in_flight(), 4u);
  CHECK(ledger.Completed(1, 1, false));
  CHECK(ledger.Completed(0xfffffffe, 0xfffffffe, false));
  CHECK_EQ(ledger.calls_in_flight(), 0u);
  CHECK_EQ(ledger.next_id(), 2u);
}

TEST("the policy stops asking where the kernel copies, and asks again, ever more rarely") {
  ZeroCopyPolicy policy;
  CompletionLedger::Totals totals;
  const auto complete = [&](uint64_t count, bool copied) {
    totals.completions += count;
    if (copied) totals.copied_completions += count;
    policy.Observe(totals);
  };
  complete(ZeroCopyPolicy::kCopiedMax - 1, true);
  CHECK(policy.asking());
  complete(1, false);
  complete(ZeroCopyPolicy::kCopiedMax - 1, true);
  CHECK(policy.asking());
  complete(1, true);
  CHECK(!policy.asking());
  CHECK_EQ(policy.fallbacks(), 1u);
  complete(100, true);  // of calls that were under way: no second fallback
  CHECK_EQ(policy.fallbacks(), 1u);
  policy.SentPlain(ZeroCopyPolicy::kPlainBytesFirst - 1);
  CHECK(!policy.asking());
  policy.SentPlain(1);
  CHECK(policy.asking());
  complete(1, true);
  CHECK(!policy.asking());
  CHECK_EQ(policy.fallbacks(), 2u);
  policy.SentPlain(ZeroCopyPolicy::kPlainBytesFirst);
  CHECK(!policy.asking());
  policy.SentPlain(ZeroCopyPolicy::kPlainBytesFirst);
  CHECK(policy.asking());
  complete(1, false);
  complete(ZeroCopyPolicy::kCopiedMax - 1, true);
  CHECK(policy.asking());
  policy.Refused();
  CHECK(!policy.asking());
  policy.Refused();
  CHECK_EQ(policy.fallbacks(), 3u);
  policy.SentPlain(ZeroCopyPolicy::kPlainBytesFirst);
  CHECK(policy.asking());
}

TEST("a round's batches are small at first, then as long as is to lie between two looks") {
  RoundPace pace(4096, 1, 100);
  constexpr uint64_t kLeastPages = RoundPace::kBatchBytesMin / 4096;
  CHECK_EQ(pace.BatchPages(100), kLeastPages);
  pace.Sent(10'000);  // the kernel's buffers have taken them
  CHECK_EQ(pace.BatchPages(101), kLeastPages);
  CHECK_EQ(pace.BatchPages(200), 800u);  // 100 a millisecond
  CHECK_EQ(pace.BatchPages(10'100), kLeastPages);
  pace.Sent(1'000'000);
  CHECK_EQ(pace.BatchPages(200), RoundPace::kBatchBytesMax / 4096);
  CHECK_EQ(RoundPace(4096, 3, 0).BatchPages(0), 3 * kLeastPages);
  CHECK_EQ(RoundPace(4096, 16, 0).BatchPages(1'000), 16 * kLeastPages);
  CHECK_EQ(RoundPace(2 << 20, 1, 0).BatchPages(0), 1u);
}

TEST("a round looks at nothing at first, and later as long as that takes a small part of it") {
  RoundPace pace(4096, 1, 100);
  CHECK(!pace.LooksNow(100));
  CHECK(!pace.LooksNow(100 + RoundPace::kLookAfterMs - 1));
  CHECK(pace.LooksNow(100 + RoundPace::kLookAfterMs));
  pace.Looked(4);
  CHECK(!pace.LooksNow(100 + 4 / RoundPace::kLooksShareMax - 1));
  CHECK(pace.LooksNow(100 + 4 / RoundPace::kLooksShareMax));
}

// A kernel that takes what it likes, when it likes, and reports in any order.
class MoodySender final : public CompletionSender {
 public:
  struct Moods {
    unsigned again = 8;       // one call in so many is answered so; 0: none
    unsigned interrupted = 8;
    unsigned no_buffers = 8;
    bool no_buffers_ever = false;
    bool completes = true;
  };
  MoodySender(Random& random, Moods moods) : random_(random), moods_(moods) {}
  uint64_t calls() const { return calls_; }
  size_t in_flight_most() const { return in_flight_most_; }
  const CompletionLedger& ledger() const { return ledger_; }

 protected:
  Status Prepare(StreamSocket&) override { return {}; }

  int64_t Attempt(const PageSource&, std::span<iovec> parts, StreamSocket& socket) override {
    calls_++;
    if (moods_.no_buffers_ever || Chance(moods_.no_buffers)) return -ENOBUFS;
    if (Chance(moods_.again)) return -EAGAIN;
    if (Chance(moods_.interrupted)) return -EINTR;
    const size_t bytes = 1 + random_() % std::min<size_t>(parts[0].iov_len, 5000);
    const ssize_t sent =
        ::send(socket.fd(), parts[0].iov_base, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return -errno;
    lent_.push_back(ledger_.next_id());
    ledger_.Sent(static_cast<uint64_t>(sent));
    in_flight_most_ = std::max(in_flight_most_, ledger_.calls_in_flight());
    return sent;
  }

  bool Reap(StreamSocket&) override {
    if (!moods_.completes || random_() % 2 == 0 || lent_.empty()) return false;
    const size_t count = 1 + random_() % lent_.size();
    for (size_t i = 0; i < count; i++) {
      const auto one = lent_.begin() + static_cast<ptrdiff_t>(random_() % lent_.size());
      CHECK(ledger_.Completed(*one, *one, false));
      lent_.erase(one);
    }
    return true;
  }

  Status AwaitNotification(StreamSocket& socket, int) override { return socket.CheckCancelled(); }

  const CompletionLedger& ledger(const StreamSocket&) const override { return ledger_; }

 private:
  bool Chance(unsigned one_in) { return one_in != 0 && random_() % one_in == 0; }

  Random& random_;
  const Moods moods_;
  CompletionLedger ledger_{0xfffffff0};
  std::vector<uint32_t> lent_;
  uint64_t calls_ = 0;
  size_t in_flight_most_ = 0;
};

struct Delivery {
  Bytes expected;
  Bytes received;
};

Delivery SendThrough(CompletionSender& sender, Random& random, uint64_t pages, int sends) {
  GuestRam ram(pages, 4096);
  ram.Scribble(random, 2 * pages);
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const Descriptor theirs(ends[1]);
  const CancelSignal cancel;
  StreamSocket socket(Descriptor(ends[0]), cancel);
  Delivery delivery;
  std::vector<Extent> extents;
  for (uint64_t page = 0; page < pages; page += 1 + random() % 3) {
    extents.push_back({page * 4096, 4096});
  }
  for (int i = 0; i < sends; i++) {
    for (const Extent& extent : extents) {
      const std::byte* from = ram.page(0) + extent.offset;
      delivery.expected.insert(delivery.expected.end(), from, from + extent.bytes);
    }
  }
  delivery.received.resize(delivery.expected.size());
  std::thread reader([&] {
    CHECK(::recv(theirs.get(), delivery.received.data(), delivery.received.size(), MSG_WAITALL) ==
          static_cast<ssize_t>(delivery.received.size()));
  });
  for (int i = 0; i < sends; i++) CHECK_OK(sender.Send(ram.source(), extents, socket));
  CHECK_OK(sender.Finish(socket));
  reader.join();
  return delivery;
}

TEST("bytes arrive once and in order whatever the kernel answers, and what is lent comes back") {
  for (uint64_t seed = 0; seed < 30; seed++) {
    Random random(seed);
    MoodySender sender(random, {});
    const Delivery delivery = SendThrough(sender, random, 1 + random() % 200, 3);
    CHECK(Same(delivery.received, delivery.expected));
    CHECK_EQ(sender.ledger().calls_in_flight(), 0u);
    CHECK_EQ(sender.ledger().bytes_in_flight(), 0u);
    CHECK(sender.in_flight_most() <= CompletionSender::kCallsInFlightMax);
    const SenderCounters counters = sender.counters();
    CHECK_EQ(counters.reference_bytes + counters.copied_bytes, delivery.expected.size());
    CHECK_EQ(counters.completions, sender.ledger().totals().completions);
  }
}

TEST("a kernel that never has buffers is asked once, then it is copied") {
  Random random(1);
  MoodySender sender(random, {.no_buffers_ever = true});
  const Delivery delivery = SendThrough(sender, random, 100, 20);
  CHECK(Same(delivery.received, delivery.expected));
  CHECK_EQ(sender.calls(), 1u);
  CHECK_EQ(sender.counters().fallbacks, 1u);
  CHECK_EQ(sender.counters().copied_bytes, delivery.expected.size());
}

TEST("small batches go without") {
  Random random(2);
  MoodySender sender(random, {});
  const Delivery delivery = SendThrough(sender, random, 2, 50);
  CHECK(Same(delivery.received, delivery.expected));
  CHECK_EQ(sender.calls(), 0u);
}

TEST("finish waits for what never comes back until it is cancelled") {
  Random random(3);
  GuestRam ram(4, 4096);
  ram.Scribble(random, 8);
  int ends[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const Descriptor theirs(ends[1]);
  CancelSignal cancel;
  StreamSocket socket(Descriptor(ends[0]), cancel);
  MoodySender sender(random, {.again = 0, .interrupted = 0, .no_buffers = 0, .completes = false});
  const Extent all{0, ram.bytes()};
  CHECK_OK(sender.Send(ram.source(), {&all, 1}, socket));
  CHECK_EQ(sender.ledger().bytes_in_flight(), ram.bytes());
  cancel.Cancel();
  CHECK_ERROR(sender.Finish(socket), ErrorCode::kCancelled, "cancelled");
  CHECK_ERROR(sender.Send(ram.source(), {&all, 1}, socket), ErrorCode::kCancelled, "cancelled");
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
