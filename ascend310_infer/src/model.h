// A model in one of the runtimes.
#ifndef SPNAS_MODEL_H_
#define SPNAS_MODEL_H_

#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "metadata.h"

namespace spnas {

// One input and one output of float32.
class Model {
 public:
  // Loads the model, for inputs of another shape than its own where one is given; throws UserError
  // where the runtime or the device cannot.
  Model(const std::string &path, const Device &device, const Shape &input = {});
  // Loads a classifier and checks it; throws UserError also where model, description and batch size
  // do not fit.
  Model(const std::string &path, const Metadata &metadata, const Device &device, int batch_size);

  size_t input_size() const { return Elements(engine_->input_shape()); }
  size_t output_size() const { return Elements(engine_->output_shape()); }

  // The output for an input, for example logits (batch_size, classes) of images (batch_size, 3,
  // height, width); throws Fault.
  void Predict(const float *input, float *output) { engine_->Predict(input, output); }

  // The same, and how long it took, in milliseconds.
  double TimedPredict(const float *input, float *output);

  // Inferences that no measurement counts; returns the duration of each in milliseconds.
  std::vector<double> WarmUp(const float *input, float *output);

 private:
  std::unique_ptr<Engine> engine_;
};

// A line for each runtime that the programs were built with, for example "MindSpore Lite 2.0.0".
std::string RuntimeVersions();

}  // namespace spnas

#endif  // SPNAS_MODEL_H_
