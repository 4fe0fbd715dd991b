#include "checkpoint/page_table.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <span>

#include "base/descriptor.h"
#include "checkpoint/whole_io.h"
#include "wire/digest.h"

namespace holdfast {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[8] = {'H', 'F', 'C', 'K', 'R', 'A', 'M', '\n'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kPageSizeMin = 4096;
constexpr uint32_t kPageSizeMax = 2u << 20;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t page_size;
  uint64_t pages;
  uint64_t runs;
  uint64_t content_pages;
  uint32_t full;
  uint32_t unused;
};
static_assert(sizeof(Header) == 48);

struct Run {
  uint64_t first_page;
  uint32_t pages;
  uint32_t state;
};
static_assert(sizeof(Run) == 16);

Error Damaged(const std::string& path, const char* what) {
  return Error::Of(ErrorCode::kChecksum, path + " is damaged: " + what);
}

template <typename T>
void Append(std::vector<std::byte>& bytes, const T* values, size_t count) {
  const auto* begin = reinterpret_cast<const std::byte*>(values);
  bytes.insert(bytes.end(), begin, begin + count * sizeof(T));
}

Result<std::vector<std::byte>> ReadFile(const std::string& path, uint64_t bytes_max) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("open", path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return Error::FromErrno("fstat", path);
  if (static_cast<uint64_t>(status.st_size) > bytes_max) {
    return Damaged(path, "it is longer than that of all of RAM");
  }
  std::vector<std::byte> bytes(static_cast<size_t>(status.st_size));
  HF_TRY(ReadAll(file.get(), bytes.data(), bytes.size(), 0, path));
  return bytes;
}

}  // namespace

uint64_t PageDigest(uint64_t page, const std::byte* content, size_t page_size) {
  return HashBytes({content, page_size}, page);
}

PageTable::PageTable(uint32_t page_size, uint64_t pages, bool full)
    : page_size_(page_size), full_(full), states_(pages, PageState::kAbsent), digests_(pages) {}

void PageTable::Set(uint64_t page, PageState state) {
  content_pages_ -= states_[page] == PageState::kContent ? 1 : 0;
  zero_pages_ -= states_[page] == PageState::kZero ? 1 : 0;
  states_[page] = state;
  content_pages_ += state == PageState::kContent ? 1 : 0;
  zero_pages_ += state == PageState::kZero ? 1 : 0;
}

std::vector<PageRun> PageTable::Named() const {
  std::vector<PageRun> runs;
  for (uint64_t page = 0; page < states_.size(); ++page) {
    if (states_[page] == PageState::kAbsent) continue;
    if (!runs.empty() && runs.back().first_page + runs.back().pages == page) {
      ++runs.back().pages;
    } else {
      runs.push_back({page, page, 1});
    }
  }
  return runs;
}

Result<uint64_t> PageTable::Write(const std::string& path) const {
  std::vector<Run> runs;
  std::vector<uint64_t> digests;
  digests.reserve(content_pages_);
  for (uint64_t page = 0; page < states_.size(); ++page) {
    if (states_[page] == PageState::kAbsent) continue;
    const auto state = static_cast<uint32_t>(states_[page]);
    if (states_[page] == PageState::kContent) digests.push_back(digests_[page]);
    if (!runs.empty() && runs.back().state == state &&
        runs.back().first_page + runs.back().pages == page) {
      ++runs.back().pages;
    } else {
      runs.push_back({page, 1, state});
    }
  }
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.page_size = page_size_;
  header.pages = states_.size();
  header.runs = runs.size();
  header.content_pages = digests.size();
  header.full = full_ ? 1 : 0;
  std::vector<std::byte> bytes;
  Append(bytes, &header, 1);
  Append(bytes, runs.data(), runs.size());
  Append(bytes, digests.data(), digests.size());
  const uint64_t trailer = HashBytes(bytes);
  Append(bytes, &trailer, 1);

  const Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.valid()) return Error::FromErrno("open", path);
  HF_TRY(WriteAll(file.get(), bytes.data(), bytes.size(), 0, path));
  if (::fsync(file.get()) != 0) return Error::FromErrno("fsync", path);
  return trailer;
}

Result<PageTable> PageTable::Read(const std::string& path, uint64_t trailer, const Ram& ram) {
  // Every page on its own, and of the smallest size.
  const uint64_t pages_max = ram.bytes / kPageSizeMin;
  auto content = ReadFile(path, sizeof(Header) + pages_max * (sizeof(Run) + sizeof(uint64_t)) +
                                    sizeof trailer);
  if (!content.ok()) return content.error();
  const std::vector<std::byte>& bytes = content.value();
  Header header{};
  uint64_t found = 0;
  if (bytes.size() < sizeof header + sizeof found) return Damaged(path, "it is cut short");
  const size_t covered = bytes.size() - sizeof found;
  std::memcpy(&found, bytes.data() + covered, sizeof found);
  if (HashBytes(std::span(bytes).first(covered)) != found) {
    return Damaged(path, "its checksum does not match");
  }
  if (found != trailer) return Damaged(path, "it is not the one that its manifest names");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return Damaged(path, "its magic is wrong");
  if (header.version != kVersion) return Damaged(path, "its version is not known");
  // The checksum is no proof of sense: what follows is as if it came from a stranger.
  const uint64_t counted = covered - sizeof header;
  if (header.page_size < kPageSizeMin || header.page_size > kPageSizeMax ||
      !std::has_single_bit(header.page_size) || header.runs > counted / sizeof(Run) ||
      header.content_pages > counted / sizeof(uint64_t) || header.content_pages > header.pages ||
      header.pages > (1ull << 40) ||
      header.runs * sizeof(Run) + header.content_pages * sizeof(uint64_t) != counted) {
    return Damaged(path, "its counts do not add up");
  }
  if (header.pages * header.page_size != ram.bytes) {
    return Error::Of(ErrorCode::kChecksum,
                     ram.path + " is damaged: it has " + std::to_string(ram.bytes) +
                         " bytes instead of " + std::to_string(header.pages * header.page_size));
  }
  PageTable table(header.page_size, header.pages, header.full == 1);
  const std::byte* run_at = bytes.data() + sizeof header;
  const std::byte* digest_at = run_at + header.runs * sizeof(Run);
  uint64_t next_page = 0;
  uint64_t digests_left = header.content_pages;
  for (uint64_t i = 0; i < header.runs; ++i, run_at += sizeof(Run)) {
    Run run{};
    std::memcpy(&run, run_at, sizeof run);
    const bool has_content = run.state == static_cast<uint32_t>(PageState::kContent);
    if (run.first_page < next_page || run.first_page > header.pages || run.pages == 0 ||
        run.pages > header.pages - run.first_page ||
        (!has_content && run.state != static_cast<uint32_t>(PageState::kZero)) ||
        (has_content && run.pages > digests_left)) {
      return Damaged(path, "its runs do not add up");
    }
    next_page = run.first_page + run.pages;
    for (uint64_t page = run.first_page; page < next_page; ++page) {
      if (!has_content) {
        table.Set(page, PageState::kZero);
        continue;
      }
      uint64_t digest = 0;
      std::memcpy(&digest, digest_at, sizeof digest);
      digest_at += sizeof digest;
      --digests_left;
      table.SetContent(page, digest);
    }
  }
  if (digests_left != 0) return Damaged(path, "its runs do not add up");
  return table;
}

}  // namespace holdfast
