#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <opencv2/imgproc.hpp>

#include "image.h"

namespace spnas {

Preprocessor::Preprocessor(const Preprocessing &values) : values_(values), normalised_() {
  for (size_t channel = 0; channel < kColors; ++channel) {
    for (int pixel = 0; pixel < 256; ++pixel) {
      normalised_[channel][pixel] =
          (static_cast<float>(pixel) - values.mean[channel]) / values.std[channel];
    }
  }
}

void Preprocessor::operator()(const cv::Mat &rgb, float *tensor) const {
  // MindSpore's Resize: the long side in single precision, rounded down; OpenCV's INTER_LINEAR, to
  // the bit.
  const bool wide = rgb.rows < rgb.cols;
  const auto ratio = wide ? static_cast<float>(rgb.cols) / static_cast<float>(rgb.rows)
                          : static_cast<float>(rgb.rows) / static_cast<float>(rgb.cols);
  const float long_side = std::floor(ratio * static_cast<float>(values_.resize));
  if (long_side * static_cast<float>(values_.resize) > static_cast<float>(values_.max_pixels)) {
    throw ImageError(std::to_string(rgb.cols) + "x" + std::to_string(rgb.rows) +
                     " pixels, too narrow: resized it would have more than " +
                     std::to_string(values_.max_pixels));
  }
  const auto side = static_cast<int>(long_side);
  const cv::Size size = wide ? cv::Size(side, values_.resize) : cv::Size(values_.resize, side);
  cv::Mat resized;
  cv::resize(rgb, resized, size, 0, 0, cv::INTER_LINEAR);

  // MindSpore's CenterCrop: a smaller image is padded with black, of an odd number more above and
  // to the left.
  const int missing_rows = std::max(0, values_.height - resized.rows);
  const int missing_cols = std::max(0, values_.width - resized.cols);
  if (missing_rows > 0 || missing_cols > 0) {
    cv::copyMakeBorder(resized, resized, (missing_rows + 1) / 2, missing_rows / 2,
                       (missing_cols + 1) / 2, missing_cols / 2, cv::BORDER_CONSTANT);
  }
  const int top = (resized.rows - values_.height) / 2;
  const int left = (resized.cols - values_.width) / 2;
  const size_t plane = static_cast<size_t>(values_.height) * values_.width;
  for (int y = 0; y < values_.height; ++y) {
    const auto *row = resized.ptr<cv::Vec3b>(top + y) + left;
    float *out = tensor + static_cast<size_t>(y) * values_.width;
    for (int x = 0; x < values_.width; ++x) {
      for (size_t channel = 0; channel < kColors; ++channel) {
        out[channel * plane + x] = normalised_[channel][row[x][channel]];
      }
    }
  }
}

}  // namespace spnas
