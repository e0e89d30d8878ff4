// A model in MindSpore Lite, on CPU or Ascend 310.
#ifndef SPNAS_MODEL_H_
#define SPNAS_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "metadata.h"

namespace mindspore {
class Model;
}

namespace spnas {

struct Device {
  bool ascend = false;
  int id = 0;       // of the Ascend device
  int threads = 1;  // of the runtime, on CPU
};

using Shape = std::vector<int64_t>;

// One input and one output of float32.
class Model {
 public:
  // Loads the model, for inputs of another shape than its own where one is given; throws UserError
  // where the runtime or the device cannot.
  Model(const std::string &path, const Device &device, const Shape &input = {});
  // Loads a classifier and checks it; throws UserError also where model, description and batch size
  // do not fit.
  Model(const std::string &path, const Metadata &metadata, const Device &device, int batch_size);
  ~Model();

  size_t input_size() const { return input_bytes_ / sizeof(float); }
  size_t output_size() const { return output_bytes_ / sizeof(float); }

  // The output for an input, for example logits (batch_size, classes) of images (batch_size, 3,
  // height, width); throws Fault.
  void Predict(const float *input, float *output);

  // The same, and how long it took, in milliseconds.
  double TimedPredict(const float *input, float *output);

  // Inferences that no measurement counts; returns the duration of each in milliseconds.
  std::vector<double> WarmUp(const float *input, float *output);

 private:
  std::unique_ptr<mindspore::Model> model_;
  std::string path_;
  size_t input_bytes_ = 0;
  size_t output_bytes_ = 0;
};

// For example "MindSpore Lite 2.0.0".
std::string RuntimeVersion();

}  // namespace spnas

#endif  // SPNAS_MODEL_H_
