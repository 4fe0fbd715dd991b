#include "checkpoint/checkpointer.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace holdfast {
namespace {

constexpr uint64_t kStagingBytesFirst = 16ull << 20;
// Mapped in one go before it is read, so that the guest's own faults don't wait long.
constexpr uint64_t kBatchBytes = 32ull << 20;

Error NotAttached() { return Error::Of(ErrorCode::kRamMapping, "not attached to guest RAM"); }
Error NotBegun() { return Error::Of(ErrorCode::kProtocol, "no checkpoint has been begun"); }

}  // namespace

Result<Checkpointer::Attached> Checkpointer::Attach() {
  if (guest_) return Attached{true, 0};
  auto staging = StagingPool::Create(options_.staging_bytes_max);
  if (!staging.ok()) return staging.error();
  auto attached = TrackedRam::Attach(options_.ram);
  if (!attached.ok()) return attached.error();
  guest_ = std::move(attached).value();
  staging_ = std::move(staging).value();
  pool_ = std::make_unique<WorkerPool>(std::max(1u, options_.copy_threads));
  base_needed_ = true;
  return Attached{guest_->userfault->adopted(), guest_->userfault->inject_ms()};
}

Status Checkpointer::Begin(const std::string& ram_path, bool full) {
  if (!guest_) return NotAttached();
  GiveUp();
  if (!full && base_needed_) {
    return Error::Of(ErrorCode::kProtocol, "an increment has no complete layer below it");
  }
  const uint32_t page_size = guest_->view->page_size();
  auto layer = LayerWriter::Create(ram_path, page_size, guest_->view->size() / page_size, full);
  if (!layer.ok()) return layer.error();
  layer_ = std::move(layer).value();
  whole_ram_next_ = full;
  return {};
}

// From here the caller answers for these pages.
Result<std::vector<PageRun>> Checkpointer::TakeDirtyPages(WorkerPool& pool) {
  const bool base_needed = std::exchange(base_needed_, true);
  // Armed before it is known what is populated: a page that the guest touches in
  // between is then both written here and dirty, never neither.
  auto written = guest_->tracker->Scan(pool);
  if (!written.ok()) return written.error();
  if (std::exchange(whole_ram_next_, false)) {
    auto populated = guest_->view->Populated(*guest_->tracker);
    if (!populated.ok()) return populated.error();
    carry_.clear();
    base_needed_ = base_needed;
    return Ordered(std::move(populated).value());
  }
  std::vector<PageRun> dirty = UnionOf(Ordered(std::move(written).value()), carry_);
  carry_.clear();
  base_needed_ = base_needed;
  return dirty;
}

Result<Checkpointer::Round> Checkpointer::WriteRound(const CancelSignal& cancel) {
  if (!guest_) return NotAttached();
  if (layer_ == nullptr) return NotBegun();
  Round round;
  const double start_ms = MonotonicMs();
  auto taken = TakeDirtyPages(alone_);
  if (!taken.ok()) return taken.error();
  std::vector<PageRun> left = std::move(taken).value();
  const double scanned_ms = MonotonicMs();
  round.scan_ms = scanned_ms - start_ms;
  const uint64_t batch_pages = std::max<uint64_t>(kBatchBytes / guest_->view->page_size(), 1);
  LayerWriter::Counts counts;
  while (!left.empty()) {
    std::vector<PageRun> rest = CutAfter(left, batch_pages);
    for (const PageRun& run : left) guest_->view->Prefault(run);
    const Status written = layer_->Write(guest_->view->source(), left, cancel, counts);
    if (!written.ok()) {
      Carry(left);
      Carry(rest);
      return written.error();
    }
    left = std::move(rest);
  }
  round.content_pages = counts.content_pages;
  round.zero_pages = counts.zero_pages;
  round.write_ms = MonotonicMs() - scanned_ms;
  auto dirty_pages = guest_->tracker->CountWritten(alone_);
  if (!dirty_pages.ok()) return dirty_pages.error();
  round.dirty_pages = dirty_pages.value();
  return round;
}

Result<Checkpointer::Captured> Checkpointer::Capture() {
  if (!guest_) return NotAttached();
  if (layer_ == nullptr) return NotBegun();
  const StepAside aside(guest_->qemu_main);
  Captured captured;
  const double start_ms = MonotonicMs();
  auto taken = TakeDirtyPages(*pool_);
  if (!taken.ok()) return taken.error();
  captured_ = std::move(taken).value();
  const double scanned_ms = MonotonicMs();
  captured.scan_ms = scanned_ms - start_ms;
  captured.dirty_pages = PagesOf(captured_);
  const uint64_t bytes = captured.dirty_pages * guest_->view->page_size();
  std::vector<PageRun> staged = captured_;
  captured_staged_ =
      bytes <= staging_->bytes_max() &&
      staging_->Stage(guest_->view->source(), guest_->view->page_size(), staged, 0, *pool_).ok();
  if (captured_staged_) {
    captured_ = std::move(staged);
    staged_bytes_last_ = bytes;
  }
  captured.staged = captured_staged_;
  captured.copy_ms = MonotonicMs() - scanned_ms;
  return captured;
}

Result<Checkpointer::Finished> Checkpointer::Finish(const std::string& index_path,
                                                    const CancelSignal& cancel) {
  if (layer_ == nullptr) return NotBegun();
  const double start_ms = MonotonicMs();
  LayerWriter::Counts counts;
  const PageSource source = captured_staged_ ? staging_->source() : guest_->view->source();
  HF_TRY(layer_->Write(source, captured_, cancel, counts));
  auto trailer = layer_->Finish(index_path);
  if (!trailer.ok()) return trailer.error();
  Finished finished;
  finished.content_pages = layer_->table().content_pages();
  finished.zero_pages = layer_->table().zero_pages();
  finished.trailer = trailer.value();
  finished.write_ms = MonotonicMs() - start_ms;
  return finished;
}

void Checkpointer::Commit() {
  if (layer_ == nullptr) return;
  if (layer_->table().full()) base_needed_ = false;
  captured_.clear();
  layer_.reset();
}

void Checkpointer::GiveUp() {
  if (layer_ == nullptr) return;
  // Pages of a full layer are known to the one after it only if that is full, too.
  if (layer_->table().full()) base_needed_ = true;
  Carry(layer_->table().Named());
  Carry(captured_);
  captured_.clear();
  layer_.reset();
}

void Checkpointer::Carry(const std::vector<PageRun>& runs) { carry_ = UnionOf(runs, carry_); }

Status Checkpointer::Detach() {
  if (!guest_) return {};
  HF_TRY(guest_->userfault->Release());
  layer_.reset();
  captured_.clear();
  carry_.clear();
  pool_.reset();
  staging_.reset();
  guest_.reset();
  base_needed_ = true;
  staged_bytes_last_ = 0;
  return {};
}

void Checkpointer::Prepare() {
  if (staging_ == nullptr) return;
  // Room for twice the last capture; if memory is short, Capture will say so.
  (void)staging_->Grow(std::max(kStagingBytesFirst, 2 * staged_bytes_last_));
}

}  // namespace holdfast
