// A model in MindSpore Lite, on CPU or Ascend 310.
#ifndef SPNAS_MODEL_H_
#define SPNAS_MODEL_H_

#include <memory>
#include <string>

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

class Model {
 public:
  // Loads and checks the model; throws UserError where model, description, batch size or device do not fit.
  Model(const std::string &path, const Metadata &metadata, const Device &device, int batch_size);
  ~Model();

  // Logits (batch_size, classes) of images (batch_size, 3, height, width); throws Fault.
  void Predict(const float *images, float *logits);

 private:
  std::unique_ptr<mindspore::Model> model_;
  std::string path_;
  size_t input_bytes_ = 0;
  size_t output_bytes_ = 0;
};

}  // namespace spnas

#endif  // SPNAS_MODEL_H_
