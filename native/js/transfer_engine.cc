#include "js/transfer_engine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cinttypes>
#include <utility>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {

Status TransferEngine::Open(Region region) {
  if (!region.file.valid()) {
    region.file = Descriptor(::open(region.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!region.file.valid()) return Error::FromErrno("open", "region " + region.path);
  }
  auto staging = StagingPool::Create(region.staging_bytes_max);
  if (!staging.ok()) return staging.error();
  staging_ = std::move(staging).value();
  return Map(std::move(region));
}

Status TransferEngine::Map(Region region) {
  file_ = std::move(region.file);
  file_offset_ = region.file_offset;
  page_size_ = region.page_size;
  void* memory = ::mmap(nullptr, region.bytes, PROT_READ, MAP_SHARED, file_.get(),
                        static_cast<off_t>(file_offset_));
  if (memory == MAP_FAILED) return Error::FromErrno("mmap", "region");
  memory_ = Mapping(memory, region.bytes);
  ::madvise(memory, region.bytes, MADV_DONTDUMP);
  ::madvise(memory, region.bytes, MADV_DONTFORK);
  return CheckFile();
}

// Reading a mapping beyond the end of its file would be a SIGBUS.
Status TransferEngine::CheckFile() const {
  struct stat about {};
  if (::fstat(file_.get(), &about) != 0) return Error::FromErrno("fstat", "region");
  const uint64_t end = file_offset_ + memory_.size();
  if (static_cast<uint64_t>(about.st_size) >= end) return {};
  return Error::Of(ErrorCode::kLimit, Text("region: it ends at byte %" PRIu64
                                           ", but its file has only %" PRIu64,
                                           end, static_cast<uint64_t>(about.st_size)));
}

Status TransferEngine::Connect(Peer peer) {
  EpochWriter::Hello hello;
  hello.token = peer.token;
  hello.page_size = page_size_;
  hello.ram_bytes = memory_.size();
  hello.verify = peer.verify;
  auto writer = peer.socket.valid()
                    ? EpochWriter::Adopt(std::move(peer.socket), hello, peer.timeout_ms, cancel_)
                    : EpochWriter::Connect(peer.host, peer.port, hello, peer.streams,
                                           peer.timeout_ms, cancel_);
  if (!writer.ok()) return writer.error();
  writer_ = std::move(writer).value();
  return {};
}

Result<double> TransferEngine::Stage(std::vector<PageRun> runs) {
  if (failure_) return *failure_;
  const double start_ms = MonotonicMs();
  const Status staged = [&]() -> Status {
    uint64_t pages = 0;
    for (const PageRun& run : runs) pages += run.pages;
    if (pages * page_size_ > staging_->bytes_max()) {
      return Error::Of(ErrorCode::kLimit, Text("transfer: %" PRIu64 " bytes exceed the %" PRIu64
                                               " of staging",
                                               pages * page_size_, staging_->bytes_max()));
    }
    HF_TRY(CheckFile());
    return staging_->Stage({file_.get(), file_offset_, memory_.data(), memory_.size()},
                           page_size_, runs, /*first_page=*/0, alone_);
  }();
  stage_failure_.reset();
  if (!staged.ok()) {
    stage_failure_ = staged.error();
    return staged.error();
  }
  staged_runs_ = std::move(runs);
  return MonotonicMs() - start_ms;
}

Result<TransferEngine::Sent> TransferEngine::Send(uint64_t id, std::span<const PageRun> runs,
                                                  bool staged, Strategy strategy,
                                                  std::span<const std::byte> metadata) {
  if (failure_) return *failure_;
  if (staged && stage_failure_) return *stage_failure_;
  if (!staged) HF_TRY(CheckFile());
  if (cancel_.cancelled()) return Error::Of(ErrorCode::kCancelled, "closed");
  writer_->UseStrategy(strategy);
  const PageSource region{file_.get(), file_offset_, memory_.data(), memory_.size()};
  auto sent = staged ? SendEpoch(id, staging_->source(), staged_runs_, metadata)
                     : SendEpoch(id, region, runs, metadata);
  if (!sent.ok()) {
    // What the kernel still holds by reference is dropped with the connection.
    writer_.reset();
    failure_ = sent.error();
  }
  return sent;
}

Result<TransferEngine::Sent> TransferEngine::SendEpoch(uint64_t id, const PageSource& source,
                                                       std::span<const PageRun> runs,
                                                       std::span<const std::byte> metadata) {
  const double start_ms = MonotonicMs();
  const double start_cpu_ms = ThreadCpuMs();
  HF_TRY(writer_->BeginEpoch(id));
  HF_TRY(writer_->Pages(source, runs, /*stable=*/true));
  HF_TRY(writer_->Device(metadata));
  HF_TRY(writer_->Commit());
  Sent sent;
  sent.send_ms = MonotonicMs() - start_ms;
  auto ack = writer_->AwaitAck(id);
  if (!ack.ok()) return ack.error();
  sent.ack_ms = MonotonicMs() - start_ms;
  sent.counters = writer_->counters();
  sent.cpu_ms = ThreadCpuMs() - start_cpu_ms + sent.counters.helper_cpu_ms;
  return sent;
}

}  // namespace holdfast
