// The receive threads: one for each stream, each with its own part of the epoch
// or round that arrives. The last part makes it whole.

#include <algorithm>
#include <cinttypes>
#include <utility>

#include "base/clock.h"
#include "base/host_clock.h"
#include "disk/disk_receiver.h"
#include "receive/session.h"
#include "wire/state_delta.h"

namespace holdfast {
namespace {

// A frame whose header is certain to come right behind what is being read.
constexpr size_t kNextHeader = kFrameHeaderBytes;

Error Stopping() {
  return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
}

}  // namespace

void ReplicaSession::ReceiveLoop() {
  for (;;) {
    Stream* stream = nullptr;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return connected_ || closing_; });
      if (!connected_) return;
      stream = streams_[0].get();
    }
    Serve(*stream);
    HangUp();
  }
}

void ReplicaSession::Serve(Stream& stream) {
  stream.cost_before.cpu_ms = ThreadCpuMs();
  Lose(Receive(stream));
}

Error ReplicaSession::Receive(Stream& stream) {
  for (;;) {
    HeaderBytes head;
    HF_TRY(stream.reader.Read(head, 0, nullptr));
    FrameHeader header;
    {
      const std::lock_guard turn(receive_mutex_);
      auto decoded = decoder_.Header(stream.index, head);
      if (!decoded.ok()) return decoded.error();
      header = decoded.value();
      if (header.type == FrameType::kBegin) HF_TRY(OnBegin(stream));
    }
    stream.bytes += kFrameHeaderBytes + header.table_bytes + header.payload_bytes;
    HF_TRY(Handle(header, stream));
  }
}

Status ReplicaSession::Handle(const FrameHeader& header, Stream& stream) {
  switch (header.type) {
    case FrameType::kBegin: return {};
    case FrameType::kPages:
      return stream.in_round ? OnRoundPages(header, stream) : OnPages(header, stream);
    case FrameType::kZero: return OnZero(header, stream);
    case FrameType::kReferences: return OnReferences(header, stream);
    case FrameType::kPrefix: return OnPrefix(header, stream);
    case FrameType::kPrefixAhead: return OnPrefixAhead(header, stream);
    case FrameType::kPrefixKept: return OnPrefixKept(stream);
    case FrameType::kDevice: return OnDevice(header, stream);
    case FrameType::kDeviceDelta: return OnDelta(header, stream);
    case FrameType::kEndRound:
    case FrameType::kCommit:
    case FrameType::kEndPart: return OnEndPart(header, stream);
    case FrameType::kAbandon: return OnAbandon(header, stream);
    case FrameType::kError: {
      std::vector<std::byte> payload(header.payload_bytes);
      HF_TRY(stream.reader.Read(payload, 0, nullptr));
      return Error::Of(ErrorCode::kPeerLost, DecodeError(payload).message);
    }
    case FrameType::kHello:
    case FrameType::kHelloOk:
    case FrameType::kAck:
    case FrameType::kRoundOk:
    case FrameType::kAbandoned:
    case FrameType::kDiskState:
    case FrameType::kDiskMarks:
    case FrameType::kDiskSync:
    case FrameType::kDiskBase:
    case FrameType::kDiskLog:
    case FrameType::kDiskSynced:
    case FrameType::kDiskReady:
    case FrameType::kDiskBoundary:
    case FrameType::kDiskReceived:
    case FrameType::kWanted:
    case FrameType::kPageList:
    case FrameType::kPageLacks:
    case FrameType::kPageDemand:
    case FrameType::kPageData:
    case FrameType::kPageZero:
    case FrameType::kPagesHave: break;
  }
  HF_ASSERT(!"a frame that the decoder lets through");
}

// Under receive_mutex_. Opens the epoch or the round, if no other stream has.
Status ReplicaSession::OnBegin(Stream& stream) {
  stream.in_round = decoder_.in_round();
  stream.digest.Reset();
  stream.bytes = 0;
  stream.reference_reader.reset();
  if (incoming_.open) return {};
  std::vector<std::byte> device = std::move(incoming_.device);
  device.clear();  // its memory is kept: every epoch has some
  incoming_ = {.device = std::move(device), .first_byte_ms = MonotonicMs()};
  if (!stream.in_round) {
    if (disks_ != nullptr && !DisksSynced()) {
      return Error::Of(ErrorCode::kProtocol, "BEGIN frame: an epoch before the disks are synchronised");
    }
    auto slot = ClaimSlot();
    if (!slot.ok()) return slot.error();
    incoming_.slot = slot.value();
    incoming_.slot->epoch = decoder_.epoch();
  }
  // Only now: if there is no slot, another stream must not believe that it has one.
  incoming_.open = true;
  return {};
}

