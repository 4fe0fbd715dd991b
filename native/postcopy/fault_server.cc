#include "postcopy/fault_server.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cinttypes>
#include <utility>

#include "base/clock.h"
#include "guest/sparse_file.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr size_t kFaultsPerRead = 64;
constexpr uint32_t kTmpfsPageSize = 4096;

// Before the VM runs it can still be told where it comes from. Of a hugetlbfs the
// mapping has reserved what it needs, and a tmpfs without a limit has no blocks.
Status CheckRoom(int fd, const PageSet& pages, uint32_t page_size) {
  if (page_size != kTmpfsPageSize) return {};
  struct statfs fs {};
  if (::fstatfs(fd, &fs) != 0) return Error::FromErrno("fstatfs", "guest RAM");
  const uint64_t free_bytes = fs.f_bavail * static_cast<uint64_t>(fs.f_bsize);
  const uint64_t bytes = pages.size() * page_size;
  if (fs.f_blocks == 0 || bytes <= free_bytes) return {};
  errno = ENOSPC;
  return Error::FromErrno("fstatfs",
                          Text("guest RAM: %" PRIu64 " bytes are to come, %" PRIu64 " free", bytes,
                               free_bytes),
                          ErrorCode::kNoSpace);
}

Status EmptyRange(int fd, uint64_t offset, uint64_t bytes) {
  int failed;
  do {
    failed = ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (failed != 0 && errno == EINTR);
  if (failed == 0) return {};
  return Error::FromErrno("fallocate", "emptying the places of pages that are still to come");
}

// tmpfs keeps, as zeros, what it empties of a huge page that it cannot split just
// then: the guest would read those, and what comes later would find a page there.
Status CheckEmpty(const SparseFile& file, uint64_t first, uint64_t end) {
  const auto held = FirstHeldPage(file, first, end);
  if (!held.ok()) return held.error();
  if (held.value() == end) return {};
  return Error::Of(ErrorCode::kRamMapping,
                   "the places of pages that are still to come did not become empty");
}

}  // namespace

Result<std::unique_ptr<FaultServer>> FaultServer::Start(const Options& options,
                                                        std::unique_ptr<PageOrigin> origin,
                                                        EventSink sink) {
  std::unique_ptr<FaultServer> server(
      new FaultServer(options, std::move(origin), std::move(sink)));
  // Before the first event: nothing of the VM's may be there but what is listed as there.
  if (options.empty_all) HF_TRY(EmptyRange(options.ram_fd, options.file_offset, options.ram_bytes));
  server->thread_ = Thread("hf-faults", [self = server.get()] { self->Loop(); });
  return server;
}

FaultServer::FaultServer(const Options& options, std::unique_ptr<PageOrigin> origin,
                         EventSink sink)
    : options_(options),
      sink_(std::move(sink)),
      origin_(std::move(origin)),
      installer_(options.event_fd, options.address, options.page_size) {}

void FaultServer::Stop() {
  cancel_.Cancel();
  thread_.Join();
}

FaultServer::Stats FaultServer::stats() const {
  const std::lock_guard lock(mutex_);
  return published_;
}

void FaultServer::Loop() {
  while (!cancel_.cancelled()) {
    const Status turn = Turn();
    Publish();
    if (turn.ok()) continue;
    sink_({.type = FaultServerEvent::Type::kFailed, .error = turn.error()});
    return;
  }
}

// Faults first: a portion of the origin's is small, and the guest waits.
Status FaultServer::Turn() {
  const bool pushing = origin_->pushing();
  std::array<pollfd, 3> fds{{{cancel_.fd(), POLLIN, 0},
                             {options_.event_fd, POLLIN, 0},
                             {origin_->fd(), POLLIN, 0}}};
  const int ready = ::poll(fds.data(), fds.size(), pushing ? 0 : -1);
  if (ready < 0 && errno != EINTR) return Error::FromErrno("poll", "waiting for page faults");
  if (cancel_.cancelled()) return {};
  if (ready > 0 && fds[1].revents != 0) HF_TRY(ReadFaults());
  if (pushing || (ready > 0 && fds[2].revents != 0)) HF_TRY(origin_->Take(*this));
  if (std::exchange(ask_again_, false)) HF_TRY(Ask());
  if (!completed_ && lacking_ && lacking_->empty()) {
    completed_ = true;
    HF_TRY(origin_->Complete({latency_.count(), latency_.Percentile(0.5),
                              latency_.Percentile(0.99), latency_.max_us()}));
    Publish();  // before it is told
    sink_({.type = FaultServerEvent::Type::kComplete});
  }
  return {};
}

Status FaultServer::ReadFaults() {
  std::array<uffd_msg, kFaultsPerRead> messages;
  const ssize_t got = ::read(options_.event_fd, messages.data(), sizeof messages);
  if (got < 0) {
    // Somebody else was first: a page came, and its waiter went on.
    if (errno == EAGAIN || errno == EINTR) return {};
    return Error::FromErrno("read", "reading page faults");
  }
  const double now_ms = MonotonicMs();
  for (size_t i = 0; i < static_cast<size_t>(got) / sizeof(uffd_msg); i++) {
    if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
    const uint64_t offset = messages[i].arg.pagefault.address - options_.address;
    if (offset >= options_.ram_bytes) continue;
    const uint64_t page = offset / options_.page_size;
    // A second vCPU that waits for the same page is woken with the first.
    if (!waiting_.try_emplace(page, now_ms).second) continue;
    counted_.faults++;
    if (lacking_) HF_TRY(Answer(page));
  }
  return {};
}

