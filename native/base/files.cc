#include "base/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/descriptor.h"

namespace holdfast {
namespace {

constexpr uint64_t kChunkBytes = 1ull << 20;
// Two of them stay in a core's cache; and what is mostly holes is skipped in smaller pieces.
constexpr uint64_t kCompareBytes = 128 << 10;

// A file read front to back in chunks, that knows where its holes are.
class ChunkReader {
 public:
  static Result<ChunkReader> Open(const std::string& path) {
    Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return Error::FromErrno("open", path);
    return ChunkReader(std::move(file), path);
  }

  // Nothing but a hole in [offset, offset + bytes)? Offsets must not go back.
  bool IsHole(uint64_t offset, uint64_t bytes) {
    if (data_at_ < offset) {
      const off_t data = ::lseek(file_.get(), static_cast<off_t>(offset), SEEK_DATA);
      // ENXIO: holes up to the end, but where that is, only a read can tell.
      data_at_ = data < 0 ? offset : static_cast<uint64_t>(data);
    }
    return data_at_ >= offset + bytes;
  }

  Status Read(uint64_t offset, std::byte* target, uint64_t bytes) const {
    for (uint64_t done = 0; done < bytes;) {
      const ssize_t got =
          ::pread(file_.get(), target + done, bytes - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Error::FromErrno("pread", path_);
      if (got == 0) return Error::Of(ErrorCode::kSyscall, path_ + " is shorter than asked for");
      done += static_cast<uint64_t>(got);
    }
    return {};
  }

 private:
  ChunkReader(Descriptor file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  Descriptor file_;
  std::string path_;
  uint64_t data_at_ = 0;  // no data lies between the last offset asked for and here
};

Error Cancelled() { return Error::Of(ErrorCode::kCancelled, "reading was cancelled"); }

}  // namespace

Result<uint64_t> HashFile(const std::string& path, uint64_t bytes, const CancelSignal& cancel) {
  auto reader = ChunkReader::Open(path);
  if (!reader.ok()) return reader.error();
  std::vector<std::byte> chunk(kChunkBytes);
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  for (uint64_t offset = 0; offset < bytes; offset += kChunkBytes) {
    if (cancel.cancelled()) return Cancelled();
    const uint64_t length = std::min(kChunkBytes, bytes - offset);
    HF_TRY(reader.value().Read(offset, chunk.data(), length));
    XXH3_64bits_update(state.get(), chunk.data(), length);
  }
  return XXH3_64bits_digest(state.get());
}

Result<std::vector<uint64_t>> CompareFiles(const std::string& left, const std::string& right,
                                           uint64_t bytes, uint32_t page_size, uint64_t limit,
                                           const CancelSignal& cancel) {
  auto left_reader = ChunkReader::Open(left);
  if (!left_reader.ok()) return left_reader.error();
  auto right_reader = ChunkReader::Open(right);
  if (!right_reader.ok()) return right_reader.error();
  const uint64_t step = std::max<uint64_t>(kCompareBytes / page_size, 1) * page_size;
  std::vector<std::byte> left_chunk(step), right_chunk(step);
  std::vector<uint64_t> pages;
  for (uint64_t offset = 0; offset < bytes; offset += step) {
    if (cancel.cancelled()) return Cancelled();
    const uint64_t length = std::min(step, bytes - offset);
    const bool left_hole = left_reader.value().IsHole(offset, length);
    const bool right_hole = right_reader.value().IsHole(offset, length);
    if (left_hole && right_hole) continue;
    HF_TRY(left_reader.value().Read(offset, left_chunk.data(), length));
    HF_TRY(right_reader.value().Read(offset, right_chunk.data(), length));
    if (std::memcmp(left_chunk.data(), right_chunk.data(), length) == 0) continue;
    for (uint64_t at = 0; at < length; at += page_size) {
      const uint64_t part = std::min<uint64_t>(page_size, length - at);
      if (std::memcmp(left_chunk.data() + at, right_chunk.data() + at, part) == 0) continue;
      if (pages.size() >= limit) return pages;
      pages.push_back((offset + at) / page_size);
    }
  }
  return pages;
}

}  // namespace holdfast
