// From pixels to the network's input, with the results of MindSpore's transforms that
// src/dataset.py uses for evaluation.
#ifndef SPNAS_PREPROCESS_H_
#define SPNAS_PREPROCESS_H_

#include <array>
#include <opencv2/core.hpp>

#include "metadata.h"

namespace spnas {

class Preprocessor {
 public:
  explicit Preprocessor(const Preprocessing &values);

  // Writes an RGB image (H, W) of bytes to `tensor`, (3, height, width), contiguous. Throws
  // ImageError for an image so narrow that it would not fit into memory after resizing. May be
  // called from several threads.
  void operator()(const cv::Mat &rgb, float *tensor) const;

 private:
  Preprocessing values_;
  std::array<std::array<float, 256>, kColors> normalised_;  // of every channel and pixel value
};

}  // namespace spnas

#endif  // SPNAS_PREPROCESS_H_
