// What tests look at to find leaks, beside threads and descriptors.
#pragma once

#include <atomic>

namespace holdfast::js {

// PrimaryEngine and Receiver objects not yet closed.
inline std::atomic<int> g_engines_open{0};

}  // namespace holdfast::js
