// Memory that a thread needs for its tasks only, and keeps from one operator to the next.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "arena.h"

namespace spnas {

// What a buffer is used for. Two buffers that one thread uses at the same time must have different
// slots; that goes for a buffer of the calling thread too while it works on tasks of its own job.
enum class Slot {
  kPhases,     // a plane packed as input of a depthwise convolution
  kLine,       // outputs of a convolution or their gradients, with what lies between their rows
  kLines,      // gradients of a packed plane, phase by phase
  kPlanes,     // planes between two steps of one task
  kGradients,  // gradients of these planes
  kTile,       // channels of the pixels of a task
  kOther,      // the same of another tensor
  kGroup,      // planes of all samples of a few channels, from one pass over them to the next
  kJob,        // of the calling thread: what the first tasks of a job leave to the others
  kInputs,     // all inputs of one pixel
  kPairs,      // pixels in pairs (pairs.h)
  kTurned,     // channels of pairs of pixels, channel by channel (products.h)
  kSums,       // sums that are rounded when they are complete
  kSlotCount,  // not a slot
};

// Grown as needed and never given back.
template <typename T = float>
T *scratch(Slot slot, int64_t count) {
  const int64_t size = (count * sizeof(T) + sizeof(float) - 1) / sizeof(float);
  static thread_local std::unique_ptr<Buffer> buffers[static_cast<int>(Slot::kSlotCount)];
  std::unique_ptr<Buffer> &buffer = buffers[static_cast<int>(slot)];
  if (buffer == nullptr || buffer->size() < size || (kExactBuffers && buffer->size() > size)) {
    buffer = nullptr;  // first, so that the two never exist at the same time
    buffer = std::make_unique<Buffer>(size);
  }
  return reinterpret_cast<T *>(buffer->data());
}

inline float *zeroed(Slot slot, int64_t size) {
  float *data = scratch(slot, size);
  std::memset(data, 0, size * sizeof(float));
  return data;
}

}  // namespace spnas
