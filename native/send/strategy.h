// The ways page bytes can reach a socket, by the names that options and JSON use.
#pragma once

#include <cstddef>
#include <iterator>
#include <optional>
#include <string_view>

namespace holdfast {

enum class Strategy { kCopy, kSendfile, kSplice, kVmsplice, kZerocopy, kUring };

inline constexpr Strategy kAllStrategies[] = {Strategy::kCopy,     Strategy::kSendfile,
                                              Strategy::kSplice,   Strategy::kVmsplice,
                                              Strategy::kZerocopy, Strategy::kUring};
inline constexpr size_t kStrategyCount = std::size(kAllStrategies);

// Keep in step with SenderStrategy in lib/native.ts.
constexpr std::string_view StrategyName(Strategy strategy) {
  switch (strategy) {
    case Strategy::kCopy: return "copy";
    case Strategy::kSendfile: return "sendfile";
    case Strategy::kSplice: return "splice";
    case Strategy::kVmsplice: return "vmsplice";
    case Strategy::kZerocopy: return "zerocopy";
    case Strategy::kUring: return "uring";
  }
  return {};
}

constexpr std::optional<Strategy> StrategyNamed(std::string_view name) {
  for (const Strategy strategy : kAllStrategies) {
    if (StrategyName(strategy) == name) return strategy;
  }
  return std::nullopt;
}

}  // namespace holdfast