// Table and pages in one go, before the decoder has seen the table: the header
// bounds how much it is, and what it turns out not to be is dropped with the epoch.
Status ReplicaSession::OnPages(const FrameHeader& header, Stream& stream) {
  std::span<std::byte> pages;
  {
    const std::lock_guard turn(receive_mutex_);
    HF_TRY(replica_.Reserve());
    HF_TRY(MakeRoom(*incoming_.slot, header.payload_bytes));
    auto place = incoming_.slot->staging.Place(header.payload_bytes);
    if (!place.ok()) return place.error();
    pages = place.value();
  }
  stream.table.resize(header.table_bytes);
  iovec parts[2] = {{stream.table.data(), stream.table.size()}, {pages.data(), pages.size()}};
  HF_TRY(stream.reader.Read(parts, kNextHeader, DigestOf(stream)));
  const std::lock_guard turn(receive_mutex_);
  HF_TRY(decoder_.Table(stream.index, stream.table));
  incoming_.slot->staging.AddSegment(header.slice, stream.table, pages);
  return {};
}

// Straight into the replica, so that its table must be known to be sound first.
Status ReplicaSession::OnRoundPages(const FrameHeader& header, Stream& stream) {
  stream.table.resize(header.table_bytes);
  HF_TRY(stream.reader.Read(stream.table, 0, nullptr));
  {
    const std::lock_guard turn(receive_mutex_);
    HF_TRY(decoder_.Table(stream.index, stream.table));
    HF_TRY(replica_.Reserve());
    if (replica_.file() >= 0) {
      replica_.Place(stream.table, stream.file_parts);
    } else {
      replica_.Place(stream.table, stream.parts);
    }
  }
  if (replica_.file() >= 0) return stream.reader.ReadToFile(replica_.file(), stream.file_parts);
  return stream.reader.Read(stream.parts, kNextHeader, nullptr);
}

Status ReplicaSession::OnZero(const FrameHeader& header, Stream& stream) {
  stream.table.resize(header.table_bytes);
  HF_TRY(stream.reader.Read(stream.table, kNextHeader, DigestOf(stream)));
  const std::lock_guard turn(receive_mutex_);
  HF_TRY(decoder_.Table(stream.index, stream.table));
  if (stream.in_round) {
    replica_.Zero(stream.table);
  } else {
    incoming_.slot->staging.AddSegment(header.slice, stream.table, {});
  }
  return {};
}

// Stream 0 only; the others look at it when its part has ended.
Status ReplicaSession::OnDevice(const FrameHeader& header, Stream& stream) {
  incoming_.device.resize(header.payload_bytes);
  return stream.reader.Read(incoming_.device, kNextHeader, DigestOf(stream));
}

Status ReplicaSession::OnPrefix(const FrameHeader& header, Stream& stream) {
  std::vector<std::byte> bytes(header.payload_bytes);
  HF_TRY(stream.reader.Read(bytes, kNextHeader, DigestOf(stream)));
  incoming_.prefix = Numbered(std::move(bytes));
  return {};
}

// Of no effect on the checkpoint, but a standby can be given it.
Status ReplicaSession::OnPrefixAhead(const FrameHeader& header, Stream& stream) {
  std::vector<std::byte> payload(header.payload_bytes);
  HF_TRY(stream.reader.Read(payload, kNextHeader, nullptr));
  std::span<const std::byte> bytes;
  {
    const std::lock_guard turn(receive_mutex_);
    auto ahead = decoder_.PrefixAhead(payload);
    if (!ahead.ok()) return ahead.error();
    bytes = ahead.value();
  }
  Prefix prefix = Numbered({bytes.begin(), bytes.end()});
  const std::lock_guard lock(mutex_);
  if (stopped()) return Stopping();
  kept_prefix_ = std::move(prefix);
  Emit({.type = ReceiverEvent::Type::kPrefix, .prefix = kept_prefix_.number});
  return {};
}

Status ReplicaSession::OnPrefixKept(Stream& stream) {
  std::array<std::byte, PrefixName::kBytes> payload;
  HF_TRY(stream.reader.Read(payload, kNextHeader, DigestOf(stream)));
  const std::lock_guard turn(receive_mutex_);
  HF_TRY(decoder_.PrefixKept(payload));
  incoming_.prefix = kept_prefix_;
  return {};
}

