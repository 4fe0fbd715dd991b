#include "trace/tracepoint.h"

#include <algorithm>

namespace holdfast {

std::string ThreadFilter(const std::vector<std::string>& fields, std::vector<pid_t> threads) {
  std::sort(threads.begin(), threads.end());
  std::string filter;
  for (const std::string& field : fields) {
    for (size_t first = 0; first < threads.size();) {
      size_t last = first;
      while (last + 1 < threads.size() && threads[last + 1] - threads[last] <= 1) ++last;
      const std::string low = std::to_string(threads[first]);
      const std::string high = std::to_string(threads[last]);
      if (!filter.empty()) filter += "||";
      filter += low == high ? field + "==" + low
                            : "(" + field + ">=" + low + "&&" + field + "<=" + high + ")";
      first = last + 1;
    }
  }
  return filter;
}

}  // namespace holdfast
