#include "disk/aside.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "wire/digest.h"

namespace holdfast {
namespace {

constexpr char kDataName[] = "aside";
constexpr char kIndexName[] = "aside.index";
constexpr char kIndexMagic[8] = {'H', 'F', 'D', 'A', 'S', 'I', 'D', '1'};
constexpr uint64_t kIndexHeadBytes = 4096;
// Merged in one go, before it is looked whether to stop.
constexpr uint64_t kMergeBytes = uint64_t{8} << 20;
// Four blocks of a byte at once that are all the image's.
constexpr uint64_t kBlocksPerByte = 4;

struct IndexHead {
  char magic[8];
  SyncId id;
  uint64_t image_bytes;
  uint64_t digest;  // xxh3-64 of the index
};

Error Unusable(const DiskDirectory& directory, const char* what) {
  return Error::Of(ErrorCode::kDisk,
                   "aside " + directory.At(kDataName) + ": " + what +
                       ". The journal needs it; restore it, or remove the journal to begin anew");
}

Result<Mapping> Memory(uint64_t bytes) {
  void* const at =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return Error::FromErrno("mmap", "aside", ErrorCode::kNoSpace);
  return Mapping(at, bytes);
}

}  // namespace

Result<std::unique_ptr<Aside>> Aside::Create(DiskDirectory& directory, const DiskFile& image) {
  Remove(directory);
  auto index = Memory(IndexBytesOf(image));
  if (!index.ok()) return index.error();
  auto data = directory.Create(kDataName, image.bytes());
  if (!data.ok()) return data.error();
  return std::unique_ptr<Aside>(
      new Aside(directory, image, std::move(data).value(), std::move(index).value()));
}

Result<std::unique_ptr<Aside>> Aside::Open(DiskDirectory& directory, const DiskFile& image,
                                           const SyncId& id) {
  auto data = directory.Open(kDataName);
  if (!data.ok()) return Unusable(directory, data.error().message.c_str());
  auto file = directory.Open(kIndexName);
  if (!file.ok()) return Unusable(directory, file.error().message.c_str());
  auto index = Memory(IndexBytesOf(image));
  if (!index.ok()) return index.error();
  const std::span<std::byte> bytes{index.value().data(), index.value().size()};
  IndexHead head;
  HF_TRY(file.value()->Read(0, std::as_writable_bytes(std::span(&head, 1))));
  if (std::memcmp(head.magic, kIndexMagic, sizeof head.magic) != 0 || head.id != id ||
      head.image_bytes != image.bytes() || data.value()->bytes() != image.bytes()) {
    return Unusable(directory, "it is another one's");
  }
  HF_TRY(file.value()->Read(kIndexHeadBytes, bytes));
  if (HashBytes(bytes) != head.digest) return Unusable(directory, "its index is damaged");
  return std::unique_ptr<Aside>(
      new Aside(directory, image, std::move(data).value(), std::move(index).value()));
}

void Aside::Remove(DiskDirectory& directory) {
  directory.Remove(kIndexName);
  directory.Remove(kDataName);
}

uint64_t Aside::BlockEnd(uint64_t block) const {
  return std::min((block + 1) * kBlockBytes, image_.bytes());
}

Aside::Block Aside::Get(uint64_t block) const {
  const auto byte = std::to_integer<unsigned>(index_.data()[block / kBlocksPerByte]);
  return static_cast<Block>(byte >> (block % kBlocksPerByte * 2) & 3);
}

void Aside::Set(uint64_t block, Block state) {
  std::byte& byte = index_.data()[block / kBlocksPerByte];
  const unsigned shift = block % kBlocksPerByte * 2;
  byte = (byte & ~(std::byte{3} << shift)) | std::byte(static_cast<unsigned>(state)) << shift;
}

// Before a part of the block is written: the rest is what it was.
Status Aside::FillUp(uint64_t block) {
  if (Get(block) != Block::kImage) return {};  // data, or zeros that the file has there
  std::array<std::byte, kBlockBytes> old;
  const uint64_t offset = block * kBlockBytes;
  const auto bytes = std::span(old).first(BlockEnd(block) - offset);
  HF_TRY(image_.Read(offset, bytes));
  return data_->Write(offset, bytes);
}

Status Aside::WriteWithin(uint64_t offset, std::span<const std::byte> bytes) {
  const uint64_t end = offset + bytes.size();
  const uint64_t first = offset / kBlockBytes;
  const uint64_t last = (end - 1) / kBlockBytes;
  if (offset % kBlockBytes != 0) HF_TRY(FillUp(first));
  if (end != BlockEnd(last)) HF_TRY(FillUp(last));
  HF_TRY(data_->Write(offset, bytes));
  for (uint64_t block = first; block <= last; block++) Set(block, Block::kData);
  return {};
}

Status Aside::Write(uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(mutex_);
  return bytes.empty() ? Status{} : WriteWithin(offset, bytes);
}

Status Aside::Zero(uint64_t offset, uint64_t bytes, bool hole) {
  static constexpr std::array<std::byte, kBlockBytes> kZeros{};
  const std::lock_guard lock(mutex_);
  const uint64_t end = offset + bytes;
  // Up to the first whole block, and from the last one on: as data.
  const uint64_t whole = std::min((offset + kBlockBytes - 1) / kBlockBytes * kBlockBytes, end);
  if (offset < whole) HF_TRY(WriteWithin(offset, std::span(kZeros).first(whole - offset)));
  const uint64_t whole_end =
      end == image_.bytes() ? end : std::max(whole, end / kBlockBytes * kBlockBytes);
  if (whole < whole_end) {
    HF_TRY(data_->Zero(whole, whole_end - whole, true));
    const uint64_t blocks_end = (whole_end + kBlockBytes - 1) / kBlockBytes;
    for (uint64_t block = whole / kBlockBytes; block < blocks_end; block++) {
      Set(block, hole ? Block::kHole : Block::kZeros);
    }
  }
  if (whole_end < end) HF_TRY(WriteWithin(whole_end, std::span(kZeros).first(end - whole_end)));
  return {};
}

Status Aside::Freeze(const SyncId& id) {
  HF_TRY(data_->Sync());
  auto file = directory_.Create(kIndexName, kIndexHeadBytes + index_.size());
  if (!file.ok()) return file.error();
  const std::span<const std::byte> bytes{index_.data(), index_.size()};
  IndexHead head{.magic = {}, .id = id, .image_bytes = image_.bytes(), .digest = HashBytes(bytes)};
  std::memcpy(head.magic, kIndexMagic, sizeof head.magic);
  HF_TRY(file.value()->Write(0, std::as_bytes(std::span(&head, 1))));
  HF_TRY(file.value()->Write(kIndexHeadBytes, bytes));
  HF_TRY(file.value()->Sync());
  return directory_.Sync();
}

Status Aside::Merge(DiskFile& image, const std::atomic<bool>& stop) const {
  const uint64_t blocks = BlocksOf(image);
  uint64_t block = 0;
  while (block < blocks) {
    if (block % kBlocksPerByte == 0 && index_.data()[block / kBlocksPerByte] == std::byte{0}) {
      block += kBlocksPerByte;
      continue;
    }
    const Block state = Get(block);
    uint64_t end = block + 1;
    const uint64_t end_max = std::min(blocks, block + kMergeBytes / kBlockBytes);
    while (end < end_max && Get(end) == state) end++;
    if (stop) return Error::Of(ErrorCode::kCancelled, "merging the aside: told to stop");
    const uint64_t offset = block * kBlockBytes;
    const uint64_t bytes = BlockEnd(end - 1) - offset;
    switch (state) {
      case Block::kImage: break;
      case Block::kData: HF_TRY(image.CopyFrom(*data_, offset, offset, bytes)); break;
      case Block::kZeros: HF_TRY(image.Zero(offset, bytes, false)); break;
      case Block::kHole: HF_TRY(image.Zero(offset, bytes, true)); break;
    }
    block = end;
  }
  return {};
}

}  // namespace holdfast
