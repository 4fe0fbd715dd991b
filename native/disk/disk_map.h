// Which blocks of a disk's image may differ from the other host's: a file, mapped
// by the process that writes to the image, and readable beside it.
//
//   file: | MapHeader, one page | window 0 | window 1 |     bitmaps, whole pages
//
// A write is marked in the newer window. Rotate() forgets the older one and
// begins another: whoever knows that the other host has everything up to a
// rotation may call it once more. So what is marked is never less than what
// differs, and not much more.
//
// A shared mapping outlives its process, but not its host. A map that was left
// open when the host went down says nothing: it is not trusted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

inline constexpr char kMapMagic[8] = {'H', 'F', 'D', 'M', 'A', 'P', '1', '\0'};
inline constexpr uint32_t kMapVersion = 1;
inline constexpr uint64_t kMapHeaderBytes = 4096;
inline constexpr uint64_t kMapBlockBytes = 64 << 10;

// Names a state that both hosts had: equal ones, and only marked blocks differ.
// Zero: none.
using SyncId = std::array<std::byte, 16>;

enum class MapRole : uint32_t { kActive = 1, kReplica = 2 };

struct MapHeader {
  char magic[8];
  uint32_t version;
  uint32_t block_bytes;
  uint64_t image_bytes;
  uint64_t window_bytes;  // of one bitmap, whole pages
  uint64_t digest;        // xxh3-64 of the fields above: they never change

  SyncId sync_id;
  std::byte boot_id[16];  // of the host when it was last opened for writing
  uint32_t role;          // a MapRole: what it was last opened for
  uint32_t clean;         // 1: closed since then
  uint32_t fault;         // 1: the image lost a write that no mark tells of
  uint32_t newer;         // 0 or 1: the window in which writes are marked

  // Of the image's file, so that another one in its place, or one that somebody
  // else has written to, is not taken for it. Zeros: a block device, or not known.
  uint64_t image_inode;
  uint64_t image_ctime_ns;  // when it was closed, if it is clean
};
static_assert(sizeof(MapHeader) == 104);

class DiskMap {
 public:
  enum class Mode {
    kActive,   // a disk server that writes to the image
    kReplica,  // a backup's store that writes to it
    kRead,     // somebody who looks on: marks of a writer are seen as they are made
  };

  // For writing: made if it is missing or of an image of another size, all blocks
  // marked; one that is not to be trusted has all blocks marked and no sync id
  // from here on. Only one process at a time may have it open so (EBUSY). What
  // is no map, or damaged, is refused (EUCLEAN). `image`: the image's descriptor,
  // a writer's, which outlives the map; without it the map is tied to no file.
  static Result<DiskMap> Open(const std::string& path, uint64_t image_bytes, Mode mode, int image = -1);

  DiskMap(DiskMap&&) = default;
  DiskMap& operator=(DiskMap&&) = default;
  ~DiskMap() = default;  // without Close(): as if the process had died

  // As it was found: by Open for a writer, now for a reader.
  bool trusted() const;
  bool created() const { return created_; }
  // What it was open for before this; none if it was made now.
  std::optional<MapRole> role_found() const { return role_found_; }
  uint64_t image_bytes() const { return image_bytes_; }
  SyncId sync_id() const { return header().sync_id; }
  // On stable storage when it returns.
  Status SetSyncId(const SyncId& sync_id);

  // Any thread; not while Rotate() or Clear() runs.
  void Mark(uint64_t offset, uint64_t length);
  // As Mark(), and every later rotation keeps it, for as long as this is open.
  void MarkForGood(uint64_t offset, uint64_t length);
  void MarkAll() { Mark(0, image_bytes_); }
  // The image lost a write that had been answered, no mark tells where: the map
  // is not trusted from now on, and whoever opens it next begins anew.
  void SetFault();
  bool fault() const;

  void Rotate();
  void Clear();  // both windows

  // Of both windows. Runs ascend, are not empty, and end with the image.
  void ForEachMarkedRun(const std::function<void(uint64_t offset, uint64_t length)>& visit) const;
  uint64_t MarkedBlocks() const;
  bool IsMarked(uint64_t block) const;

  // Marks and header to stable storage, then "clean": only once the image is
  // there, too, and nobody writes to it any more. May be repeated if it fails.
  Status Close();

 private:
  DiskMap(Descriptor file, Mapping mapping, uint64_t image_bytes, std::string path)
      : file_(std::move(file)),
        mapping_(std::move(mapping)),
        image_bytes_(image_bytes),
        path_(std::move(path)) {}

  MapHeader& header() const { return *reinterpret_cast<MapHeader*>(mapping_.data()); }
  uint64_t* Window(uint32_t index) const;
  uint32_t Newer() const;
  uint64_t blocks() const { return (image_bytes_ + kMapBlockBytes - 1) / kMapBlockBytes; }
  uint64_t words() const { return (blocks() + 63) / 64; }
  uint64_t MarkedWord(uint64_t word) const;
  void ClearWindow(uint32_t index);
  Status Claim(MapRole role);
  Status SyncAll(size_t bytes) const;

  Descriptor file_;  // for a writer with a lock on it
  Mapping mapping_;
  uint64_t image_bytes_;
  std::string path_;
  int image_ = -1;
  bool writer_ = false;
  bool created_ = false;
  bool trusted_at_open_ = false;
  std::optional<MapRole> role_found_;
  std::vector<uint64_t> for_good_;  // a word for each of a window's, or none at all
};

}  // namespace holdfast
