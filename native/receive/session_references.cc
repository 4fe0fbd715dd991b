// REFERENCES, and WANTED: pages that a disk of ours has, and those of them that it
// turned out not to have.

#include <utility>

#include "receive/session.h"

namespace holdfast {

// The pages are read to where those of a PAGES frame would have gone. What is
// missing comes again before the epoch or the round is whole: in a round over what
// was read here, in an epoch as a later segment of the same slice.
Status ReplicaSession::OnReferences(const FrameHeader& header, Stream& stream) {
  stream.table.resize(header.table_bytes);
  stream.references.resize(header.payload_bytes);
  iovec parts[2] = {{stream.table.data(), stream.table.size()},
                    {stream.references.data(), stream.references.size()}};
  HF_TRY(stream.reader.Read(parts, kFrameHeaderBytes, DigestOf(stream)));
  std::span<std::byte> pages;
  {
    const std::lock_guard turn(receive_mutex_);
    HF_TRY(decoder_.Table(stream.index, stream.table));
    HF_TRY(decoder_.References(stream.index, stream.references));
    HF_TRY(replica_.Reserve());
    if (stream.in_round) {
      replica_.Place(stream.table, stream.parts);
    } else {
      const uint64_t bytes =
          header.payload_bytes / DiskReference::kBytes * options_.page_size;
      HF_TRY(MakeRoom(*incoming_.slot, bytes));
      auto place = incoming_.slot->staging.Place(bytes);
      if (!place.ok()) return place.error();
      pages = place.value();
      stream.parts.assign(1, {pages.data(), pages.size()});
    }
  }
  if (!stream.reference_reader) {
    stream.reference_reader.emplace(reference_disks_, stream.disk_reads, options_.page_size,
                                    stream.in_round);
  }
  const auto& missing = stream.reference_reader->Read(stream.references, stream.parts);
  const std::lock_guard turn(receive_mutex_);
  if (!stream.in_round) incoming_.slot->staging.AddSegment(header.slice, stream.table, pages);
  incoming_.wanted.different += missing.why.different;
  incoming_.wanted.unread += missing.why.unread;
  size_t index = 0;  // of the run's first page
  size_t next = 0;   // missing one
  WireRun run;
  for (RunCursor runs(stream.table); runs.Next(run); index += run.pages) {
    for (; next < missing.indexes.size() && missing.indexes[next] < index + run.pages; next++) {
      decoder_.Want({run.first_page + (missing.indexes[next] - index), 1});
    }
  }
  return {};
}

// Under receive_mutex_, when all parts have ended and pages are wanted. The part of
// stream 0 begins anew with them, and so does its digest: its thread sees both, for
// it takes its turn before it looks at a frame.
Status ReplicaSession::AskAgain() {
  const auto table = decoder_.AskAgain();
  const auto why = EncodeWanted(std::exchange(incoming_.wanted, {}));
  const std::lock_guard lock(mutex_);
  if (stopped()) return Error::Of(ErrorCode::kCancelled, "bulk connection: receiver is stopping");
  streams_[0]->digest.Reset();
  return Answer(streams_[0]->socket.get(), FrameType::kWanted, decoder_.epoch(), why, table);
}

}  // namespace holdfast
