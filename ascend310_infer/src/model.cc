#include "model.h"

#include <cstring>

#include "error.h"
#include "include/api/context.h"
#include "include/api/model.h"

namespace spnas {

namespace {

constexpr int kNewestMindIr = 1;  // that MindSpore Lite 2.0.0 reads

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

std::string Numbers(const std::vector<int64_t> &shape) {
  std::string text;
  for (const int64_t size : shape) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

}  // namespace

Model::Model(const std::string &path, const Metadata &metadata, const Device &device, int batch_size)
    : model_(std::make_unique<mindspore::Model>()), path_(path) {
  if (metadata.mindir_version > kNewestMindIr) {
    throw UserError(path + ": MindIR of format version " + std::to_string(metadata.mindir_version) +
                    ", this runtime reads " + std::to_string(kNewestMindIr) + "; export.py --mindir_version " +
                    std::to_string(kNewestMindIr) + " writes it");
  }
  const mindspore::Status built = model_->Build(path, mindspore::kMindIR, CreateContext(device));
  if (!built.IsOk()) {
    throw UserError(device.ascend
                        ? "device Ascend310 " + std::to_string(device.id) + ": not there, or it cannot load " + path +
                              "; --device CPU runs everywhere, GLOG_v=2 shows the runtime's reason"
                        : path + ": the runtime cannot load it; GLOG_v=2 shows its reason");
  }
  const Preprocessing &image = metadata.preprocessing;
  const std::vector<int64_t> wanted = {batch_size, 3, image.height, image.width};
  std::vector<mindspore::MSTensor> inputs = model_->GetInputs();
  if (inputs.size() != 1 || inputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32) {
    throw UserError(path + ": should have one input of float32; it is no model of export.py");
  }
  if (inputs[0].Shape() != wanted && !model_->Resize(inputs, {wanted}).IsOk()) {
    throw UserError(path + ": its input is " + Numbers(inputs[0].Shape()) + " and cannot be made " + Numbers(wanted) +
                    "; export.py --batch_size " + std::to_string(batch_size) + " writes such a model");
  }
  inputs = model_->GetInputs();
  const std::vector<mindspore::MSTensor> outputs = model_->GetOutputs();
  const auto classes = static_cast<int64_t>(metadata.classes.size());
  if (inputs[0].Shape() != wanted || outputs.size() != 1 ||
      outputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32 ||
      outputs[0].Shape().size() != 2 || outputs[0].Shape()[1] != classes) {  // resizing leaves the old batch size here
    throw UserError(path + ": gives " + (outputs.empty() ? "nothing" : Numbers(outputs[0].Shape())) + ", should give " +
                    Numbers({batch_size, classes}) + " logits of float32, as its description says");
  }
  input_bytes_ = static_cast<size_t>(batch_size * image.TensorSize()) * sizeof(float);
  output_bytes_ = static_cast<size_t>(batch_size * classes) * sizeof(float);
}

Model::~Model() = default;

void Model::Predict(const float *images, float *logits) {
  std::vector<mindspore::MSTensor> inputs = model_->GetInputs();
  void *input = inputs[0].MutableData();
  if (input == nullptr || inputs[0].DataSize() != input_bytes_) {
    throw Fault(path_ + ": the runtime gives no memory for the input");
  }
  std::memcpy(input, images, input_bytes_);
  std::vector<mindspore::MSTensor> outputs = model_->GetOutputs();
  if (!model_->Predict(inputs, &outputs).IsOk() || outputs.size() != 1 || outputs[0].DataSize() != output_bytes_) {
    throw Fault(path_ + ": inference failed; GLOG_v=2 shows the runtime's reason");
  }
  const std::shared_ptr<const void> output = outputs[0].Data();
  if (output == nullptr) {
    throw Fault(path_ + ": inference gave no result");
  }
  std::memcpy(logits, output.get(), output_bytes_);
}

}  // namespace spnas
