// Reading tracefs where nobody has mounted it: in a network namespace of
// `ip netns`, which has a /sys of its own, and in many containers. The mount is
// attached nowhere, and is gone when this returns.
#pragma once

#include <string>

#include "base/result.h"

namespace holdfast {

// A small file, by its path within tracefs.
Result<std::string> ReadTracefs(const std::string& path);

}  // namespace holdfast
