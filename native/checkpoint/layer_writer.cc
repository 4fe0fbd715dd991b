#include "checkpoint/layer_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "checkpoint/whole_io.h"
#include "send/zero_page.h"

namespace holdfast {
namespace {

constexpr size_t kChunkBytes = 512 << 10;  // stays in a core's cache from the copy to the write
// Handed to the disk early, so that the last fdatasync has little left to wait for.
constexpr uint64_t kWritebackBytes = 16ull << 20;

}  // namespace

Result<std::unique_ptr<LayerWriter>> LayerWriter::Create(const std::string& path,
                                                         uint32_t page_size, uint64_t pages,
                                                         bool full) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) return Error::FromErrno("open", path);
  if (::ftruncate(file.get(), static_cast<off_t>(pages * page_size)) != 0) {
    return Error::FromErrno("ftruncate", path);
  }
  return std::unique_ptr<LayerWriter>(
      new LayerWriter(std::move(file), path, page_size, pages, full));
}

LayerWriter::LayerWriter(Descriptor file, std::string path, uint32_t page_size, uint64_t pages,
                         bool full)
    : file_(std::move(file)),
      path_(std::move(path)),
      table_(page_size, pages, full),
      chunk_(std::max<size_t>(kChunkBytes, page_size)) {}

Status LayerWriter::Write(const PageSource& source, const std::vector<PageRun>& runs,
                          const CancelSignal& cancel, Counts& counts) {
  const uint64_t page_size = table_.page_size();
  const uint64_t chunk_pages = chunk_.size() / page_size;
  for (const PageRun& run : runs) {
    for (uint64_t done = 0; done < run.pages;) {
      if (cancel.cancelled()) {
        return Error::Of(ErrorCode::kCancelled, "writing the checkpoint was cancelled");
      }
      const uint64_t pages = std::min(chunk_pages, run.pages - done);
      HF_TRY(WriteChunk(source.base + (run.source_page + done) * page_size, run.first_page + done,
                        pages, counts));
      done += pages;
    }
  }
  return {};
}

Status LayerWriter::WriteChunk(const std::byte* source, uint64_t first_page, uint64_t pages,
                               Counts& counts) {
  const uint64_t page_size = table_.page_size();
  std::memcpy(chunk_.data(), source, pages * page_size);
  for (uint64_t begin = 0; begin < pages;) {
    if (IsZeroPage(chunk_.data() + begin * page_size, page_size)) {
      const uint64_t page = first_page + begin++;
      if (table_.state(page) == PageState::kContent) HF_TRY(PunchPage(page));
      table_.SetZero(page);
      ++counts.zero_pages;
      continue;
    }
    uint64_t end = begin + 1;
    while (end < pages && !IsZeroPage(chunk_.data() + end * page_size, page_size)) ++end;
    HF_TRY(WriteAll(file_.get(), chunk_.data() + begin * page_size, (end - begin) * page_size,
                    (first_page + begin) * page_size, path_));
    for (uint64_t i = begin; i < end; ++i) {
      table_.SetContent(first_page + i,
                        PageDigest(first_page + i, chunk_.data() + i * page_size, page_size));
    }
    counts.content_pages += end - begin;
    unsynced_bytes_ += (end - begin) * page_size;
    begin = end;
  }
  return unsynced_bytes_ < kWritebackBytes ? Status() : StartWriteback();
}

Status LayerWriter::PunchPage(uint64_t page) {
  const uint64_t page_size = table_.page_size();
  if (::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(page * page_size), static_cast<off_t>(page_size)) == 0) {
    return {};
  }
  // Only its room is lost where that cannot be done: the index says that the page is zero.
  if (errno == EOPNOTSUPP) return {};
  return Error::FromErrno("fallocate", path_);
}

Status LayerWriter::StartWriteback() {
  unsynced_bytes_ = 0;
  // Advice: a file system without it writes later.
  (void)::sync_file_range(file_.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  return {};
}

Result<uint64_t> LayerWriter::Finish(const std::string& index_path) {
  if (::fsync(file_.get()) != 0) return Error::FromErrno("fsync", path_);
  return table_.Write(index_path);
}

}  // namespace holdfast
