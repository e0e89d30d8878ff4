#include "model.h"

#include <functional>
#include <numeric>

#include "error.h"
#include "timing.h"

namespace spnas {

namespace {

constexpr int kNewestMindIr = 1;  // that MindSpore Lite 2.0.0 reads

// The first inferences of a model are slower. As many as WARM_UP of src/latency/runtimes.py.
constexpr int kWarmUp = 3;

// The path of a model whose format the runtime reads.
const std::string &Readable(const std::string &path, const Metadata &metadata,
                            const Device &device) {
  const std::string format = device.runtime == "openvino" ? "ONNX" : "MINDIR";
  if (metadata.format != format) {
    throw UserError(path + ": of format " + metadata.format + ", --runtime " + device.runtime +
                    " reads " + format + "; export.py --file_format " + format + " writes it");
  }
  if (metadata.mindir_version > kNewestMindIr) {
    throw UserError(path + ": MindIR of format version " + std::to_string(metadata.mindir_version) +
                    ", this runtime reads " + std::to_string(kNewestMindIr) +
                    "; export.py --mindir_version " + std::to_string(kNewestMindIr) + " writes it");
  }
  return path;
}

}  // namespace

std::string Numbers(const Shape &shape) {
  std::string text;
  for (const int64_t size : shape) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

size_t Elements(const Shape &shape) {
  return static_cast<size_t>(
      std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>()));
}

Model::Model(const std::string &path, const Device &device, const Shape &input)
    : engine_(device.runtime == "openvino" ? LoadWithOpenVino(path, device, input)
                                           : LoadWithLite(path, device, input)) {}

Model::Model(const std::string &path, const Metadata &metadata, const Device &device,
             int batch_size)
    : Model(Readable(path, metadata, device), device,
            {batch_size, kColors, metadata.preprocessing.height, metadata.preprocessing.width}) {
  const Shape wanted = {batch_size, static_cast<int64_t>(metadata.classes.size())};
  if (engine_->output_shape() != wanted) {
    throw UserError(path + ": gives " + Numbers(engine_->output_shape()) + ", should give " +
                    Numbers(wanted) + " logits of float32, as its description says");
  }
}

double Model::TimedPredict(const float *input, float *output) {
  const auto start = Clock::now();
  Predict(input, output);
  return Milliseconds(start, Clock::now());
}

std::vector<double> Model::WarmUp(const float *input, float *output) {
  std::vector<double> milliseconds;
  for (int i = 0; i < kWarmUp; ++i) {
    milliseconds.push_back(TimedPredict(input, output));
  }
  return milliseconds;
}

std::string RuntimeVersions() {
  const std::string openvino = OpenVinoVersion();
  return LiteVersion() + (openvino.empty() ? "" : "\n" + openvino);
}

}  // namespace spnas
