// The description that export.py writes beside a model: all that inference needs to know.
#ifndef SPNAS_METADATA_H_
#define SPNAS_METADATA_H_

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace spnas {

constexpr int kColors = 3;          // of an image, and channels of the network's input
constexpr int kMaxBatch = 1 << 16;  // images per inference

// What happens to an RGB image: bilinear resize of the short side, centre crop, normalisation,
// channels first.
struct Preprocessing {
  int height = 0;  // of the crop, pixels
  int width = 0;
  int resize = 0;                     // short side after resizing, pixels
  std::array<float, kColors> mean{};  // per RGB channel, of pixel values 0..255
  std::array<float, kColors> std{};
  int64_t max_pixels = 0;  // larger images are refused

  int64_t TensorSize() const { return kColors * static_cast<int64_t>(height) * width; }
};

struct Metadata {
  std::string model_file;
  std::string format;      // "MINDIR" or "ONNX"
  std::string sha256;      // of the model
  int mindir_version = 0;  // 0 where the model is no MindIR
  int batch_size = 0;      // that the model was exported with
  Preprocessing preprocessing;
  std::vector<std::string> classes;
};

// Reads the text of a description; throws UserError that names `origin` and the key at fault.
Metadata ParseMetadata(const std::string &text, const std::string &origin);

// Reads the description beside a model and checks that it belongs to the model; throws UserError.
Metadata ReadMetadata(const std::filesystem::path &model);

}  // namespace spnas

#endif  // SPNAS_METADATA_H_
