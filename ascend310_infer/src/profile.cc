// Measures how long models take, on Ascend 310 or CPU: every sample as a line of JSON.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "error.h"
#include "model.h"
#include "program.h"

namespace spnas {

namespace {

struct Flags {
  std::vector<std::string> models;
  Device device;
  int rounds = 0;
  int repeats = 1;
  uint32_t seed = 0;
};

void Define(CLI::App *app, Flags *flags) {
  app->add_option("models", flags->models, "MindIR models with one input and one output of float32")
      ->required();
  DefineDevice(app, &flags->device);
  app->add_option("--rounds", flags->rounds,
                  "how often each model is measured; without end where omitted")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--repeats", flags->repeats,
                  "samples of a model in each round, after one that does not count")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--seed", flags->seed,
                  "of the order of the models, which is another one in every round");
  app->set_version_flag("--version", RuntimeVersion(), "print the version of the runtime");
}

int Run(const Flags &flags) {
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
  for (int round = 0; flags.rounds == 0 || round < flags.rounds; ++round) {
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
  return spnas::RunProgram(&app, argc, argv, [&] { return spnas::Run(flags); });
}
