// Errors that users see: one line, and the exit code that says whose mistake it was.
#ifndef SPNAS_ERROR_H_
#define SPNAS_ERROR_H_

#include <stdexcept>

namespace spnas {

enum ExitCode { kSuccess = 0, kFault = 1, kUserMistake = 2 };

// The command, a file or a value was wrong.
struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Something broke though the command was right.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace spnas

#endif  // SPNAS_ERROR_H_
