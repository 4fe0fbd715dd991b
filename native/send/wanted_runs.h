// Which of the runs that were sent the pages are in that a peer asks for again. Pure.
#pragma once

#include <span>
#include <vector>

#include "base/result.h"
#include "send/page_run.h"

namespace holdfast {

// `table`: checked. `sent`: ascending and disjoint. kProtocol if a page was not sent.
Result<std::vector<PageRun>> WantedRuns(std::span<const std::byte> table,
                                        std::span<const PageRun> sent);

}  // namespace holdfast
