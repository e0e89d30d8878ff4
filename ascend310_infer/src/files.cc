#include "files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <memory>
#include <system_error>

#include "error.h"

namespace spnas {

namespace fs = std::filesystem;

namespace {

bool Hidden(const fs::path &path) { return path.filename().string().front() == '.'; }

}  // namespace

std::vector<std::string> ListFiles(const fs::path &folder) {
  std::vector<std::string> files;
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw UserError(folder.string() +
                    ": no such folder; expected images or one folder of images per class");
  }
  try {
    for (const auto &entry : fs::directory_iterator(folder)) {
      if (Hidden(entry.path())) {
        continue;
      }
      if (!entry.is_directory(error)) {  // an unreadable link counts as a file, so that it is named
        files.push_back(entry.path().filename().string());
        continue;
      }
      for (const auto &file : fs::directory_iterator(entry.path())) {
        if (!Hidden(file.path()) && !file.is_directory(error)) {
          files.push_back((entry.path().filename() / file.path().filename()).string());
        }
      }
    }
  } catch (const fs::filesystem_error &failure) {
    throw UserError(failure.path1().string() + ": cannot be listed (" + failure.code().message() +
                    ")");
  }
  if (files.empty()) {
    throw UserError(folder.string() +
                    ": holds no files; expected images or one folder of images per class");
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string ReadFile(const fs::path &path) {
  // Only regular files: opening a pipe would wait for its writer.
  struct stat status;
  if (stat(path.c_str(), &status) != 0) {
    throw std::system_error(errno, std::generic_category());
  }
  if (!S_ISREG(status.st_mode)) {
    throw std::system_error(std::make_error_code(std::errc::invalid_argument),
                            "not a regular file");
  }
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw std::system_error(errno, std::generic_category());
  }
  std::string content(static_cast<size_t>(status.st_size), '\0');
  size_t size = 0;
  ssize_t got = 1;
  while (size < content.size() && got > 0) {
    got = read(descriptor, content.data() + size, content.size() - size);
    size += got > 0 ? static_cast<size_t>(got) : 0;
  }
  const int reason = errno;
  close(descriptor);
  if (got < 0) {
    throw std::system_error(reason, std::generic_category());
  }
  content.resize(size);  // the file may have become shorter meanwhile
  return content;
}

void WriteFile(const fs::path &path, const std::string &content) {
  // Not longer than the name itself may be.
  const fs::path scratch =
      path.parent_path() / (path.filename().string().substr(0, 200) + ".partial");
  std::ofstream file(scratch, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  std::error_code error;
  if (file) {
    fs::rename(scratch, path, error);
  }
  if (!file || error) {
    std::error_code ignored;
    fs::remove(scratch, ignored);
    throw Fault(path.string() + ": cannot be written (is the disk full, or the folder read-only?)");
  }
}

std::string Sha256(const fs::path &path) {
  const std::string content = ReadFile(path);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(content.data(), content.size(), digest, &size, EVP_sha256(), nullptr) != 1) {
    throw Fault("the checksum of " + path.string() + " cannot be computed");
  }
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += kDigits[digest[i] >> 4];
    text += kDigits[digest[i] & 15];
  }
  return text;
}

}  // namespace spnas
