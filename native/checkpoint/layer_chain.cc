#include "checkpoint/layer_chain.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "checkpoint/whole_io.h"

namespace holdfast {
namespace {

constexpr size_t kChunkBytes = 512 << 10;

Error Cancelled() { return Error::Of(ErrorCode::kCancelled, "reading the checkpoint was cancelled"); }

Error DamagedPage(const std::string& path, uint64_t page, uint32_t page_size) {
  return Error::Of(ErrorCode::kChecksum, path + ": page " + std::to_string(page) + " (byte " +
                                             std::to_string(page * page_size) + ") is damaged");
}

struct OpenLayer {
  Descriptor ram;
  PageTable table;
};

Result<OpenLayer> OpenBoth(const LayerFiles& files, int flags) {
  Descriptor ram(::open(files.ram.c_str(), flags | O_CLOEXEC));
  if (!ram.valid()) return Error::FromErrno("open", files.ram);
  struct stat status {};
  if (::fstat(ram.get(), &status) != 0) return Error::FromErrno("fstat", files.ram);
  auto table = PageTable::Read(files.index, files.trailer,
                               {files.ram, static_cast<uint64_t>(status.st_size)});
  if (!table.ok()) return table.error();
  return OpenLayer{std::move(ram), std::move(table).value()};
}

}  // namespace

Result<LayerChain> LayerChain::Open(const std::vector<LayerFiles>& layers) {
  LayerChain chain;
  for (const LayerFiles& files : layers) {
    auto layer = OpenBoth(files, O_RDONLY);
    if (!layer.ok()) return layer.error();
    const PageTable& table = layer.value().table;
    const bool is_first = chain.layers_.empty();
    if (is_first) {
      chain.page_size_ = table.page_size();
      chain.layer_of_.assign(table.pages(), kZeroLayer);
      chain.digests_.resize(table.pages());
    }
    if (table.full() != is_first || table.page_size() != chain.page_size_ ||
        table.pages() != chain.pages() || chain.layers_.size() >= kZeroLayer) {
      return Error::Of(ErrorCode::kChecksum, files.index + " does not go with the layer below it");
    }
    const auto number = static_cast<uint16_t>(chain.layers_.size());
    for (uint64_t page = 0; page < table.pages(); ++page) {
      if (table.state(page) == PageState::kAbsent) continue;
      chain.layer_of_[page] = table.state(page) == PageState::kZero ? kZeroLayer : number;
      chain.digests_[page] = table.digest(page);
    }
    chain.layers_.push_back({files.ram, std::move(layer.value().ram)});
  }
  if (chain.layers_.empty()) return Error::Of(ErrorCode::kLimit, "a chain without layers");
  return chain;
}

LayerChain::Stretch LayerChain::At(uint64_t page, uint64_t pages_max) const {
  const uint64_t end = std::min(pages(), page + pages_max);
  const uint16_t layer = layer_of_[page];
  uint64_t next = page + 1;
  while (next < end && layer_of_[next] == layer) ++next;
  return {page, next - page, layer == kZeroLayer};
}

Result<uint64_t> LayerChain::Read(const Stretch& stretch, std::byte* target) const {
  HF_ASSERT(!stretch.zero);
  const Layer& layer = layers_[layer_of_[stretch.first_page]];
  const size_t bytes = stretch.pages * page_size_;
  HF_TRY(ReadAll(layer.file.get(), target, bytes, stretch.first_page * page_size_, layer.path));
  return FirstDamaged(stretch.first_page, {target, bytes});
}

uint64_t LayerChain::FirstDamaged(uint64_t first_page, std::span<const std::byte> content) const {
  uint64_t page = first_page;
  for (size_t at = 0; at < content.size(); at += page_size_, ++page) {
    if (PageDigest(page, content.data() + at, page_size_) != digests_[page]) return page;
  }
  return pages();
}

Status LayerChain::Check(uint64_t first_page, std::span<const std::byte> content) const {
  const uint64_t damaged = FirstDamaged(first_page, content);
  if (damaged == pages()) return {};
  return DamageAt(damaged);
}

Error LayerChain::DamageAt(uint64_t page) const {
  return DamagedPage(layers_[layer_of_[page]].path, page, page_size_);
}

Result<std::vector<LayerChain::Damage>> LayerChain::Verify(size_t limit,
                                                           const CancelSignal& cancel) const {
  std::vector<Damage> found;
  std::vector<std::byte> chunk(std::max<size_t>(kChunkBytes, page_size_));
  for (uint64_t page = 0; page < pages() && found.size() < limit;) {
    if (cancel.cancelled()) return Cancelled();
    Stretch stretch = At(page, chunk.size() / page_size_);
    page += stretch.pages;
    while (!stretch.zero && stretch.pages > 0 && found.size() < limit) {
      const auto damaged = Read(stretch, chunk.data());
      if (!damaged.ok()) return damaged.error();
      if (damaged.value() == pages()) break;
      found.push_back({layer_of_[damaged.value()], damaged.value()});
      stretch.first_page = damaged.value() + 1;
      stretch.pages = page - stretch.first_page;
    }
  }
  return found;
}

Status LayerChain::Assemble(const std::string& path, const CancelSignal& cancel) const {
  const Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) return Error::FromErrno("open", path);
  const Status assembled = [&]() -> Status {
    if (::ftruncate(file.get(), static_cast<off_t>(pages() * page_size_)) != 0) {
      return Error::FromErrno("ftruncate", path);
    }
    std::vector<std::byte> chunk(std::max<size_t>(kChunkBytes, page_size_));
    for (uint64_t page = 0; page < pages();) {
      if (cancel.cancelled()) return Cancelled();
      const Stretch stretch = At(page, chunk.size() / page_size_);
      page += stretch.pages;
      if (stretch.zero) continue;
      const auto damaged = Read(stretch, chunk.data());
      if (!damaged.ok()) return damaged.error();
      if (damaged.value() != pages()) return DamageAt(damaged.value());
      HF_TRY(WriteAll(file.get(), chunk.data(), stretch.pages * page_size_,
                      stretch.first_page * page_size_, path));
    }
    return {};
  }();
  if (!assembled.ok()) ::unlink(path.c_str());
  return assembled;
}