Status FaultServer::Answer(uint64_t page) {
  if (lacking_->Has(page)) return origin_->Demand(page, *this);
  // A zero, or there by now: the kernel says which, and wakes in either case.
  HF_TRY(installer_.Zero(page, 1));
  Arrived(page, 1, true, true);
  return {};
}

Status FaultServer::Ask() {
  std::vector<uint64_t> pages;
  pages.reserve(waiting_.size());
  for (const auto& [page, since_ms] : waiting_) pages.push_back(page);
  for (const uint64_t page : pages) HF_TRY(Answer(page));
  return {};
}

Result<const PageSet*> FaultServer::List(const PageSet& pages) {
  if (pages.ram_pages() != options_.ram_bytes / options_.page_size) {
    return Error::Of(ErrorCode::kProtocol, "the list of missing pages is another VM's");
  }
  if (std::exchange(lost_, false)) sink_({.type = FaultServerEvent::Type::kFound});
  ask_again_ = true;
  if (lacking_) return &*lacking_;
  if (!options_.empty_all) HF_TRY(Empty(pages));
  HF_TRY(CheckRoom(options_.ram_fd, pages, options_.page_size));
  lacking_.emplace(pages);
  counted_.listed = true;
  counted_.pages = pages.size();
  Publish();  // before it is told
  sink_({.type = FaultServerEvent::Type::kListed, .pages = pages.size()});
  return &*lacking_;
}

// What stands there is of before the VM was stopped.
Status FaultServer::Empty(const PageSet& pages) const {
  const SparseFile file{options_.ram_fd, options_.file_offset, options_.page_size};
  for (const PageRun& run : pages.Runs()) {
    const uint64_t offset = options_.file_offset + run.first_page * options_.page_size;
    const uint64_t bytes = uint64_t{run.pages} * options_.page_size;
    HF_TRY(EmptyRange(options_.ram_fd, offset, bytes));
    // hugetlbfs cannot tell, and has no pages of parts.
    if (options_.page_size != kTmpfsPageSize) continue;
    HF_TRY(CheckEmpty(file, run.first_page, run.first_page + run.pages));
  }
  return {};
}

Status FaultServer::Install(uint64_t first_page, std::span<const std::byte> bytes, bool demanded) {
  if (!lacking_) return Error::Of(ErrorCode::kProtocol, "pages came before their list");
  const uint64_t end = first_page + bytes.size() / options_.page_size;
  if (end > lacking_->ram_pages()) return Error::Of(ErrorCode::kProtocol, "pages beyond guest RAM");
  for (uint64_t from = first_page; from < end;) {
    // What is not lacking is the guest's by now.
    const PageRun run = lacking_->NextRun(from, end, static_cast<uint32_t>(end - from));
    if (run.pages == 0) break;
    HF_TRY(installer_.Copy(run.first_page,
                           bytes.subspan((run.first_page - first_page) * options_.page_size,
                                         uint64_t{run.pages} * options_.page_size)));
    Arrived(run.first_page, run.pages, demanded, false);
    from = run.first_page + run.pages;
  }
  return {};
}

Status FaultServer::Zero(uint64_t first_page, uint64_t pages, bool demanded) {
  if (!lacking_) return Error::Of(ErrorCode::kProtocol, "pages came before their list");
  if (first_page + pages > lacking_->ram_pages()) {
    return Error::Of(ErrorCode::kProtocol, "pages beyond guest RAM");
  }
  for (uint64_t page = first_page; page < first_page + pages; page++) {
    if (!lacking_->Has(page)) continue;
    // Nobody waits for it: it stays the hole that it is, and reads as zeros.
    if (waiting_.contains(page)) HF_TRY(installer_.Zero(page, 1));
    Arrived(page, 1, demanded, true);
  }
  return {};
}

void FaultServer::Lost(const Error& why) {
  if (std::exchange(lost_, true)) return;
  sink_({.type = FaultServerEvent::Type::kLost, .error = why});
}

void FaultServer::Arrived(uint64_t first_page, uint64_t pages, bool demanded, bool zero) {
  const double now_ms = MonotonicMs();
  for (uint64_t page = first_page; page < first_page + pages; page++) {
    const bool was_lacking = lacking_->Remove(page);
    if (was_lacking) (demanded ? counted_.demanded_pages : counted_.background_pages)++;
    if (was_lacking && zero) counted_.zero_pages++;
    const auto waiting = waiting_.find(page);
    if (waiting == waiting_.end()) continue;
    latency_.Add((now_ms - waiting->second) * 1e3);
    waiting_.erase(waiting);
  }
}

void FaultServer::Publish() {
  counted_.pages_left = lacking_ ? lacking_->size() : 0;
  counted_.waiting = waiting_.size();
  counted_.p50_us = latency_.Percentile(0.5);
  counted_.p99_us = latency_.Percentile(0.99);
  counted_.max_us = latency_.max_us();
  const std::lock_guard lock(mutex_);
  published_ = counted_;
}

}  // namespace holdfast
