// The layers of a checkpoint as where a VM's pages come from that runs already
// (postcopy/page_origin.h). No page gets to the guest unchecked.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"
#include "checkpoint/layer_chain.h"
#include "postcopy/page_origin.h"

namespace holdfast {

// kChecksum if they do not go together, or are not of a VM like this.
Result<std::unique_ptr<PageOrigin>> MakeChainOrigin(const std::vector<LayerFiles>& layers,
                                                    uint64_t ram_pages, uint32_t page_size);

}  // namespace holdfast
