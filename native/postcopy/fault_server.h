// Serves the page faults of a process whose memory is not there yet.
//
//   Start ─► the origin lists what is lacking ─► its places are emptied: kListed
//        ─► whoever started it lets the VM run
//   faults: zeros at once, all others from the origin; beside them it brings the
//   rest ─► nothing is lacking any more: kComplete ─► Stop
//
// One thread. A fault is answered as soon as its page is there, whoever brought
// it. While the origin is lost the guest just waits. What is not listed reads as
// zeros from the first moment, and stays a hole in the file until it is touched.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "base/thread.h"
#include "postcopy/fault_latency.h"
#include "postcopy/page_installer.h"
#include "postcopy/page_origin.h"

namespace holdfast {

struct FaultServerEvent {
  enum class Type { kListed, kLost, kFound, kComplete, kFailed };
  Type type = Type::kFailed;
  uint64_t pages = 0;  // kListed
  Error error{};       // kLost, kFailed
};

class FaultServer final : private PageSink {
 public:
  // Called on the server's thread; must not block and must not call back.
  using EventSink = std::function<void(const FaultServerEvent&)>;

  struct Options {
    // userfaultfd over [address, address + ram_bytes) in missing mode, not
    // blocking; it stays the caller's, and outlives the server.
    int event_fd = -1;
    uint64_t address = 0;
    uint64_t ram_bytes = 0;
    uint32_t page_size = 0;
    // The file that is mapped there, from this offset on; likewise.
    int ram_fd = -1;
    uint64_t file_offset = 0;
    // Empty all of it at the start, not only what is listed.
    bool empty_all = false;
  };

  struct Stats {
    bool listed = false;
    uint64_t pages = 0;       // listed
    uint64_t pages_left = 0;  // lacking
    uint64_t demanded_pages = 0;
    uint64_t background_pages = 0;
    uint64_t zero_pages = 0;  // of both
    uint64_t faults = 0;
    uint64_t waiting = 0;  // faults that are not answered yet
    double p50_us = 0;
    double p99_us = 0;
    double max_us = 0;
  };

  static Result<std::unique_ptr<FaultServer>> Start(const Options& options,
                                                    std::unique_ptr<PageOrigin> origin,
                                                    EventSink sink);
  ~FaultServer() { Stop(); }

  // Ends the thread. Faults are answered no more.
  void Stop();

  Stats stats() const;

 private:
  FaultServer(const Options& options, std::unique_ptr<PageOrigin> origin, EventSink sink);

  Result<const PageSet*> List(const PageSet& pages) override;
  Status Install(uint64_t first_page, std::span<const std::byte> bytes, bool demanded) override;
  Status Zero(uint64_t first_page, uint64_t pages, bool demanded) override;
  void Lost(const Error& why) override;

  void Loop();
  Status Turn();
  Status ReadFaults();
  Status Answer(uint64_t page);
  Status Ask();
  void Arrived(uint64_t first_page, uint64_t pages, bool demanded, bool zero);
  Status Empty(const PageSet& pages) const;
  void Publish();

  const Options options_;
  const EventSink sink_;
  CancelSignal cancel_;

  // The thread's own.
  std::unique_ptr<PageOrigin> origin_;
  PageInstaller installer_;
  std::optional<PageSet> lacking_;                 // none: not listed yet
  std::unordered_map<uint64_t, double> waiting_;   // page to when its fault was read
  FaultLatency latency_;
  Stats counted_;
  bool ask_again_ = false;  // for all that wait
  bool lost_ = false;
  bool completed_ = false;

  mutable std::mutex mutex_;
  Stats published_;

  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
