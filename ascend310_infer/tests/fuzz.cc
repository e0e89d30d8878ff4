// Decodes and prepares mutated images, and parses mutated descriptions: to be built with
// sanitizers, which stop it. Usage: fuzz RUNS SEED IMAGE_OR_JSON...; whatever is not refused must
// be usable.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "files.h"
#include "image.h"
#include "metadata.h"
#include "preprocess.h"

namespace {

constexpr int64_t kMaxPixels = 1 << 20;

// Flips, overwrites, cuts, doubles and crosses over; small changes most of the time.
std::string Mutated(std::string bytes, const std::string &other, std::mt19937 *random) {
  const auto below = [random](size_t bound) { return bound == 0 ? 0 : (*random)() % bound; };
  static constexpr unsigned char kTelling[] = {0,    1,    0x7f, 0x80, 0xff, 0xd8, 0xd9,
                                               0xda, 0xc0, 0xc2, 0xc4, 0xdb, 0xdd, '"',
                                               '{',  '[',  '-',  '9',  'e'};
  for (size_t change = 0, changes = 1 + below(1 + below(8)); change < changes && !bytes.empty();
       ++change) {
    // Headers matter more than pixels.
    const size_t at =
        below(2) == 0 ? below(bytes.size()) : below(std::min<size_t>(bytes.size(), 700));
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(kTelling[below(sizeof(kTelling))]);
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(at, below(32));
        break;
      case 4:
        bytes.insert(at, bytes.substr(below(bytes.size()), below(64)));
        break;
      case 5:
        bytes.replace(at, below(64), other.substr(below(other.size()), below(64)));
        break;
      default:
        bytes[at] = static_cast<char>(below(256));
    }
  }
  return bytes;
}

// Whether the bytes were accepted.
bool Try(const std::string &bytes, bool description) {
  try {
    if (description) {
      const spnas::Metadata metadata = spnas::ParseMetadata(bytes, "fuzz");
      const spnas::Preprocessor preprocess(metadata.preprocessing);
      return true;
    }
    spnas::Preprocessing values;
    values.height = values.width = 32;
    values.resize = 37;
    values.std = {1, 1, 1};
    values.max_pixels = kMaxPixels;
    std::vector<float> tensor(static_cast<size_t>(values.TensorSize()));
    const spnas::Preprocessor preprocess(values);
    preprocess(spnas::DecodeImage(bytes, kMaxPixels), tensor.data());
    for (const float value : tensor) {
      if (!(value >= 0 && value <= 255)) {
        std::fprintf(stderr, "a pixel became %f\n", static_cast<double>(value));
        std::abort();
      }
    }
    return true;
  } catch (const spnas::ImageError &) {
  } catch (const spnas::UserError &) {
  }
  return false;
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: fuzz RUNS SEED IMAGE_OR_JSON...\n");
    return 2;
  }
  std::vector<std::pair<std::string, bool>> seeds;
  for (int i = 3; i < argc; ++i) {
    const std::string path = argv[i];
    seeds.emplace_back(spnas::ReadFile(path),
                       path.size() > 5 && path.substr(path.size() - 5) == ".json");
    if (!Try(seeds.back().first, seeds.back().second)) {
      std::fprintf(stderr, "%s: refused before any change\n", argv[i]);
      return 2;
    }
  }
  std::mt19937 random(static_cast<unsigned>(std::atoi(argv[2])));
  const long runs = std::atol(argv[1]);
  long accepted = 0;
  for (long run = 0; run < runs; ++run) {
    const auto &[bytes, description] = seeds[random() % seeds.size()];
    accepted +=
        Try(Mutated(bytes, seeds[random() % seeds.size()].first, &random), description) ? 1 : 0;
  }
  std::printf("%ld mutated files: %ld accepted, %ld refused, none crashed\n", runs, accepted,
              runs - accepted);
  return 0;
}
