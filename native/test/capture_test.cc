// Sets of pages, and the staging pool under them.

#include <map>

#include "capture/staging_pool.h"
#include "guest/tracker.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

constexpr uint32_t kPage = 4096;
constexpr uint64_t kRamPages = 300;

// Page to page in the source: what a list of runs says, page by page.
using PageMap = std::map<uint64_t, uint64_t>;

PageMap MapOf(const std::vector<PageRun>& runs) {
  PageMap map;
  uint64_t next_page = 0;
  for (const PageRun& run : runs) {
    CHECK(run.pages > 0 && run.first_page >= next_page);  // ascending, disjoint
    next_page = run.first_page + run.pages;
    for (uint32_t i = 0; i < run.pages; i++) map[run.first_page + i] = run.source_page + i;
  }
  return map;
}

std::vector<PageRun> RandomRuns(Random& random) {
  std::vector<PageRun> runs;
  const uint64_t step_max = 1 + random() % 40;
  uint64_t source = random() % 1000;
  for (uint64_t page = random() % step_max; page < kRamPages;) {
    const auto pages =
        static_cast<uint32_t>(std::min<uint64_t>(1 + random() % 20, kRamPages - page));
    runs.push_back({page, source, pages});
    source += pages;
    page += pages + random() % step_max;
  }
  return runs;
}

TEST("superseded: the newer pages in place of the older, the rest where it was") {
  Random random(21);
  for (int round = 0; round < 5000; round++) {
    const auto older = RandomRuns(random);
    const auto newer = RandomRuns(random);
    PageMap expected = MapOf(older);
    for (const auto& [page, source] : MapOf(newer)) expected[page] = source;
    CHECK(MapOf(Superseded(older, newer)) == expected);
  }
  CHECK(Superseded({}, {}).empty());
}

TEST("union: every page once, at its own place") {
  Random random(22);
  for (int round = 0; round < 5000; round++) {
    const auto left = RandomRuns(random);
    const auto right = RandomRuns(random);
    PageMap expected;
    for (const auto& set : {MapOf(left), MapOf(right)}) {
      for (const auto& [page, source] : set) expected[page] = page;
    }
    CHECK(MapOf(UnionOf(left, right)) == expected);
  }
}

TEST("ordered: runs that overlap or go back come out ascending and disjoint") {
  Random random(23);
  for (int round = 0; round < 2000; round++) {
    std::vector<PageRun> runs;
    PageMap expected;
    for (uint64_t i = random() % 30; i > 0; i--) {
      const uint64_t page = random() % kRamPages;
      const auto pages = static_cast<uint32_t>(random() % 10);
      runs.push_back({page, page, pages});
      for (uint32_t p = 0; p < pages; p++) expected[page + p] = page + p;
    }
    CHECK(MapOf(Ordered(runs)) == expected);
  }
}

TEST("staging: what was staged first stays, what comes later lies behind it") {
  Random random(24);
  const Bytes ram = RandomBytes(random, kRamPages * kPage);
  const PageSource guest{-1, 0, ram.data(), ram.size()};
  for (const unsigned threads : {1u, 3u}) {
    WorkerPool pool(threads);
    for (int round = 0; round < 20; round++) {
      auto staging = StagingPool::Create(2 * kRamPages * kPage);
      CHECK(staging.ok());
      auto first = RandomRuns(random);
      auto second = RandomRuns(random);
      CHECK(staging.value()->Stage(guest, kPage, first, 0, pool).ok());
      CHECK(staging.value()->Stage(guest, kPage, second, PagesOf(first), pool).ok());
      const PageSource staged = staging.value()->source();
      for (const auto& [page, source] : MapOf(Superseded(first, second))) {
        CHECK(std::memcmp(staged.base + source * kPage, ram.data() + page * kPage, kPage) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
