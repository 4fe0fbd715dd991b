// A VM that runs before its memory is there: its userfaultfd, the file of its
// RAM, and who serves its faults.
//
//   Start ─► the origin has listed what is lacking ─► load its state, let it run
//         ─► complete ─► Release: its QEMU is as any other
//
// Destroyed without Release, the guest waits for what it lacks, for ever.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/descriptor.h"
#include "base/result.h"
#include "guest/ram.h"
#include "guest/userfault.h"
#include "postcopy/fault_server.h"
#include "postcopy/page_origin.h"

namespace holdfast {

class EarlyGuest {
 public:
  struct Options {
    RamPlace ram;
    bool empty_all = false;  // as FaultServer takes it
  };

  using OriginMaker =
      std::function<Result<std::unique_ptr<PageOrigin>>(uint64_t ram_pages, uint32_t page_size)>;

  // While the VM is stopped, and before its state is loaded.
  static Result<std::unique_ptr<EarlyGuest>> Start(const Options& options,
                                                   const OriginMaker& make_origin,
                                                   FaultServer::EventSink sink);

  FaultServer::Stats stats() const { return server_->stats(); }
  double inject_ms() const { return userfault_->inject_ms(); }

  // Serves no more: what stats() say is final, and the guest waits for what it
  // lacks. Release, if that is nothing, lets it go on. Idempotent.
  void Stop() { server_->Stop(); }

  // Serves no more, and leaves no trace in QEMU. A page that is still lacking
  // would read as zeros: only once all are there, or when the VM is to end.
  Status Release();

 private:
  EarlyGuest() = default;

  std::unique_ptr<Userfault> userfault_;
  Descriptor ram_;
  std::unique_ptr<FaultServer> server_;  // last: it uses both
};

}  // namespace holdfast
