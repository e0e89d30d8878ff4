// Measures how long models take, on Ascend 310 or CPU: every sample as a line of JSON. Also
// computes the answers of a model to given inputs. src/latency/worker.py does the same for runtimes
// of Python.
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "error.h"
#include "files.h"
#include "model.h"
#include "program.h"

namespace spnas {

namespace {

struct Flags {
  std::vector<std::string> models;
  Device device;
  int rounds = 0;  // 0: one for each line of standard input
  int repeats = 1;
  uint32_t seed = 0;
  std::string inputs;
  std::string outputs;
};

void Define(CLI::App *app, Flags *flags) {
  app->add_option("models", flags->models,
                  "models with one input and one output of float32, MindIR or ONNX")
      ->required();
  DefineDevice(app, &flags->device);
  app->add_option("--rounds", flags->rounds,
                  "how often each model is measured; where omitted, once for each line of standard "
                  "input, after a line that says 'ready'")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--repeats", flags->repeats,
                  "samples of a model in each round, after one that does not count")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--seed", flags->seed,
                  "of the order of the models, which is another one in every round");
  CLI::Option *outputs = app->add_option("--outputs", flags->outputs, "file for the answers");
  app->add_option("--inputs", flags->inputs,
                  "file of inputs, float32, one after the other: the first model's answers to them "
                  "are written in the same form, and nothing is measured")
      ->needs(outputs)
      ->check(CLI::ExistingFile);
  app->set_version_flag("--version", RuntimeVersions(), "print the versions of the runtimes");
}

int Answer(const Flags &flags) {
  Model model(flags.models.front(), flags.device);
  const std::string inputs = ReadFile(flags.inputs);
  const size_t bytes = model.input_size() * sizeof(float);
  if (inputs.size() % bytes != 0) {
    throw UserError(flags.inputs + ": holds " + std::to_string(inputs.size()) +
                    " bytes, should be a multiple of the " + std::to_string(bytes) +
                    " of an input");
  }
  std::vector<float> outputs(inputs.size() / bytes * model.output_size());
  for (size_t i = 0; i * bytes < inputs.size(); ++i) {
    model.Predict(reinterpret_cast<const float *>(inputs.data() + i * bytes),
                  outputs.data() + i * model.output_size());
  }
  WriteFile(flags.outputs, std::string(reinterpret_cast<const char *>(outputs.data()),
                                       outputs.size() * sizeof(float)));
  return kSuccess;
}

// Whether there is another round; waits for the line that asks for it.
bool Continues(const Flags &flags, int round) {
  std::string line;
  return flags.rounds == 0 ? static_cast<bool>(std::getline(std::cin, line)) : round < flags.rounds;
}

int Measure(const Flags &flags) {
  std::vector<std::unique_ptr<Model>> models;
  size_t input_size = 0, output_size = 0;
  for (const std::string &path : flags.models) {
    models.push_back(std::make_unique<Model>(path, flags.device));
    input_size = std::max(input_size, models.back()->input_size());
    output_size = std::max(output_size, models.back()->output_size());
  }
  std::mt19937 random(flags.seed);
  std::vector<float> input(input_size), output(output_size);
  std::normal_distribution<float> normal;
  std::generate(input.begin(), input.end(), [&] { return normal(random); });
  for (const auto &model : models) {
    model->WarmUp(input.data(), output.data());
  }
  std::vector<size_t> order(models.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> samples;
  if (flags.rounds == 0) {
    // Whoever asks for rounds may stop this process in between, and must not leave it so.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::cout << "ready" << std::endl;
  }
  for (int round = 0; Continues(flags, round); ++round) {
    std::shuffle(order.begin(), order.end(), random);
    samples.clear();
    for (const size_t index : order) {
      // One that does not count brings the model's weights back into the caches.
      models[index]->Predict(input.data(), output.data());
      for (int i = 0; i < flags.repeats; ++i) {
        samples.push_back(models[index]->TimedPredict(input.data(), output.data()));
      }
    }
    for (size_t i = 0; i < samples.size(); ++i) {
      const size_t index = order[i / static_cast<size_t>(flags.repeats)];
      std::cout << nlohmann::json({{"model", index}, {"round", round}, {"ms", samples[i]}}) << "\n";
    }
    std::cout.flush();
  }
  return kSuccess;
}

}  // namespace
}  // namespace spnas

int main(int argc, char **argv) {
  spnas::Flags flags;
  CLI::App app(
      "Measures how long models take, every sample as a line of JSON: model (its place among the "
      "flags), round, ms.",
      "profile");
  spnas::Define(&app, &flags);
  return spnas::RunProgram(&app, argc, argv, [&] {
    return flags.inputs.empty() ? spnas::Measure(flags) : spnas::Answer(flags);
  });
}
