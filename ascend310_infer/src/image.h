// Decoding of images; no content of a file can end the program.
#ifndef SPNAS_IMAGE_H_
#define SPNAS_IMAGE_H_

#include <cstdint>
#include <opencv2/core.hpp>
#include <stdexcept>
#include <string>

namespace spnas {

// Bytes that are no image, or a damaged one; says why.
struct ImageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Decodes a JPEG, PNG or BMP of any colour space to RGB, (H, W) of three bytes, as
// src/data/decoding.py does: JPEG with libjpeg-turbo itself, because OpenCV takes cut and damaged
// files for whole ones, the others with OpenCV. Throws ImageError for anything else, cut off,
// damaged or of more than `max_pixels`.
cv::Mat DecodeImage(const std::string &bytes, int64_t max_pixels);

}  // namespace spnas

#endif  // SPNAS_IMAGE_H_