// A guest's reset mostly leaves the prefix as it is: then a standby that has it is
// as good as before, and so it stays the same object.
ReplicaSession::Prefix ReplicaSession::Numbered(std::vector<std::byte> bytes) {
  auto prefix = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  std::array<Prefix, 2> known;
  {
    const std::lock_guard lock(mutex_);
    known = {checkpoint_.prefix, kept_prefix_};
  }
  for (Prefix& one : known) {
    if (StandbyStream::Same(prefix, one.bytes)) return std::move(one);
  }
  return {++prefixes_, std::move(prefix)};
}

// The checkpoint's state is what the primary has an acknowledgement of, and
// stays so until this epoch is whole: until then nobody writes it.
Status ReplicaSession::OnDelta(const FrameHeader& header, Stream& stream) {
  std::vector<std::byte> delta(header.payload_bytes);
  HF_TRY(stream.reader.Read(delta, kNextHeader, DigestOf(stream)));
  return DecodeStateDelta(checkpoint_.device, delta, options_.device_bytes_max, incoming_.device);
}

Status ReplicaSession::OnEndPart(const FrameHeader& header, Stream& stream) {
  std::array<std::byte, PartBody::kBytes> body;
  const auto payload = std::span(body).first(header.payload_bytes);
  HF_TRY(stream.reader.Read(payload, 0, nullptr));
  const HostClock arrived = HostClock::Now();
  const Digest* digest = DigestOf(stream);
  const std::lock_guard turn(receive_mutex_);
  auto whole = decoder_.EndPart(stream.index, payload, digest != nullptr ? digest->Value() : 0);
  if (!whole.ok()) return whole.error();
  Account(stream);
  if (header.type == FrameType::kCommit) incoming_.commit = {arrived, DecodePart(body).age_ns};
  if (decoder_.wanting()) return AskAgain();
  if (!whole.value()) return {};
  incoming_.open = false;
  if (stream.in_round) return PublishRound();
  incoming_.whole = true;
  return PublishIfWhole();
}

// The disk stream's thread. Its end is the connection's, as any stream's.
void ReplicaSession::ServeDisks(DiskStream& stream) {
  DiskReceiver receiver(
      *disks_, stream.reader, stream.cut,
      {.send = [this, &stream](auto frame) { return AnswerOnDisks(stream, frame); },
       .reached =
           [this](uint64_t) {
             const std::lock_guard turn(receive_mutex_);
             return PublishIfWhole();
           },
       .synced =
           [this] {
             const std::lock_guard lock(mutex_);
             disks_synced_ = true;
           }});
  Error ended = receiver.Run();
  if (ended.code == ErrorCode::kCancelled && !cut_) {
    ended = Error::Of(ErrorCode::kFenced, "disk stream: a newer session has taken the disks");
  }
  Lose(std::move(ended));
}

bool ReplicaSession::DisksSynced() {
  const std::lock_guard lock(mutex_);
  return disks_synced_;
}

// Under receive_mutex_. Pages and disks come in no order.
Status ReplicaSession::PublishIfWhole() {
  if (!incoming_.whole) return {};
  if (disks_ != nullptr && !disks_->Reached(incoming_.slot->epoch)) return {};
  incoming_.whole = false;
  return Publish();
}

// The primary waits for the answer before it uses the memory again from which
// slices were sent by reference: all of them have arrived by then.
Status ReplicaSession::OnAbandon(const FrameHeader& header, Stream& stream) {
  const std::lock_guard turn(receive_mutex_);
  auto given_up = decoder_.Abandon(stream.index);
  if (!given_up.ok()) return given_up.error();
  if (!given_up.value()) return {};
  incoming_.open = false;
  const std::lock_guard lock(mutex_);
  if (stopped()) return Stopping();
  Free(*std::exchange(incoming_.slot, nullptr));
  changed_.notify_all();
  return Answer(streams_[0]->socket.get(), FrameType::kAbandoned, header.epoch, {});
}

// Under receive_mutex_. Adds what this stream's part has cost.
void ReplicaSession::Account(Stream& stream) {
  const Cost now{ThreadCpuMs(), stream.reader.digest_ms(), stream.reader.syscalls()};
  Cost& total = incoming_.cost;
  total.cpu_ms += now.cpu_ms - stream.cost_before.cpu_ms;
  total.digest_ms += now.digest_ms - stream.cost_before.digest_ms;
  total.syscalls += now.syscalls - stream.cost_before.syscalls;
  stream.cost_before = now;
  incoming_.bytes += std::exchange(stream.bytes, 0);
}

