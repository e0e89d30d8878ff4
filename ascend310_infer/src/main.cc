// Classifies a folder of images with a model of export.py.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <mutex>
#include <opencv2/core.hpp>
#include <system_error>
#include <thread>

#include "error.h"
#include "files.h"
#include "image.h"
#include "metadata.h"
#include "model.h"
#include "pipeline.h"
#include "preprocess.h"
#include "program.h"
#include "report.h"
#include "timing.h"

namespace spnas {

namespace fs = std::filesystem;

namespace {

struct Flags {
  std::string model_path;
  std::string dataset_path;
  Device device;
  int batch_size = 0;  // 0: the model's own
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
};

void Define(CLI::App *app, Flags *flags) {
  app->add_option("--mindir_path,--model_path", flags->model_path,
                  "model of export.py, MindIR or ONNX; its description lies beside it")
      ->required();
  app->add_option("--dataset_path", flags->dataset_path, "folder of images, or of class folders")
      ->required();
  app->add_option("--batch_size", flags->batch_size,
                  "images per inference; the model's own where omitted")
      ->check(CLI::Range(1, kMaxBatch));
  app->add_option("--threads", flags->threads,
                  "images at work at once; on CPU each with a model of its own; the number of "
                  "cores where omitted")
      ->check(CLI::Range(1, 1024));
  DefineDevice(app, &flags->device);
}

using Models = std::vector<std::unique_ptr<Model>>;

// On CPU several images at once are fastest with a model each; a device has memory and time for
// one model.
Models LoadModels(const Flags &flags, const Metadata &metadata, int batch_size, int workers) {
  Models models;
  for (int i = 0; i < (flags.device.ascend ? 1 : workers); ++i) {
    models.push_back(std::make_unique<Model>(flags.model_path, metadata, flags.device, batch_size));
  }
  return models;
}

// The inference of each worker: with a model of its own, or in turn with the only one.
std::vector<Infer> InferFunctions(const Models &models, int workers, std::mutex *turn) {
  std::vector<Infer> functions;
  for (int i = 0; i < workers; ++i) {
    Model *model = models[static_cast<size_t>(i) % models.size()].get();
    if (models.size() < static_cast<size_t>(workers)) {
      functions.emplace_back([model, turn](const float *images, float *logits) {
        const std::lock_guard<std::mutex> lock(*turn);
        return model->TimedPredict(images, logits);
      });
    } else {
      functions.emplace_back([model](const float *images, float *logits) {
        return model->TimedPredict(images, logits);
      });
    }
  }
  return functions;
}

// Reads and prepares the files of a folder.
Prepare PrepareFunction(const fs::path &folder, const std::vector<std::string> &files,
                        const Preprocessing &values) {
  return [folder, &files, max_pixels = values.max_pixels, preprocess = Preprocessor(values)](
             size_t index, float *tensor) {
    std::string bytes;
    try {
      bytes = ReadFile(folder / files[index]);
    } catch (const std::system_error &failure) {
      throw ImageError("cannot be read (" + failure.code().message() + ")");
    }
    preprocess(DecodeImage(bytes, max_pixels), tensor);
  };
}

std::vector<double> WarmUp(const Models &models, const PipelineOptions &options) {
  const std::vector<float> images(options.batch_size * options.tensor_size, 0.0F);
  std::vector<float> logits(options.batch_size * options.classes);
  std::vector<double> milliseconds;
  for (const auto &model : models) {
    const std::vector<double> durations = model->WarmUp(images.data(), logits.data());
    milliseconds.insert(milliseconds.end(), durations.begin(), durations.end());
  }
  return milliseconds;
}

int Run(const Flags &flags) {
  const Metadata metadata = ReadMetadata(flags.model_path);
  const std::vector<std::string> files = ListFiles(flags.dataset_path);
  const int batch_size = flags.batch_size > 0 ? flags.batch_size : metadata.batch_size;
  const size_t batches = (files.size() + batch_size - 1) / batch_size;
  const int workers = static_cast<int>(std::min<size_t>(flags.threads, batches));
  const Models models = LoadModels(flags, metadata, batch_size, workers);
  std::mutex turn;
  const std::vector<Infer> infer = InferFunctions(models, workers, &turn);

  cv::setNumThreads(1);  // images are at work in parallel already
  const Prepare prepare = PrepareFunction(flags.dataset_path, files, metadata.preprocessing);
  PipelineOptions options;
  options.batch_size = static_cast<size_t>(batch_size);
  options.tensor_size = static_cast<size_t>(metadata.preprocessing.TensorSize());
  options.classes = metadata.classes.size();

  Report report(".", metadata.classes);
  const std::vector<double> warm_up_ms = WarmUp(models, options);
  const auto start = Clock::now();
  RunPipeline(files.size(), options, prepare, infer,
              [&](const Answer &answer) { report.Add(files[answer.index], answer); });
  const double seconds = Milliseconds(start, Clock::now()) / 1000;
  report.Finish(seconds, warm_up_ms);
  std::cout << report.Performance(seconds, warm_up_ms);
  if (report.failed().empty()) {
    return kSuccess;
  }
  std::cerr << "main: error: " << report.failed().size() << " of " << files.size()
            << " files not answered:\n";
  for (const std::string &line : report.failed()) {
    std::cerr << "  " << line << "\n";
  }
  return kFault;
}

}  // namespace
}  // namespace spnas

int main(int argc, char **argv) {
  spnas::Flags flags;
  CLI::App app("Classifies a folder of images with a model of export.py, on Ascend 310 or CPU.",
               "main");
  spnas::Define(&app, &flags);
  return spnas::RunProgram(&app, argc, argv, [&] { return spnas::Run(flags); });
}
