// OpenVINO, on CPU.
#include <algorithm>
#include <cstring>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>

#include "engine.h"
#include "error.h"

namespace spnas {

namespace {

// The plug-ins of the process: opening one takes longer than an inference.
ov::Core &Core() {
  static ov::Core core;
  return core;
}

// What OpenVINO says of an error, at the end of lines that say where in its sources.
std::string LastLine(const std::exception &error) {
  std::string text = error.what();
  text.erase(text.find_last_not_of(" \n") + 1);
  return text.substr(text.find_last_of('\n') + 1);
}

ov::AnyMap Properties(const Device &device) {
  return {ov::hint::inference_precision(device.precision == "bfloat16" ? ov::element::bf16
                                                                       : ov::element::f32),
          ov::inference_num_threads(device.threads), ov::num_streams(1),
          // Several models at once would be pinned to the same cores.
          ov::hint::enable_cpu_pinning(false)};
}

void CheckPrecision(const Device &device) {
  const std::vector<std::string> able = Core().get_property("CPU", ov::device::capabilities);
  if (device.precision == "bfloat16" && std::find(able.begin(), able.end(), "BF16") == able.end()) {
    throw UserError(
        "precision is bfloat16, which this processor does not compute in; should be float32");
  }
}

class OpenVinoEngine : public Engine {
 public:
  OpenVinoEngine(const std::string &path, const Device &device, const Shape &input) : path_(path) {
    const std::shared_ptr<ov::Model> model = Read(path);
    if (model->inputs().size() != 1 || model->outputs().size() != 1 ||
        model->input().get_element_type() != ov::element::f32 ||
        model->output().get_element_type() != ov::element::f32) {
      throw UserError(path +
                      ": should have one input and one output of float32; it is no model of "
                      "export.py");
    }
    if (!input.empty()) {
      Resize(model.get(), input);
    }
    if (model->is_dynamic()) {
      throw UserError(path + ": its shapes are not fixed; it is no model of export.py");
    }
    try {
      request_ = Core().compile_model(model, "CPU", Properties(device)).create_infer_request();
    } catch (const ov::Exception &error) {
      throw UserError(path + ": the runtime cannot load it (" + LastLine(error) + ")");
    }
    const ov::Shape in = model->input().get_shape(), out = model->output().get_shape();
    input_.assign(in.begin(), in.end());
    output_.assign(out.begin(), out.end());
  }

  const Shape &input_shape() const override { return input_; }
  const Shape &output_shape() const override { return output_; }

  void Predict(const float *input, float *output) override {
    try {
      // Read where it is. OpenVINO only takes pointers that may be written to.
      if (input != bound_) {
        request_.set_input_tensor({ov::element::f32, ov::Shape(input_.begin(), input_.end()),
                                   const_cast<float *>(input)});
        bound_ = input;
      }
      request_.infer();
      std::memcpy(output, request_.get_output_tensor().data<float>(),
                  Elements(output_) * sizeof(float));
    } catch (const ov::Exception &error) {
      throw Fault(path_ + ": inference failed (" + LastLine(error) + ")");
    }
  }

 private:
  static std::shared_ptr<ov::Model> Read(const std::string &path) {
    try {
      return Core().read_model(path);
    } catch (const ov::Exception &error) {
      throw UserError(path + ": the runtime cannot load it (" + LastLine(error) + ")");
    }
  }

  void Resize(ov::Model *model, const Shape &wanted) {
    const std::string message = path_ + ": its input cannot be made " + Numbers(wanted) +
                                "; export.py --batch_size " + std::to_string(wanted[0]) +
                                " writes such a model";
    try {
      model->reshape(ov::PartialShape(std::vector<ov::Dimension>(wanted.begin(), wanted.end())));
    } catch (const ov::Exception &) {
      throw UserError(message);
    }
    const ov::PartialShape output = model->output().get_partial_shape();
    // A reshape within the model may hold the old batch size.
    if (output.is_static() && output[0].get_length() != wanted[0]) {
      throw UserError(message);
    }
  }

  ov::InferRequest request_;
  const float *bound_ = nullptr;  // the memory that the request reads
  std::string path_;
  Shape input_;
  Shape output_;
};

}  // namespace

std::unique_ptr<Engine> LoadWithOpenVino(const std::string &path, const Device &device,
                                         const Shape &input) {
  if (device.ascend) {
    throw UserError("device is Ascend310; with --runtime openvino it should be CPU");
  }
  CheckPrecision(device);
  return std::make_unique<OpenVinoEngine>(path, device, input);
}

std::string OpenVinoVersion() {
  // For example "2026.4.1-12345-0123456789a-releases/2026/4".
  const std::string build = ov::get_openvino_version().buildNumber;
  return "OpenVINO " + build.substr(0, build.find('-'));
}

}  // namespace spnas
