// MindSpore Lite, on CPU or Ascend 310.
#include <cstring>

#include "engine.h"
#include "error.h"
#include "include/api/context.h"
#include "include/api/model.h"
#include "include/api/types.h"

namespace spnas {

namespace {

std::shared_ptr<mindspore::Context> CreateContext(const Device &device) {
  auto context = std::make_shared<mindspore::Context>();
  if (device.ascend) {
    auto ascend = std::make_shared<mindspore::AscendDeviceInfo>();
    ascend->SetDeviceID(static_cast<uint32_t>(device.id));
    context->MutableDeviceInfo().push_back(ascend);
  } else {
    context->SetThreadNum(device.threads);
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  }
  return context;
}

class LiteEngine : public Engine {
 public:
  LiteEngine(const std::string &path, const Device &device, const Shape &input) : path_(path) {
    if (!model_.Build(path, mindspore::kMindIR, CreateContext(device)).IsOk()) {
      throw UserError(
          device.ascend ? "device Ascend310 " + std::to_string(device.id) +
                              ": not there, or it cannot load " + path +
                              "; --device CPU runs everywhere, GLOG_v=2 shows the runtime's reason"
                        : path + ": the runtime cannot load it; GLOG_v=2 shows its reason");
    }
    std::vector<mindspore::MSTensor> inputs = model_.GetInputs();
    if (inputs.size() != 1 || inputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32) {
      throw UserError(path + ": should have one input of float32; it is no model of export.py");
    }
    input_ = input.empty() ? inputs[0].Shape() : input;
    if (inputs[0].Shape() != input_ && !model_.Resize(inputs, {input_}).IsOk()) {
      throw UserError(path + ": its input is " + Numbers(inputs[0].Shape()) +
                      " and cannot be made " + Numbers(input_) + "; export.py --batch_size " +
                      std::to_string(input_[0]) + " writes such a model");
    }
    const std::vector<mindspore::MSTensor> outputs = model_.GetOutputs();
    if (model_.GetInputs()[0].Shape() != input_ || outputs.size() != 1 ||
        outputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32 ||
        outputs[0].Shape().empty()) {
      throw UserError(path + ": should have one output of float32; it is no model of export.py");
    }
    output_ = outputs[0].Shape();
    output_[0] = input_[0];  // resizing leaves the old batch size here
  }

  const Shape &input_shape() const override { return input_; }
  const Shape &output_shape() const override { return output_; }

  void Predict(const float *input, float *output) override {
    std::vector<mindspore::MSTensor> inputs = model_.GetInputs();
    const size_t input_bytes = Elements(input_) * sizeof(float);
    const size_t output_bytes = Elements(output_) * sizeof(float);
    void *input_memory = inputs[0].MutableData();
    if (input_memory == nullptr || inputs[0].DataSize() != input_bytes) {
      throw Fault(path_ + ": the runtime gives no memory for the input");
    }
    std::memcpy(input_memory, input, input_bytes);
    std::vector<mindspore::MSTensor> outputs = model_.GetOutputs();
    if (!model_.Predict(inputs, &outputs).IsOk() || outputs.size() != 1 ||
        outputs[0].DataSize() != output_bytes) {
      throw Fault(path_ + ": inference failed; GLOG_v=2 shows the runtime's reason");
    }
    const std::shared_ptr<const void> answer = outputs[0].Data();
    if (answer == nullptr) {
      throw Fault(path_ + ": inference gave no result");
    }
    std::memcpy(output, answer.get(), output_bytes);
  }

 private:
  mindspore::Model model_;
  std::string path_;
  Shape input_;
  Shape output_;
};

}  // namespace

std::unique_ptr<Engine> LoadWithLite(const std::string &path, const Device &device,
                                     const Shape &input) {
  if (device.precision != "float32") {
    throw UserError("precision is " + device.precision +
                    "; with --runtime lite it should be float32");
  }
  return std::make_unique<LiteEngine>(path, device, input);
}

std::string LiteVersion() {
  const std::string own = mindspore::Version();  // the wheel's is empty
  const std::string version = own.empty() ? LITE_VERSION : own;
  return version.rfind("MindSpore", 0) == 0 ? version : "MindSpore Lite " + version;
}

}  // namespace spnas
