#include "program.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <thread>

#include "error.h"

namespace spnas {

namespace {

// MindSpore Lite repeats errors at length in a log of its own, whose level it reads while it is
// loaded.
void QuietRuntime(char **argv) {
  if (std::getenv("GLOG_v") == nullptr) {
    setenv("GLOG_v", "4", 1);
    execv("/proc/self/exe", argv);
  }
}

}  // namespace

void DefineDevice(CLI::App *app, Device *device) {
  const auto choose = [device](const std::string &name) { device->ascend = name == "Ascend310"; };
  device->ascend = true;
  app->add_option(
         "--runtime", device->runtime,
         "lite (where omitted): MindSpore Lite, for MindIR, on Ascend 310 or CPU; openvino: "
         "for ONNX, on CPU")
      ->check(CLI::IsMember({"lite", "openvino"}));
  app->add_option("--precision", device->precision,
                  "float32 (where omitted), or bfloat16 with the runtime openvino")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app->add_option_function<std::string>("--device", choose, "Ascend310 (where omitted) or CPU")
      ->check(CLI::IsMember({"Ascend310", "CPU"}));
  app->add_option("--device_id", device->id, "number of the Ascend device")
      ->check(CLI::Range(0, 1023));
  app->add_option(
         "--runtime_threads", device->threads,
         "threads of each model on CPU; more than 1 lowers the latency of a single inference")
      ->check(CLI::Range(1, static_cast<int>(std::max(1U, std::thread::hardware_concurrency()))));
}

int RunProgram(CLI::App *app, int argc, char **argv, const std::function<int()> &run) {
  QuietRuntime(argv);
  const std::string name = app->get_name();
  const auto ended = [&name](int code) {
    if (!std::cout.flush()) {
      std::cerr << name << ": fault: the output cannot be written (is the disk full?)\n";
      return static_cast<int>(kFault);
    }
    return code;
  };
  try {
    app->parse(argc, argv);
  } catch (const CLI::Success &success) {
    return ended(app->exit(success));
  } catch (const CLI::ParseError &error) {
    std::cerr << name << ": error: " << error.what() << " (" << name
              << " --help lists the flags)\n";
    return kUserMistake;
  }
  try {
    return ended(run());
  } catch (const UserError &error) {
    std::cerr << name << ": error: " << error.what() << "\n";
    return kUserMistake;
  } catch (const std::exception &error) {
    std::cerr << name << ": fault: " << error.what() << "\n";
    return kFault;
  }
}

}  // namespace spnas
