#include "model.h"

#include <cstring>
#include <functional>
#include <numeric>

#include "error.h"
#include "include/api/context.h"
#include "include/api/model.h"
#include "include/api/types.h"
#include "timing.h"

namespace spnas {

namespace {

constexpr int kNewestMindIr = 1;  // that MindSpore Lite 2.0.0 reads

// The first inferences of a model are slower; as WARM_UP of src/latency/mindspore_runtime.py.
constexpr int kWarmUp = 3;

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

// The path of a model whose format this runtime reads.
const std::string &Readable(const std::string &path, const Metadata &metadata) {
  if (metadata.mindir_version > kNewestMindIr) {
    throw UserError(path + ": MindIR of format version " + std::to_string(metadata.mindir_version) +
                    ", this runtime reads " + std::to_string(kNewestMindIr) +
                    "; export.py --mindir_version " + std::to_string(kNewestMindIr) + " writes it");
  }
  return path;
}

}  // namespace

Model::Model(const std::string &path, const Device &device, const Shape &input)
    : model_(std::make_unique<mindspore::Model>()), path_(path) {
  const mindspore::Status built = model_->Build(path, mindspore::kMindIR, CreateContext(device));
  if (!built.IsOk()) {
    throw UserError(device.ascend
                        ? "device Ascend310 " + std::to_string(device.id) +
                              ": not there, or it cannot load " + path +
                              "; --device CPU runs everywhere, GLOG_v=2 shows the runtime's reason"
                        : path + ": the runtime cannot load it; GLOG_v=2 shows its reason");
  }
  std::vector<mindspore::MSTensor> inputs = model_->GetInputs();
  if (inputs.size() != 1 || inputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32) {
    throw UserError(path + ": should have one input of float32; it is no model of export.py");
  }
  const Shape wanted = input.empty() ? inputs[0].Shape() : input;
  if (inputs[0].Shape() != wanted && !model_->Resize(inputs, {wanted}).IsOk()) {
    throw UserError(path + ": its input is " + Numbers(inputs[0].Shape()) + " and cannot be made " +
                    Numbers(wanted) + "; export.py --batch_size " + std::to_string(wanted[0]) +
                    " writes such a model");
  }
  inputs = model_->GetInputs();
  const std::vector<mindspore::MSTensor> outputs = model_->GetOutputs();
  if (inputs[0].Shape() != wanted || outputs.size() != 1 ||
      outputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32) {
    throw UserError(path + ": should have one output of float32; it is no model of export.py");
  }
  input_bytes_ = Elements(wanted) * sizeof(float);
  Shape output = outputs[0].Shape();
  output[0] = wanted[0];  // resizing leaves the old batch size here
  output_bytes_ = Elements(output) * sizeof(float);
}

Model::Model(const std::string &path, const Metadata &metadata, const Device &device,
             int batch_size)
    : Model(Readable(path, metadata), device,
            {batch_size, kColors, metadata.preprocessing.height, metadata.preprocessing.width}) {
  const Shape wanted = {batch_size, static_cast<int64_t>(metadata.classes.size())};
  const Shape found = model_->GetOutputs()[0].Shape();
  if (found.size() != wanted.size() || found[1] != wanted[1]) {
    throw UserError(path + ": gives " + Numbers(found) + ", should give " + Numbers(wanted) +
                    " logits of float32, as its description says");
  }
}

Model::~Model() = default;

void Model::Predict(const float *input, float *output) {
  std::vector<mindspore::MSTensor> inputs = model_->GetInputs();
  void *input_memory = inputs[0].MutableData();
  if (input_memory == nullptr || inputs[0].DataSize() != input_bytes_) {
    throw Fault(path_ + ": the runtime gives no memory for the input");
  }
  std::memcpy(input_memory, input, input_bytes_);
  std::vector<mindspore::MSTensor> outputs = model_->GetOutputs();
  if (!model_->Predict(inputs, &outputs).IsOk() || outputs.size() != 1 ||
      outputs[0].DataSize() != output_bytes_) {
    throw Fault(path_ + ": inference failed; GLOG_v=2 shows the runtime's reason");
  }
  const std::shared_ptr<const void> answer = outputs[0].Data();
  if (answer == nullptr) {
    throw Fault(path_ + ": inference gave no result");
  }
  std::memcpy(output, answer.get(), output_bytes_);
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

std::string RuntimeVersion() {
  const std::string own = mindspore::Version();  // the wheel's is empty
  const std::string version = own.empty() ? LITE_VERSION : own;
  return version.rfind("MindSpore", 0) == 0 ? version : "MindSpore Lite " + version;
}

}  // namespace spnas
