// Memory that a thread needs for its tasks only, and keeps from one operator to the next.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace spnas {

// What a buffer is used for. Two buffers that one thread uses at the same time must have different
// slots; that goes for a buffer of the calling thread too while it works on tasks of its own job.
enum class Slot {
  kPhases,     // a plane packed as input of a depthwise convolution
  kLine,       // outputs of a convolution or their gradients, with what lies between their rows
  kLines,      // gradients of a packed plane, phase by phase
  kPlanes,     // planes between two steps of one task
  kGroup,      // planes of all samples of a few channels, from one pass over them to the next
  kJob,        // of the calling thread: what the first tasks of a job leave to the others
  kInputs,     // all inputs of one pixel
  kSlotCount,  // not a slot
};

// Grown as needed and never given back.
inline float *scratch(Slot slot, int64_t size) {
  static thread_local std::vector<float> buffers[static_cast<int>(Slot::kSlotCount)];
  std::vector<float> &buffer = buffers[static_cast<int>(slot)];
  if (static_cast<int64_t>(buffer.size()) < size) {
    buffer.resize(size);
  }
  return buffer.data();
}

inline float *zeroed(Slot slot, int64_t size) {
  float *data = scratch(slot, size);
  std::memset(data, 0, size * sizeof(float));
  return data;
}

}  // namespace spnas
