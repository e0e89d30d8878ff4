// Classifies a folder of images with a model of export.py.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
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

namespace spnas {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int kWarmUp = 3;  // inferences a model before the clock starts

struct Flags {
  std::string mindir_path;
  std::string dataset_path;
  Device device;
  int batch_size = 0;  // 0: the model's own
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
};

void Define(CLI::App *app, Flags *flags) {
  app->add_option("--mindir_path", flags->mindir_path,
                  "model of export.py; its description lies beside it")
      ->required();
  app->add_option("--dataset_path", flags->dataset_path, "folder of images, or of class folders")
      ->required();
  app->add_option("--batch_size", flags->batch_size,
                  "images an inference; the model's own where omitted")
      ->check(CLI::Range(1, 1 << 16));
  app->add_option("--threads", flags->threads,
                  "images at work at once; on CPU each with a model of its own; the number of "
                  "cores where omitted")
      ->check(CLI::Range(1, 1024));
  DefineDevice(app, &flags->device);
}

std::vector<double> WarmUp(const std::vector<std::unique_ptr<Model>> &models, size_t input,
                           size_t output) {
  const std::vector<float> images(input, 0.0F);
  std::vector<float> logits(output);
  std::vector<double> milliseconds;
  for (const auto &model : models) {
    for (int i = 0; i < kWarmUp; ++i) {
      const auto start = Clock::now();
      model->Predict(images.data(), logits.data());
      milliseconds.push_back(
          std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    }
  }
  return milliseconds;
}

int Run(const Flags &flags) {
  const Metadata metadata = ReadMetadata(flags.mindir_path);
  const std::vector<std::string> files = ListFiles(flags.dataset_path);
  const fs::path folder(flags.dataset_path);
  const Device &device = flags.device;
  const int batch_size = flags.batch_size > 0 ? flags.batch_size : metadata.batch_size;

  // A processor computes several images at once best with a model each; a device has room and time
  // for one.
  std::vector<std::unique_ptr<Model>> models;
  for (int i = 0; i < (device.ascend ? 1 : flags.threads); ++i) {
    models.push_back(std::make_unique<Model>(flags.mindir_path, metadata, device, batch_size));
  }
  std::mutex shared_model;
  std::vector<Infer> infer;
  for (int i = 0; i < flags.threads; ++i) {
    Model *model = models[static_cast<size_t>(i) % models.size()].get();
    if (device.ascend) {
      infer.emplace_back([model, &shared_model](const float *images, float *logits) {
        const std::lock_guard<std::mutex> lock(shared_model);
        model->Predict(images, logits);
      });
    } else {
      infer.emplace_back(
          [model](const float *images, float *logits) { model->Predict(images, logits); });
    }
  }

  cv::setNumThreads(1);  // images are at work in parallel already
  const Preprocessor preprocess(metadata.preprocessing);
  PipelineOptions options;
  options.batch_size = static_cast<size_t>(batch_size);
  options.tensor_size = static_cast<size_t>(metadata.preprocessing.TensorSize());
  options.classes = metadata.classes.size();
  const auto prepare = [&](size_t index, float *tensor) {
    std::string bytes;
    try {
      bytes = ReadFile(folder / files[index]);
    } catch (const std::system_error &failure) {
      throw ImageError("cannot be read (" + failure.code().message() + ")");
    }
    preprocess(DecodeImage(bytes, metadata.preprocessing.max_pixels), tensor);
  };

  Report report(".", metadata.classes);
  const std::vector<double> warm_up = WarmUp(models, options.batch_size * options.tensor_size,
                                             options.batch_size * options.classes);
  const auto start = Clock::now();
  RunPipeline(files.size(), options, prepare, infer,
              [&](const Answer &answer) { report.Add(files[answer.index], answer); });
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  report.Finish(seconds, warm_up);
  std::cout << report.Performance(seconds, warm_up);
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
