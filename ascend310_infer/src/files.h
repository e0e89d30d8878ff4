// The files of a data set, and reading and writing files whole.
#ifndef SPNAS_FILES_H_
#define SPNAS_FILES_H_

#include <filesystem>
#include <string>
#include <vector>

namespace spnas {

// Paths, relative to `folder`, of the files in it and in its subfolders, sorted; hidden ones are
// left out. Throws UserError where there is no such folder or nothing in it.
std::vector<std::string> ListFiles(const std::filesystem::path &folder);

// All bytes of a file; throws std::system_error with the reason.
std::string ReadFile(const std::filesystem::path &path);

// Writes beside `path` and renames; throws Fault.
void WriteFile(const std::filesystem::path &path, const std::string &content);

// SHA-256 of a file, in lower-case hexadecimal; throws std::system_error.
std::string Sha256(const std::filesystem::path &path);

}  // namespace spnas

#endif  // SPNAS_FILES_H_
