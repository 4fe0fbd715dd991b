#include "checkpoint/chain_origin.h"

#include <fcntl.h>

#include <limits>
#include <span>
#include <utility>

#include "postcopy/file_origin.h"

namespace holdfast {

Result<std::unique_ptr<PageOrigin>> MakeChainOrigin(const std::vector<LayerFiles>& layers,
                                                    uint64_t ram_pages, uint32_t page_size) {
  auto opened = LayerChain::Open(layers);
  if (!opened.ok()) return opened.error();
  const auto chain = std::make_shared<LayerChain>(std::move(opened).value());
  if (chain->pages() != ram_pages || chain->page_size() != page_size) {
    return Error::Of(ErrorCode::kRamMapping,
                     "guest RAM is not as long as the checkpoint's, or on other pages");
  }
  std::vector<Descriptor> files;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    Descriptor file(::fcntl(chain->file(layer), F_DUPFD_CLOEXEC, 0));
    if (!file.valid()) return Error::FromErrno("fcntl", layers[layer].ram);
    files.push_back(std::move(file));
  }
  std::vector<FileExtent> extents;
  for (uint64_t page = 0; page < ram_pages;) {
    const auto stretch = chain->At(page, std::numeric_limits<uint32_t>::max());
    page += stretch.pages;
    if (stretch.zero) continue;
    extents.push_back({stretch.first_page, static_cast<uint32_t>(stretch.pages),
                       static_cast<uint32_t>(chain->LayerOf(stretch.first_page)),
                       stretch.first_page * page_size});
  }
  auto origin = FileOrigin::Create(
      std::move(files), std::move(extents), ram_pages, page_size, {},
      [chain](uint64_t first_page, std::span<const std::byte> bytes) {
        return chain->Check(first_page, bytes);
      });
  if (!origin.ok()) return origin.error();
  return std::unique_ptr<PageOrigin>(std::move(origin).value());
}

}  // namespace holdfast
