#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <system_error>

#include "error.h"
#include "files.h"

namespace spnas {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

constexpr size_t kTop = 5;
constexpr char kResults[] = "result_Files";
constexpr char kAnswers[] = "top5.jsonl";
constexpr char kTimes[] = "time_Result";
constexpr char kPerformance[] = "test_perform_static.txt";
constexpr char kUnfinished[] = ".unfinished_results";
constexpr char kLogits[] = "_0.bin";  // behind the name of an image
constexpr size_t kLongestName = 255;  // of the file systems of Linux, in bytes

void MakeFolder(const fs::path &folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw UserError(folder.string() + ": cannot be made (" + error.message() +
                    "); run where files can be written");
  }
}

std::string Percentiles(const Latency &latency) {
  char text[128];
  std::snprintf(text, sizeof(text), "p50 %.3f ms, p90 %.3f ms, p99 %.3f ms", latency.p50,
                latency.p90, latency.p99);
  return text;
}

// Softmax, without overflow.
std::vector<double> Probabilities(const std::vector<float> &logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> values;
  double sum = 0;
  for (const float logit : logits) {
    values.push_back(std::exp(logit - largest));
    sum += values.back();
  }
  for (double &value : values) {
    value /= sum;
  }
  return values;
}

}  // namespace

Latency Summarise(std::vector<double> milliseconds) {
  Latency latency;
  latency.count = milliseconds.size();
  if (milliseconds.empty()) {
    return latency;
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  const auto size = static_cast<double>(milliseconds.size());
  const auto percentile = [&](double percent) {
    return milliseconds[static_cast<size_t>(std::max(1.0, std::ceil(percent / 100 * size))) - 1];
  };
  latency.mean = std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / size;
  latency.p50 = percentile(50);
  latency.p90 = percentile(90);
  latency.p99 = percentile(99);
  return latency;
}

std::vector<size_t> Largest(const std::vector<float> &values, size_t count) {
  std::vector<size_t> indices(values.size());
  std::iota(indices.begin(), indices.end(), 0);
  const size_t kept = std::min(count, indices.size());
  std::partial_sort(indices.begin(), indices.begin() + static_cast<std::ptrdiff_t>(kept),
                    indices.end(), [&](size_t a, size_t b) {
                      return values[a] > values[b] || (values[a] == values[b] && a < b);
                    });
  indices.resize(kept);
  return indices;
}

Report::Report(const fs::path &folder, std::vector<std::string> classes)
    : folder_(folder), unfinished_(folder / kUnfinished), classes_(std::move(classes)) {
  std::error_code ignored;
  fs::remove_all(unfinished_, ignored);  // of a run that was killed
  MakeFolder(unfinished_ / kResults);
  MakeFolder(unfinished_ / kTimes);
}

Report::~Report() {
  std::error_code ignored;
  fs::remove_all(unfinished_, ignored);
}

void Report::Add(const std::string &file, const Answer &answer) {
  std::string error = answer.error;
  const auto finite = [](float logit) { return std::isfinite(logit); };
  if (error.empty() && !std::all_of(answer.logits.begin(), answer.logits.end(), finite)) {
    error = "the model's answer is not finite";
  }
  const fs::path path = unfinished_ / kResults / (file + kLogits);
  if (error.empty() && path.filename().string().size() > kLongestName) {
    error = "its name is too long for a file of its logits";
  }
  if (answer.inference_ms > 0) {
    inference_ms_.push_back(answer.inference_ms);
  }
  ordered_json line;
  line["file"] = file;
  if (!error.empty()) {
    line["error"] = error;
    failed_.push_back(file + ": " + error);
  } else {
    latency_ms_.push_back(answer.latency_ms);
    MakeFolder(path.parent_path());
    WriteFile(path, std::string(reinterpret_cast<const char *>(answer.logits.data()),
                                answer.logits.size() * sizeof(float)));
    const std::vector<double> probabilities = Probabilities(answer.logits);
    for (const size_t index : Largest(answer.logits, kTop)) {
      line["top5"].push_back(
          {{"index", index}, {"class", classes_[index]}, {"probability", probabilities[index]}});
    }
  }
  lines_ += line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string Report::Performance(double seconds, const std::vector<double> &warm_up_ms) const {
  const Latency inference = Summarise(inference_ms_), answer = Summarise(latency_ms_),
                warm_up = Summarise(warm_up_ms);
  char text[1024];
  std::snprintf(text, sizeof(text),
                "NN inference cost average time: %.4f ms of infer_count %zu\n"
                "NN inference: %s\n"
                "JPEG to answer: average %.3f ms, %s\n"
                "warm-up, not counted above: average %.4f ms of infer_count %zu\n"
                "throughput: %.1f images/s, %zu images in %.3f s\n",
                inference.mean, inference.count, Percentiles(inference).c_str(), answer.mean,
                Percentiles(answer).c_str(), warm_up.mean, warm_up.count,
                seconds > 0 ? static_cast<double>(answer.count) / seconds : 0.0, answer.count,
                seconds);
  return text;
}

void Report::Finish(double seconds, const std::vector<double> &warm_up_ms) {
  WriteFile(unfinished_ / kTimes / kPerformance, Performance(seconds, warm_up_ms));
  WriteFile(unfinished_ / kResults / kAnswers, lines_);
  if (latency_ms_.empty()) {
    return;
  }
  for (const char *name : {kResults, kTimes}) {
    std::error_code error;
    fs::remove_all(folder_ / name, error);
    fs::rename(unfinished_ / name, folder_ / name, error);
    if (error) {
      throw Fault((folder_ / name).string() + ": cannot be replaced (" + error.message() + ")");
    }
  }
}

}  // namespace spnas
