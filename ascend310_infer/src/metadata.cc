#include "metadata.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <system_error>

#include "error.h"
#include "files.h"

namespace spnas {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr char kFormat[] = "spnas-export";
constexpr int kVersion = 1;
constexpr int kMaxSide = 1 << 14;
constexpr int kMaxDepth = 32;  // of nested lists: what prints them calls itself
constexpr int64_t kMaxPixels = int64_t{1} << 30;

// Access to the values of a JSON document whose errors name the file and the key.
class Reader {
 public:
  Reader(const json &value, std::string origin, std::string key = "")
      : value_(value), origin_(std::move(origin)), key_(std::move(key)) {}

  Reader operator[](const std::string &key) const {
    const std::string path = key_.empty() ? key : key_ + "." + key;
    if (!value_.is_object() || !value_.contains(key)) {
      throw UserError(origin_ + ": key '" + path + "' is missing");
    }
    return Reader(value_.at(key), origin_, path);
  }

  std::string Text() const {
    Require(value_.is_string(), "a text");
    return value_.get<std::string>();
  }

  int64_t Integer(int64_t least, int64_t most) const {
    const std::string range =
        "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
    Require(value_.is_number_integer() &&
                !(value_.is_number_unsigned() && value_.get<uint64_t>() > INT64_MAX),
            range);
    const auto number = value_.get<int64_t>();
    Require(number >= least && number <= most, range);
    return number;
  }

  std::array<float, kColors> Triple(bool positive) const {
    std::array<float, kColors> numbers{};
    const std::string wanted = positive ? "three positive numbers" : "three numbers";
    Require(value_.is_array() && value_.size() == numbers.size(), wanted);
    for (size_t i = 0; i < numbers.size(); ++i) {
      Require(value_[i].is_number(), wanted);
      const auto number = value_[i].get<double>();
      Require(std::abs(number) < 1e6 && (!positive || number > 1e-6), wanted);
      numbers[i] = static_cast<float>(number);
    }
    return numbers;
  }

  std::vector<Reader> List() const {
    Require(value_.is_array(), "a list");
    std::vector<Reader> items;
    for (const json &item : value_) {
      items.emplace_back(item, origin_, key_ + "[" + std::to_string(items.size()) + "]");
    }
    return items;
  }

  // The only value that this program understands.
  void Expect(const std::string &text) const { Require(Text() == text, "\"" + text + "\""); }

  std::string OneOf(const std::string &first, const std::string &second) const {
    const std::string found = Text();
    Require(found == first || found == second, "\"" + first + "\" or \"" + second + "\"");
    return found;
  }

 private:
  void Require(bool condition, const std::string &wanted) const {
    if (!condition) {
      std::string found = value_.dump(-1, ' ', true, json::error_handler_t::replace);
      if (found.size() > 60) {
        found = found.substr(0, 60) + " ...";
      }
      throw UserError(origin_ + ": '" + key_ + "' is " + found + ", should be " + wanted);
    }
  }

  const json &value_;
  std::string origin_;
  std::string key_;
};

}  // namespace

Metadata ParseMetadata(const std::string &text, const std::string &origin) {
  const auto check_depth = [&origin](int depth, json::parse_event_t, json &) {
    if (depth > kMaxDepth) {
      throw UserError(origin + ": nested too deeply; export.py writes it beside the model");
    }
    return true;
  };
  const json document = json::parse(text, check_depth, false);
  if (document.is_discarded()) {
    throw UserError(origin + ": not readable as JSON; export.py writes it beside the model");
  }
  const Reader root(document, origin);
  root["format"].Expect(kFormat);
  root["version"].Integer(kVersion, kVersion);

  Metadata metadata;
  metadata.format = root["model"]["format"].OneOf("MINDIR", "ONNX");
  metadata.model_file = root["model"]["file"].Text();
  metadata.sha256 = root["model"]["sha256"].Text();
  if (metadata.format == "MINDIR") {
    metadata.mindir_version = static_cast<int>(root["model"]["mindir_version"].Integer(1, 1000));
  }

  const Reader preprocessing = root["preprocessing"];
  preprocessing["interpolation"].Expect("bilinear");
  preprocessing["color_order"].Expect("RGB");
  Preprocessing &values = metadata.preprocessing;
  values.height = static_cast<int>(preprocessing["height"].Integer(1, kMaxSide));
  values.width = static_cast<int>(preprocessing["width"].Integer(1, kMaxSide));
  values.resize = static_cast<int>(preprocessing["resize"].Integer(1, kMaxSide));
  values.mean = preprocessing["mean"].Triple(false);
  values.std = preprocessing["std"].Triple(true);
  values.max_pixels = preprocessing["max_pixels"].Integer(1, kMaxPixels);

  root["input"]["layout"].Expect("NCHW");
  root["input"]["type"].Expect("float32");
  const std::vector<Reader> shape = root["input"]["shape"].List();
  if (shape.size() != 4) {
    throw UserError(origin + ": 'input.shape' has " + std::to_string(shape.size()) +
                    " numbers, should have 4");
  }
  metadata.batch_size = static_cast<int>(shape[0].Integer(1, kMaxBatch));
  shape[1].Integer(kColors, kColors);
  shape[2].Integer(values.height, values.height);
  shape[3].Integer(values.width, values.width);

  for (const Reader &name : root["classes"].List()) {
    metadata.classes.push_back(name.Text());
  }
  if (metadata.classes.empty()) {
    throw UserError(origin + ": 'classes' is empty");
  }
  return metadata;
}

Metadata ReadMetadata(const fs::path &model) {
  std::error_code error;
  if (!fs::is_regular_file(model, error)) {
    throw UserError(model.string() + ": no such model; export.py writes one");
  }
  fs::path file = model;
  file.replace_extension(".json");
  const auto unreadable = [](const fs::path &path, const std::system_error &failure) {
    return UserError(path.string() + ": cannot be read (" + failure.code().message() +
                     "); export.py writes a model and its description beside it");
  };
  Metadata metadata;
  try {
    metadata = ParseMetadata(ReadFile(file), file.string());
  } catch (const std::system_error &failure) {
    throw unreadable(file, failure);
  }
  try {
    if (metadata.sha256 != Sha256(model)) {
      throw UserError(model.string() + ": is not the model that " + file.string() + " describes (" +
                      metadata.model_file + "), or damaged; its checksum differs");
    }
  } catch (const std::system_error &failure) {
    throw unreadable(model, failure);
  }
  return metadata;
}

}  // namespace spnas
