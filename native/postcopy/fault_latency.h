// How long faults took: counted in buckets of a quarter of an octave, so that a
// percentile of any number of them costs a few hundred bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace holdfast {

class FaultLatency {
 public:
  void Add(double us) {
    const double index = us <= 1 ? 0 : std::floor(std::log2(us) * kPerOctave);
    buckets_[std::min(static_cast<size_t>(index), buckets_.size() - 1)]++;
    count_++;
    max_us_ = std::max(max_us_, us);
  }

  uint64_t count() const { return count_; }
  double max_us() const { return max_us_; }

  // The upper end of the bucket that it falls into; 0 if there were none.
  double Percentile(double share) const {
    if (count_ == 0) return 0;
    const auto rank = static_cast<uint64_t>(std::ceil(share * static_cast<double>(count_)));
    uint64_t seen = 0;
    for (size_t i = 0; i < buckets_.size(); i++) {
      seen += buckets_[i];
      if (seen >= rank) {
        return std::min(max_us_, std::exp2(static_cast<double>(i + 1) / kPerOctave));
      }
    }
    return max_us_;
  }

 private:
  static constexpr double kPerOctave = 4;
  std::array<uint64_t, 128> buckets_{};  // up to an hour
  uint64_t count_ = 0;
  double max_us_ = 0;
};

}  // namespace holdfast
