// What the programs share: the flags of the device, and errors as one line.
#ifndef SPNAS_PROGRAM_H_
#define SPNAS_PROGRAM_H_

#include <CLI/CLI.hpp>
#include <functional>

#include "model.h"

namespace spnas {

// Defines --runtime, --precision, --device, --device_id and --runtime_threads.
void DefineDevice(CLI::App *app, Device *device);

// Reads the flags and runs the program; errors become one line on stderr and an ExitCode.
int RunProgram(CLI::App *app, int argc, char **argv, const std::function<int()> &run);

}  // namespace spnas

#endif  // SPNAS_PROGRAM_H_
