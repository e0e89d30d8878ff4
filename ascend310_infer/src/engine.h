// The runtimes that compute a model, each behind the same few functions.
#ifndef SPNAS_ENGINE_H_
#define SPNAS_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace spnas {

using Shape = std::vector<int64_t>;

// What computes a model, and how.
struct Device {
  std::string runtime = "lite";       // or "openvino"
  std::string precision = "float32";  // or "bfloat16", of OpenVINO
  bool ascend = false;                // otherwise on CPU
  int id = 0;                         // of the Ascend device
  int threads = 1;                    // of the runtime, on CPU
};

// A loaded model with one input and one output of float32.
class Engine {
 public:
  Engine() = default;
  Engine(const Engine &) = delete;
  Engine &operator=(const Engine &) = delete;
  virtual ~Engine() = default;

  virtual const Shape &input_shape() const = 0;
  virtual const Shape &output_shape() const = 0;

  // Throws Fault.
  virtual void Predict(const float *input, float *output) = 0;
};

// Each loads a model, for inputs of another shape than its own where one is given; throws UserError
// where runtime or device cannot.
std::unique_ptr<Engine> LoadWithLite(const std::string &path, const Device &device,
                                     const Shape &input);
std::unique_ptr<Engine> LoadWithOpenVino(const std::string &path, const Device &device,
                                         const Shape &input);

// Name and version, for example "MindSpore Lite 2.0.0". That of OpenVINO is empty where the
// programs were built without it.
std::string LiteVersion();
std::string OpenVinoVersion();

// For messages: numbers with x between them.
std::string Numbers(const Shape &shape);

// Product of the numbers.
size_t Elements(const Shape &shape);

}  // namespace spnas

#endif  // SPNAS_ENGINE_H_