Status ReplicaSession::PublishRound() {
  const std::lock_guard lock(mutex_);
  if (stopped()) return Stopping();
  HF_TRY(Answer(streams_[0]->socket.get(), FrameType::kRoundOk, 0, {}));
  Emit({.type = ReceiverEvent::Type::kRound,
        .pages = decoder_.totals().pages,
        .zero_pages = decoder_.totals().zero_pages,
        .bytes = incoming_.bytes});
  return {};
}

// Under receive_mutex_. Rule "atomic checkpoints", and "one active side": what
// is acknowledged will be applied, and what comes after Fence() is neither. A
// connection that is lost by now does not matter: the epoch is whole.
Status ReplicaSession::Publish() {
  const std::lock_guard lock(mutex_);
  if (stopped()) return Stopping();
  Slot& slot = *incoming_.slot;
  if (disks_ != nullptr) HF_TRY(disks_->Commit(slot.epoch));
  incoming_.slot = nullptr;
  checkpoint_.epoch = slot.epoch;
  checkpoint_.device.swap(incoming_.device);
  checkpoint_.commit = incoming_.commit;
  if (incoming_.prefix) checkpoint_.prefix = *std::move(incoming_.prefix);
  partial_dropped_ = false;
  const uint64_t epoch_bytes = slot.staging.used_bytes();
  largest_epoch_bytes_ = std::max(largest_epoch_bytes_, epoch_bytes);
  recent_epoch_bytes_ = std::max(epoch_bytes, recent_epoch_bytes_ - recent_epoch_bytes_ / 32);
  slot.state = Slot::State::kQueued;
  apply_queue_.push_back(&slot);
  const Status acknowledged = Answer(streams_[0]->socket.get(), FrameType::kAck, slot.epoch,
                                     EncodeAck({last_apply_us_}));
  std::shared_ptr<const std::vector<std::byte>> state;
  if (options_.deliver_state) {
    state = std::make_shared<const std::vector<std::byte>>(checkpoint_.device);
  }
  Emit({.type = ReceiverEvent::Type::kCommitted,
        .epoch = slot.epoch,
        .pages = decoder_.totals().pages,
        .zero_pages = decoder_.totals().zero_pages,
        .bytes = incoming_.bytes,
        .millis = MonotonicMs() - incoming_.first_byte_ms,
        .state = std::move(state),
        .prefix = checkpoint_.prefix.number,
        .cpu_ms = incoming_.cost.cpu_ms,
        .digest_ms = incoming_.cost.digest_ms,
        .syscalls = incoming_.cost.syscalls});
  changed_.notify_all();
  return acknowledged;
}

// --- staging; under receive_mutex_ ---

// The free slot that has the most memory already. With both committed epochs
// still to be applied, the primary waits, not our memory.
Result<ReplicaSession::Slot*> ReplicaSession::ClaimSlot() {
  std::unique_lock lock(mutex_);
  Slot* chosen = nullptr;
  changed_.wait(lock, [&] {
    for (Slot& slot : slots_) {
      if (slot.state != Slot::State::kFree) continue;
      if (chosen == nullptr || slot.staging.resident_bytes() > chosen->staging.resident_bytes()) {
        chosen = &slot;
      }
    }
    return chosen != nullptr || cut_;
  });
  if (chosen == nullptr) return Stopping();
  chosen->state = Slot::State::kReceiving;
  return chosen;
}

// Under mutex_.
void ReplicaSession::Free(Slot& slot) {
  slot.staging.Clear();
  slot.state = Slot::State::kFree;
}

// Keeps both slots' memory within max(floor, largest epoch): the other one's
// memory goes, once its epoch is applied.
Status ReplicaSession::MakeRoom(Slot& slot, uint64_t bytes) {
  const uint64_t need = slot.staging.used_bytes() + bytes;
  if (need <= slot.staging.resident_bytes()) return {};
  Slot& other = &slot == &slots_[0] ? slots_[1] : slots_[0];
  std::unique_lock lock(mutex_);
  const uint64_t budget = std::max({kStagingFloorBytes, largest_epoch_bytes_, need});
  if (need + other.staging.resident_bytes() <= budget) return {};
  changed_.wait(lock, [&] { return other.state == Slot::State::kFree || cut_; });
  if (cut_) return Stopping();
  other.staging.Trim(0);
  return {};
}

}  // namespace holdfast