Result<Merged> MergeInto(const LayerFiles& lower, const LayerFiles& upper,
                         const std::string& index_path, const CancelSignal& cancel) {
  auto target = OpenBoth(lower, O_RDWR);
  if (!target.ok()) return target.error();
  auto source = OpenBoth(upper, O_RDONLY);
  if (!source.ok()) return source.error();
  PageTable& below = target.value().table;
  const PageTable& above = source.value().table;
  if (above.full() || above.page_size() != below.page_size() || above.pages() != below.pages()) {
    return Error::Of(ErrorCode::kChecksum, upper.index + " does not go with the layer below it");
  }
  const uint32_t page_size = above.page_size();
  std::vector<std::byte> chunk(std::max<size_t>(kChunkBytes, page_size));
  const uint64_t chunk_pages = chunk.size() / page_size;
  Merged merged;
  for (uint64_t page = 0; page < above.pages();) {
    const PageState state = above.state(page);
    uint64_t end = page + 1;
    while (end < above.pages() && end - page < chunk_pages && above.state(end) == state) ++end;
    const uint64_t first = std::exchange(page, end);
    if (state == PageState::kAbsent) continue;
    if (cancel.cancelled()) return Cancelled();
    merged.merged_pages += end - first;
    const uint64_t offset = first * page_size;
    const uint64_t bytes = (end - first) * page_size;
    if (state == PageState::kZero) {
      for (uint64_t i = first; i < end; ++i) below.SetZero(i);
      if (::fallocate(target.value().ram.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0 &&
          errno != EOPNOTSUPP) {
        return Error::FromErrno("fallocate", lower.ram);
      }
      continue;
    }
    HF_TRY(ReadAll(source.value().ram.get(), chunk.data(), bytes, offset, upper.ram));
    for (uint64_t i = first; i < end; ++i) {
      const uint64_t digest = PageDigest(i, chunk.data() + (i - first) * page_size, page_size);
      if (digest != above.digest(i)) return DamagedPage(upper.ram, i, page_size);
      below.SetContent(i, digest);
    }
    HF_TRY(WriteAll(target.value().ram.get(), chunk.data(), bytes, offset, lower.ram));
  }
  if (::fsync(target.value().ram.get()) != 0) return Error::FromErrno("fsync", lower.ram);
  auto trailer = below.Write(index_path);
  if (!trailer.ok()) return trailer.error();
  merged.content_pages = below.content_pages();
  merged.trailer = trailer.value();
  return merged;
}

}  // namespace holdfast
