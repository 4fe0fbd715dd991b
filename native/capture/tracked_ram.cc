#include "capture/tracked_ram.h"

#include <utility>

namespace holdfast {

Result<TrackedRam> TrackedRam::Attach(const RamPlace& place) {
  const auto& [pid, address, size, file_offset] = place;
  auto located = LocateRamMapping(pid, address, size, file_offset);
  if (!located.ok()) return located.error();
  auto view = RamView::Open(pid, located.value(), address, size, file_offset);
  if (!view.ok()) return view.error();
  auto tracker = DirtyTracker::Open(pid, address, size, located.value().page_size,
                                    view.value()->sparse_file());
  if (!tracker.ok()) return tracker.error();
  auto qemu_main = MainThread::Open(pid);
  if (!qemu_main.ok()) return qemu_main.error();
  // Last, for it is what a failure would have to undo in QEMU.
  auto userfault = Userfault::Acquire(pid, address, size);
  if (!userfault.ok()) return userfault.error();
  return TrackedRam{std::move(view).value(), std::move(tracker).value(),
                    std::move(qemu_main).value(), std::move(userfault).value()};
}

}  // namespace holdfast
