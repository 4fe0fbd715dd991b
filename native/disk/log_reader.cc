#include "disk/log_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <cinttypes>
#include <utility>

#include "wire/text.h"

namespace holdfast {

Result<std::unique_ptr<LogReader>> LogReader::Open(const std::string& path,
                                                   uint64_t image_bytes) {
  auto ring = Ring::Open(path);
  if (!ring.ok()) return ring.error();
  if (ring.value().image_bytes() != image_bytes) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("%s is the log of a disk of %" PRIu64 " bytes, not %" PRIu64,
                          path.c_str(), ring.value().image_bytes(), image_bytes));
  }
  RingHeader& header = ring.value().header();
  // A reader that was killed may have left these.
  header.head_waits.store(0);
  ring.value().SetStopPending(false);
  const uint64_t start = header.head.load();
  ring.value().Free(start);
  return std::unique_ptr<LogReader>(new LogReader(std::move(ring).value(), path, start));
}

LogReader::LogReader(Ring ring, std::string path, uint64_t start)
    : ring_(std::move(ring)),
      path_(std::move(path)),
      start_(start),
      sent_(start),
      received_(start) {}

// The server is not to answer flushes early for somebody who is gone.
LogReader::~LogReader() { ring_.SetStopPending(false); }

Status LogReader::Begin() {
  HF_TRY(CheckLogging());
  const uint64_t tail = ring_.header().tail.load();
  start_ = tail;
  received_ = tail;
  sent_ = tail;
  auto head = Head();
  if (!head.ok()) return head.error();
  return {};
}

Result<uint64_t> LogReader::Head() const {
  const uint64_t head = ring_.header().head.load();
  if (head < sent() || head - received() > ring_.ring_bytes()) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("%s: head %" PRIu64 ", but %" PRIu64 " to %" PRIu64 " were taken",
                          path_.c_str(), head, received(), sent()));
  }
  return head;
}

Status LogReader::CheckLogging() const {
  struct stat status {};
  if (::fstat(ring_.fd(), &status) != 0) return Error::FromErrno("fstat", path_);
  if (status.st_nlink == 0) {
    return Error::Of(ErrorCode::kPeerLost, path_ + " is gone: its disk server has ended, or was restarted");
  }
  if (ring_.header().logging.load() == 0) {
    return Error::Of(ErrorCode::kPeerLost, path_ + ": its disk server no longer logs");
  }
  return {};
}

LogReader::Part LogReader::Take(uint64_t end, uint64_t bytes_max) {
  const uint64_t lsn = sent();
  const Part part{lsn, std::min(end - std::min(end, lsn), bytes_max)};
  // Before the bytes leave: the answer to them may come at once.
  sent_.store(lsn + part.bytes, std::memory_order_release);
  return part;
}

Status LogReader::Received(uint64_t lsn) {
  if (lsn < received() || lsn > sent()) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("DISK_RECEIVED frame: LSN %" PRIu64 " is outside %" PRIu64
                          " to %" PRIu64,
                          lsn, received(), sent()));
  }
  received_.store(lsn, std::memory_order_release);
  ring_.Free(lsn);
  return {};
}

}  // namespace holdfast
