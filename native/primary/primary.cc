#include "primary/primary.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <span>
#include <utility>

#include "base/clock.h"
#include "base/host_clock.h"

namespace holdfast {
namespace {

constexpr uint64_t kStagingBytesFirst = 16ull << 20;
constexpr uint64_t kStateBytesMax = 256ull << 20;   // one device state or prefix

Result<std::vector<std::byte>> ReadStateFile(const Primary::StateFile& wanted) {
  // O_NONBLOCK: a FIFO with no writer must not hold up the data plane.
  const Descriptor file(::open(wanted.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) return Error::FromErrno("open", wanted.path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return Error::FromErrno("fstat", wanted.path);
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  const uint64_t available = file_bytes - std::min(file_bytes, wanted.skip_bytes);
  const uint64_t bytes = wanted.bytes_max.value_or(available);
  if (!S_ISREG(status.st_mode) || bytes > available || bytes == 0) {
    return Error::Of(ErrorCode::kSyscall, wanted.path + " holds " + std::to_string(file_bytes) +
                                              " bytes: not the state that was announced");
  }
  if (bytes > kStateBytesMax) {
    return Error::Of(ErrorCode::kLimit, wanted.path + " is larger than " +
                                            std::to_string(kStateBytesMax) + " bytes");
  }
  std::vector<std::byte> content(bytes);
  for (uint64_t done = 0; done < bytes;) {
    const ssize_t got = ::pread(file.get(), content.data() + done, bytes - done,
                                static_cast<off_t>(wanted.skip_bytes + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::FromErrno("pread", wanted.path);
    if (got == 0) return Error::Of(ErrorCode::kSyscall, wanted.path + " shrank while it was read");
    done += static_cast<uint64_t>(got);
  }
  return content;
}

Result<std::vector<std::byte>> ReadIfAny(const std::optional<Primary::StateFile>& wanted) {
  if (!wanted) return std::vector<std::byte>{};
  return ReadStateFile(*wanted);
}

// So many references tell whether the disks are the same after all.
constexpr uint64_t kReferencesTelling = 1'024;

Primary::DiskPages DiskPagesOf(const SendCounters& counters) {
  return {counters.disk_pages, counters.disk_pages_different, counters.disk_pages_unread,
          counters.disk_reference_bytes};
}

Error NotAttached() { return Error::Of(ErrorCode::kRamMapping, "not attached to guest RAM"); }
Error LacksBase() {
  return Error::Of(ErrorCode::kProtocol, "this connection lacks a complete base");
}
Error NotConnected() { return Error::Of(ErrorCode::kPeerLost, "not connected to a backup"); }
Error LacksDisks() {
  return Error::Of(ErrorCode::kProtocol, "this connection lacks the disks: they are not synchronised");
}

}  // namespace

Result<Primary::Attached> Primary::Attach() {
  if (guest_) return Attached{true, 0};
  auto staging = StagingPool::Create(options_.staging_bytes_max);
  if (!staging.ok()) return staging.error();
  auto attached = TrackedRam::Attach(options_.ram);
  if (!attached.ok()) return attached.error();
  guest_ = std::move(attached).value();
  staging_ = std::move(staging).value();
  pool_ = std::make_unique<WorkerPool>(std::max(1u, options_.copy_threads));
  hot_ = std::make_unique<HotPages>(guest_->view->size() / guest_->view->page_size());
  dirty_set_unknown_ = true;
  return Attached{guest_->userfault->adopted(), guest_->userfault->inject_ms()};
}

Status Primary::Connect(const Peer& peer, std::shared_ptr<const CancelSignal> cancel) {
  if (!guest_) return NotAttached();
  Disconnect();
  EpochWriter::Hello hello;
  hello.token = peer.token;
  hello.page_size = guest_->view->page_size();
  hello.ram_bytes = guest_->view->size();
  hello.verify = peer.verify;
  cancel_ = std::move(cancel);
  auto writer = EpochWriter::Connect(peer.host, peer.port, hello, peer.streams, peer.timeout_ms,
                                     *cancel_);
  if (!writer.ok()) return writer.error();
  writer_ = std::move(writer).value();
  peer_ = peer;
  return {};
}

Result<std::vector<Shipper::Difference>> Primary::ConnectDisks() {
  if (writer_ == nullptr) return NotConnected();
  if (options_.disks.empty()) return Error::Of(ErrorCode::kLimit, "the engine has no disks");
  if (shipper_ != nullptr) return Error::Of(ErrorCode::kLimit, "the disks are connected");
  DiskLink::Peer peer;
  peer.host = peer_.host;
  peer.port = peer_.port;
  peer.token = peer_.token;
  peer.page_size = guest_->view->page_size();
  peer.ram_bytes = guest_->view->size();
  peer.link = writer_->link();
  peer.streams = static_cast<uint16_t>(peer_.streams);
  peer.timeout_ms = peer_.timeout_ms;
  // The disks' loss is the connection's.
  auto shipper = Shipper::Connect(options_.disks, peer, *cancel_,
                                  [writer = writer_.get()] { writer->Interrupt(); });
  if (!shipper.ok()) return shipper.error();
  shipper_ = std::move(shipper).value();
  shipped_->Set(shipper_->shipped());
  return shipper_->differences();
}

Result<Shipper::Synced> Primary::SyncDisks(std::span<const Shipper::Plan> plans,
                                           const SyncId& sync_id) {
  if (shipper_ == nullptr) return NotConnected();
  auto synced = shipper_->Sync(plans, sync_id);
  if (!synced.ok()) {
    // A refusal of ours leaves the connection as it is.
    if (shipper_->error()) Disconnect();
    return synced;
  }
  disk_ends_.clear();
  for (const auto& disk : shipper_->shipped()->disks) disk_ends_.push_back(disk->log->start());
  return synced;
}

Status Primary::IndexDisks(std::span<const DiskIndex::Disk> disks, uint64_t table_bytes_max) {
  if (writer_ == nullptr) return NotConnected();
  if (guest_->view->page_size() != kReferenceBlockBytes) {
    return Error::Of(ErrorCode::kUnsupported, "guest RAM is in pages of " +
                                                  std::to_string(guest_->view->page_size()) +
                                                  " bytes, and disks are compared by 4096");
  }
  auto index = DiskIndex::Start(disks, table_bytes_max);
  if (!index.ok()) return index.error();
  index_ = std::move(index).value();
  return {};
}

Result<DiskIndex::Progress> Primary::AwaitIndex(int timeout_ms, const CancelSignal& cancel) {
  if (index_ == nullptr) return NotConnected();
  HF_TRY(index_->AwaitEnd(timeout_ms, cancel));
  return index_->progress();
}

Result<Primary::Round> Primary::BaseRound(bool first, const CancelSignal& cancel,
                                          const std::optional<StateFile>& prefix_ahead) {
  if (!guest_) return NotAttached();
  if (writer_ == nullptr) return NotConnected();
  if (epoch_) return Error::Of(ErrorCode::kLimit, "a captured epoch is not acknowledged yet");
  if (!first && !base_sent_) {
    return Error::Of(ErrorCode::kProtocol, "this connection lacks its first base round");
  }
  const auto prefix = ReadIfAny(prefix_ahead);
  if (!prefix.ok()) return prefix.error();
  Round round;
  const double start_ms = MonotonicMs();
  GiveUpAhead();
  if (writer_ == nullptr) return NotConnected();
  auto taken = TakeDirtyPages(/*all=*/first, *pool_);
  if (!taken.ok()) return taken.error();
  const std::vector<PageRun>& runs = taken.value().pages;
  // The first scan reports every page: it says nothing.
  round_written_ = first ? std::vector<PageRun>{} : taken.value().written;
  const double scanned_ms = MonotonicMs();

  const Status sent = SendRound(runs, cancel, prefix.value(), round);
  if (!sent.ok()) {
    // Which pages arrived is unknown: the next connection starts from the base.
    dirty_set_unknown_ = true;
    Error error = Explained(sent.error());
    Disconnect();
    return error;
  }
  base_sent_ = true;
  const SendCounters counters = writer_->counters();
  round.pages = counters.pages;
  round.zero_pages = counters.zero_pages;
  round.bytes = counters.bytes;
  if (index_ != nullptr) {
    round.disk_pages = DiskPagesOf(counters);
    // Disks that are not the same cost a reference and a page for each page.
    const auto& [referenced, different, unread, reference_bytes] = *round.disk_pages;
    if (referenced >= kReferencesTelling && different + unread > referenced / 2) {
      writer_->UseIndex(nullptr);
      index_.reset();
    }
  }
  round.scan_ms = scanned_ms - start_ms;
  const double sent_ms = MonotonicMs();
  round.send_ms = sent_ms - scanned_ms;
  auto dirty_pages = guest_->tracker->CountWritten(*pool_);
  if (!dirty_pages.ok()) return dirty_pages.error();
  round.dirty_pages = dirty_pages.value();
  round.count_ms = MonotonicMs() - sent_ms;
  return round;
}

// Every page the backup may lack but those of ahead_; from here the caller answers for them.
Result<Primary::Dirty> Primary::TakeDirtyPages(bool all, WorkerPool& pool) {
  all = all || dirty_set_unknown_;
  dirty_set_unknown_ = true;
  // Armed before it is known what is populated: a page that the guest touches
  // in between is then both sent and dirty, never neither.
  auto written = guest_->tracker->Scan(pool);
  if (!written.ok()) return written.error();
  Dirty dirty{Ordered(std::move(written).value()), {}};
  if (all) {
    auto populated = guest_->view->Populated(*guest_->tracker);
    if (!populated.ok()) return populated.error();
    dirty.pages = Ordered(std::move(populated).value());
  } else {
    dirty.pages = carry_.empty() ? dirty.written : UnionOf(dirty.written, carry_);
  }
  carry_.clear();
  dirty_set_unknown_ = false;
  return dirty;
}

Status Primary::FindPopulated() {
  if (!guest_) return NotAttached();
  if (epoch_) return Error::Of(ErrorCode::kLimit, "a captured epoch is not acknowledged yet");
  GiveUpAhead();
  auto taken = TakeDirtyPages(/*all=*/true, *pool_);
  if (!taken.ok()) return taken.error();
  Carry(taken.value().pages);
  return {};
}

// Of a VM that is stopped, of which nothing was sent nor found: the tracker has nothing to say.
Result<Primary::Dirty> Primary::TakePopulated() {
  dirty_set_unknown_ = true;
  auto populated = guest_->view->Populated(*guest_->tracker);
  if (!populated.ok()) return populated.error();
  return Dirty{{}, Ordered(std::move(populated).value())};
}

Status Primary::SendRound(const std::vector<PageRun>& runs, const CancelSignal& cancel,
                          std::span<const std::byte> prefix_ahead, Round& round) {
  writer_->UseStrategy(options_.strategy);
  writer_->UseIndex(index_.get());
  HF_TRY(writer_->BeginRound());
  // First: the standby loads it while the pages travel.
  if (!prefix_ahead.empty()) HF_TRY(writer_->PrefixAhead(prefix_ahead));
  RoundPace pace(guest_->view->page_size(), peer_.streams, MonotonicMs());
  std::vector<PageRun> sent;
  std::vector<PageRun> batch;
  uint64_t room = 0;
  const auto begin_batch = [&] {
    room = pace.BatchPages(MonotonicMs());
    // Else what was decided now would leave when the kernel's buffers are through.
    writer_->LimitUnsent(room * guest_->view->page_size() / peer_.streams);
  };
  const auto flush = [&]() -> Status {
    if (cancel.cancelled()) return Error::Of(ErrorCode::kCancelled, "base round cancelled");
    const uint64_t found_pages = PagesOf(batch);
    HF_TRY(LeaveOutWritten(batch, pace));
    const uint64_t pages = PagesOf(batch);
    round.skipped_pages += found_pages - pages;
    for (const PageRun& run : batch) guest_->view->Prefault(run);
    if (pages > 0) HF_TRY(writer_->Pages(guest_->view->source(), batch, /*stable=*/false));
    for (const PageRun& run : batch) AppendRun(sent, run);
    batch.clear();
    pace.Sent(pages);
    begin_batch();
    return {};
  };
  begin_batch();
  for (PageRun rest : runs) {
    while (rest.pages > 0) {
      const auto pages = static_cast<uint32_t>(std::min<uint64_t>(rest.pages, room));
      batch.push_back({rest.first_page, rest.source_page, pages});
      rest = {rest.first_page + pages, rest.source_page + pages, rest.pages - pages};
      room -= pages;
      if (room == 0) HF_TRY(flush());
    }
  }
  if (!batch.empty()) HF_TRY(flush());
  writer_->LimitUnsent(0);
  round.look_ms = pace.look_ms();
  const EpochWriter::Again again{guest_->view->source(), sent};
  return writer_->EndRound(&again);
}

// What is left out stays dirty in the tracker: the next round, or the first epoch
// after the VM has been stopped, begins with a scan that finds it.
Status Primary::LeaveOutWritten(std::vector<PageRun>& batch, RoundPace& pace) const {
  const double start_ms = MonotonicMs();
  if (!pace.LooksNow(start_ms)) return {};
  auto written = guest_->tracker->WrittenAround(batch);
  if (!written.ok()) return written.error();
  if (!written.value().empty()) batch = Without(batch, written.value());
  pace.Looked(MonotonicMs() - start_ms);
  return {};
}

Status Primary::CheckSlice(const Slice& slice) const {
  if (!guest_) return NotAttached();
  if (epoch_) {
    return Error::Of(ErrorCode::kLimit, "epoch " + std::to_string(epoch_->number) +
                                            " is not acknowledged yet");
  }
  if (!slice.send) return {};
  if (writer_ == nullptr) return NotConnected();
  if (!base_sent_) return LacksBase();
  return {};
}

// At most half of the pool is staged ahead: the rest is for what the pause
// finds. Nor more than RAM is long, so that with all of RAM on top of it an
// epoch stays within what a backup accepts (kEpochBytesFactor).
uint64_t Primary::AheadRoomPages(const Slice& slice) const {
  const uint64_t bytes_max = std::min(staging_->bytes_max() / 2, guest_->view->size());
  const uint64_t pages_max = bytes_max / guest_->view->page_size();
  const uint64_t room = pages_max - std::min(pages_max, ahead_.places());
  return std::min(room, slice.bytes_max.value_or(bytes_max) / guest_->view->page_size());
}

Result<Primary::Prestaged> Primary::Prestage(const Slice& slice) {
  if (ahead_epoch_ != slice.epoch) GiveUpAhead();
  HF_TRY(CheckSlice(slice));
  ahead_epoch_ = slice.epoch;
  Prestaged prestaged;
  const double start_ms = MonotonicMs();
  auto taken = TakeDirtyPages(/*all=*/false, alone_);
  if (!taken.ok()) return taken.error();
  Dirty dirty = std::move(taken).value();
  const double scanned_ms = MonotonicMs();
  prestaged.scan_ms = scanned_ms - start_ms;
  const AheadPages::Superseded superseded = ahead_.Supersede(dirty.pages);
  prestaged.superseded_pages = superseded.pages;
  prestaged.superseded_sent_pages = superseded.sent_pages;
  hot_->Written(dirty.written);
  const std::vector<PageRun> hot = hot_->TakeHot(dirty.pages);
  prestaged.held_back_pages = held_back_pages_ = PagesOf(hot);
  Carry(hot);
  Carry(CutAfter(dirty.pages, AheadRoomPages(slice)));
  if (!dirty.pages.empty()) {
    if (staging_
            ->Stage(guest_->view->source(), guest_->view->page_size(), dirty.pages,
                    ahead_.places(), alone_)
            .ok()) {
      ahead_.Staged(dirty.pages);
      prestaged.pages = PagesOf(dirty.pages);
      ahead_staged_pages_ += prestaged.pages;
    } else {
      Carry(dirty.pages);  // no memory: the pause will see
    }
  }
  prestaged.copy_ms = MonotonicMs() - scanned_ms;
  if (slice.send) HF_TRY(SendSlice(slice, prestaged));
  return prestaged;
}

// The last slice of an epoch is the pause's.
Status Primary::SendSlice(const Slice& slice, Prestaged& prestaged) {
  if (ahead_.unsent().empty() || ahead_.slices() + 1 >= kSlicesMax) return {};
  const double start_ms = MonotonicMs();
  const double start_cpu_ms = ThreadCpuMs();
  const bool begun = ahead_.slices() > 0;
  const uint64_t bytes_before = begun ? writer_->counters().bytes : 0;
  const Status sent = [&]() -> Status {
    writer_->UseStrategy(slice.strategy);
    writer_->UseIndex(nullptr);
    if (!begun) HF_TRY(writer_->BeginEpoch(slice.epoch));
    HF_TRY(writer_->Pages(staging_->source(), ahead_.unsent(), /*stable=*/true));
    return writer_->EndSlice();
  }();
  if (!sent.ok()) {
    Error error = Explained(sent.error());
    Disconnect();
    return error;
  }
  ahead_.Sent();
  ahead_cpu_ms_ += ThreadCpuMs() - start_cpu_ms;
  prestaged.bytes = writer_->counters().bytes - bytes_before;
  prestaged.send_ms = MonotonicMs() - start_ms;
  return {};
}

Result<Primary::Captured> Primary::Capture(uint64_t epoch, Mode mode) {
  const int64_t stopped_ns = HostClock::Now().ns;
  if (!guest_) return NotAttached();
  if (epoch_) {
    return Error::Of(ErrorCode::kLimit, "epoch " + std::to_string(epoch_->number) +
                                            " is not acknowledged yet");
  }
  if (ahead_epoch_ != epoch) GiveUpAhead();
  const StepAside aside(guest_->qemu_main);
  Captured captured;
  const double start_ms = MonotonicMs();
  const bool later = mode == Mode::kLater;
  if (later) GiveUpAhead();
  const bool nothing_known = later && !base_sent_ && dirty_set_unknown_;
  auto taken = nothing_known ? TakePopulated() : TakeDirtyPages(/*all=*/false, *pool_);
  if (!taken.ok()) return taken.error();
  Dirty dirty = std::move(taken).value();
  const double scanned_ms = MonotonicMs();
  ahead_.Supersede(dirty.pages);
  Epoch next{.number = epoch, .mode = mode, .stopped_ns = stopped_ns};
  if (later) {
    LeaveForLater(dirty);
    captured.later_pages = PagesOf(later_);
  } else if (mode == Mode::kDirect || !Stage(dirty.pages, next)) {
    next.mode = Mode::kDirect;
    next.runs = UnionOf(ahead_.unsent(), dirty.pages);
    ahead_staged_pages_ = ahead_.pages_sent();
  }
  captured.copy_ms = MonotonicMs() - scanned_ms;
  captured.scan_ms = scanned_ms - start_ms;
  captured.mode = next.mode;
  captured.runs = next.runs.size();
  captured.ahead_pages = PagesOf(ahead_.sent());
  captured.dirty_pages = PagesOf(next.runs) + captured.ahead_pages;
  captured.prestaged_pages = ahead_staged_pages_;
  const uint64_t unsent = next.mode == Mode::kStaged ? PagesOf(ahead_.unsent()) : 0;
  captured.superseded_pages = ahead_staged_pages_ - captured.ahead_pages - unsent;
  captured.held_back_pages = held_back_pages_;
  next.ahead = ahead_.sent();
  next.begun = ahead_.slices() > 0;
  next.superseded_pages = ahead_.pages_sent() - captured.ahead_pages;
  next.ahead_cpu_ms = ahead_cpu_ms_;
  NoteDisks(next);
  captured.disk_bytes = next.disk_bytes;
  epoch_ = std::move(next);
  hot_->EndEpoch(dirty.written);
  EndAhead();
  return captured;
}

// All that the backup lacks; first what was written in the last round as well as
// after it. Without a round that is what was written since FindPopulated.
void Primary::LeaveForLater(const Dirty& dirty) {
  later_ = dirty.pages;
  later_hot_ = base_sent_ ? Without(dirty.written, Without(dirty.written, round_written_))
                          : dirty.written;
  page_server_.reset();
  // Nothing of it is there before ServePages() has brought it: should it have to
  // be captured once more, it is all of RAM again.
  if (!base_sent_) dirty_set_unknown_ = true;
}

Result<PagesHaveBody> Primary::ServePages(const Peer& peer, const CancelSignal& cancel) {
  if (!guest_) return NotAttached();
  if (page_server_ == nullptr) {
    page_server_ =
        std::make_unique<PageServer>(guest_->view->source(), guest_->view->page_size(), later_,
                                     later_hot_, *serve_progress_);
  }
  auto socket = StreamSocket::Dial(peer.host, peer.port, peer.timeout_ms, cancel);
  if (!socket.ok()) return socket.error();
  HelloBody hello;
  hello.page_size = guest_->view->page_size();
  hello.ram_bytes = guest_->view->size();
  hello.token = peer.token;
  return page_server_->Serve(std::move(socket).value(), hello, peer.timeout_ms, cancel);
}

// The VM is stopped, and QEMU has drained its writes: each is in a log, or it was
// not answered.
void Primary::NoteDisks(Epoch& epoch) {
  if (shipper_ == nullptr || !shipper_->synced()) return;
  epoch.disk_ends = shipper_->Heads();
  if (!epoch.disk_ends.ok()) return;
  const std::vector<uint64_t>& ends = epoch.disk_ends.value();
  for (size_t i = 0; i < ends.size(); i++) epoch.disk_bytes += ends[i] - disk_ends_[i];
}

// Rule "atomic checkpoints": no epoch is committed without its disks.
Status Primary::CheckDisks(const Epoch& epoch) const {
  if (options_.disks.empty()) return {};
  if (!epoch.disk_ends.ok()) return epoch.disk_ends.error();
  if (shipper_ == nullptr || epoch.disk_ends.value().empty()) return LacksDisks();
  if (auto error = shipper_->error()) return *error;
  return {};
}

// The log of a large epoch may take longer than a peer may be silent. While it
// moves, the shipper is content, and when it is not, it ends the connection.
Status Primary::AwaitDisks(const Epoch& epoch) {
  if (shipper_ == nullptr) return {};
  for (;;) {
    auto word = writer_->AwaitWord(kPeerSilenceMsMax);
    if (!word.ok()) return word.error();
    if (word.value() || shipper_->Received(epoch.disk_ends.value())) return {};
  }
}

// Why the connection was lost, if that began with the disks.
Error Primary::Explained(Error error) const {
  if (error.code != ErrorCode::kPeerLost || shipper_ == nullptr) return error;
  return shipper_->error().value_or(std::move(error));
}

// False if there is too much to stage, or no memory for it: the VM stays paused instead.
bool Primary::Stage(std::vector<PageRun>& dirty, Epoch& epoch) {
  const uint32_t page_size = guest_->view->page_size();
  const uint64_t places_max = staging_->bytes_max() / page_size;
  uint64_t first = ahead_.places();
  const bool beside = first + PagesOf(dirty) <= places_max;
  if (!beside) {
    // What was only staged gives its places up, and is copied again with the rest.
    std::vector<PageRun> all = UnionOf(ahead_.unsent(), dirty);
    first = ahead_.places_sent();
    if (first + PagesOf(all) > places_max) return false;
    ahead_.Supersede(all);
    dirty = std::move(all);
  }
  if (!staging_->Stage(guest_->view->source(), page_size, dirty, first, *pool_).ok()) return false;
  staged_bytes_last_ = (first + PagesOf(dirty)) * page_size;
  epoch.runs = ahead_.unsent().empty() ? dirty : Superseded(ahead_.unsent(), dirty);
  return true;
}

Result<Primary::Sent> Primary::Send(uint64_t epoch, Strategy strategy, const StateFile& device,
                                    const std::optional<StateFile>& prefix) {
  if (!epoch_ || epoch_->number != epoch) {
    return Error::Of(ErrorCode::kProtocol,
                     "epoch " + std::to_string(epoch) + " is not the captured one");
  }
  // From here the epoch ends acknowledged or carried, never in between.
  const Epoch sending = *std::exchange(epoch_, std::nullopt);
  Result<Sent> sent = [&]() -> Result<Sent> {
    if (writer_ == nullptr) return NotConnected();
    if (!base_sent_ && sending.mode != Mode::kLater) return LacksBase();
    if (const Status sound = CheckDisks(sending); !sound.ok()) {
      Disconnect();
      return sound.error();
    }
    auto device_bytes = ReadStateFile(device);
    if (!device_bytes.ok()) return device_bytes.error();
    const auto prefix_bytes = ReadIfAny(prefix);
    if (!prefix_bytes.ok()) return prefix_bytes.error();
    Result<Sent> outcome =
        SendEpoch(sending, strategy, device_bytes.value(), prefix_bytes.value());
    // A connection that failed is of no further use, and what it still holds
    // by reference must not leave once staging is reused.
    if (outcome.ok()) return outcome;
    Error error = Explained(outcome.error());
    Disconnect();
    return error;
  }();
  if (!sent.ok()) GiveUp(sending);
  return sent;
}

Result<Primary::Sent> Primary::SendEpoch(const Epoch& epoch, Strategy strategy,
                                         std::span<const std::byte> device,
                                         std::span<const std::byte> prefix) {
  const double start_ms = MonotonicMs();
  const double start_cpu_ms = ThreadCpuMs();
  if (shipper_ != nullptr) shipper_->MarkBoundary(epoch.number, epoch.disk_ends.value());
  writer_->UseStrategy(strategy);
  writer_->UseIndex(epoch.begun ? nullptr : index_.get());
  if (!epoch.begun) HF_TRY(writer_->BeginEpoch(epoch.number));
  const PageSource source =
      epoch.mode == Mode::kStaged ? staging_->source() : guest_->view->source();
  HF_TRY(writer_->Pages(source, epoch.runs, /*stable=*/true));
  if (!prefix.empty()) HF_TRY(writer_->Prefix(prefix));
  HF_TRY(writer_->Device(device));
  HF_TRY(writer_->Commit(epoch.stopped_ns));
  Sent sent;
  sent.send_ms = MonotonicMs() - start_ms;
  HF_TRY(AwaitDisks(epoch));
  // Output commit: only the backup's own message counts.
  const EpochWriter::Again again{source, epoch.runs};
  auto ack = writer_->AwaitAck(epoch.number, &again);
  if (!ack.ok()) return ack.error();
  sent.ack_ms = MonotonicMs() - start_ms;
  sent.counters = writer_->counters();
  if (index_ != nullptr) sent.disk_pages = DiskPagesOf(sent.counters);
  sent.cpu_ms =
      ThreadCpuMs() - start_cpu_ms + epoch.ahead_cpu_ms + sent.counters.helper_cpu_ms;
  sent.device_bytes = device.size();
  sent.device_sent_bytes = writer_->device_bytes_sent();
  sent.superseded_bytes = epoch.superseded_pages * guest_->view->page_size();
  sent.disk_bytes = epoch.disk_bytes;
  if (shipper_ != nullptr) disk_ends_ = epoch.disk_ends.value();
  const int64_t apply_us = ack.value().previous_apply_us;
  sent.previous_apply_ms = apply_us < 0 ? -1 : static_cast<double>(apply_us) / 1e3;
  return sent;
}

void Primary::Carry(const std::vector<PageRun>& runs) { carry_ = UnionOf(runs, carry_); }

void Primary::GiveUp(const Epoch& epoch) {
  Carry(epoch.runs);
  Carry(epoch.ahead);
  if (epoch.mode == Mode::kLater) Carry(later_);
  if (epoch.begun) Abandon();
}

void Primary::GiveUpAhead() {
  const bool begun = ahead_.slices() > 0;
  CarryAhead();
  if (begun) Abandon();
}

void Primary::CarryAhead() {
  Carry(ahead_.Pages());
  if (hot_ != nullptr) hot_->GiveUp();
  EndAhead();
}

void Primary::EndAhead() {
  ahead_.Clear();
  ahead_epoch_ = ahead_staged_pages_ = held_back_pages_ = 0;
  ahead_cpu_ms_ = 0;
}

// The slices on the wire hold what may be torn or old by now, and staging must
// not be used again before they have arrived: the backup drops them and says so.
void Primary::Abandon() {
  if (writer_ != nullptr && !writer_->Abandon().ok()) Disconnect();
}

void Primary::Abort(uint64_t epoch) {
  if (epoch_ && epoch_->number == epoch) {
    GiveUp(*std::exchange(epoch_, std::nullopt));
  } else if (!epoch_ && ahead_epoch_ == epoch) {
    GiveUpAhead();
  }
}

void Primary::Disconnect() {
  CarryAhead();
  if (epoch_) {
    epoch_->begun = false;
    epoch_->disk_ends = std::vector<uint64_t>{};
  }
  shipped_->Set(nullptr);
  shipper_.reset();
  writer_.reset();
  index_.reset();
  cancel_.reset();
  base_sent_ = false;
}

Status Primary::Detach() {
  if (!guest_) return {};
  HF_TRY(guest_->userfault->Release());
  Disconnect();
  epoch_.reset();
  carry_.clear();
  page_server_.reset();
  pool_.reset();
  hot_.reset();
  staging_.reset();
  guest_.reset();
  staged_bytes_last_ = 0;
  return {};
}

void Primary::Prepare() {
  if (staging_ == nullptr) return;
  // Room for twice the last epoch; if memory is short, Capture will say so.
  (void)staging_->Grow(std::max(kStagingBytesFirst, 2 * staged_bytes_last_));
}

}  // namespace holdfast
