// What a capture needs of a running QEMU: its guest RAM as a file and mapped,
// whose written pages are tracked, and its main thread. Nothing in QEMU is
// changed unless all of it can be had.
#pragma once

#include <memory>

#include "base/result.h"
#include "capture/step_aside.h"
#include "guest/ram.h"
#include "guest/ram_view.h"
#include "guest/tracker.h"
#include "guest/userfault.h"

namespace holdfast {

struct TrackedRam {
  static Result<TrackedRam> Attach(const RamPlace& place);

  std::unique_ptr<RamView> view;
  std::unique_ptr<DirtyTracker> tracker;  // asks the view's file
  MainThread qemu_main;
  std::unique_ptr<Userfault> userfault;
};

}  // namespace holdfast
