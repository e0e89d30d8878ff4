// What a run leaves: answers of every image, logits, latencies.
#ifndef SPNAS_REPORT_H_
#define SPNAS_REPORT_H_

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline.h"

namespace spnas {

// Mean and percentiles of durations in milliseconds; zeros without any.
struct Latency {
  size_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
};

// A percentile is the smallest value that at least so many percent do not exceed.
Latency Summarise(std::vector<double> milliseconds);

// Indices of the `count` largest values, largest first; of equal ones the lower index first.
std::vector<size_t> Largest(const std::vector<float> &values, size_t count);

// Writes, below a folder: result_Files/<file>_0.bin, the logits of each image as float32;
// result_Files/top5.jsonl, one line per image in order; and time_Result/test_perform_static.txt.
// Those of an earlier run stay until all of these are written, and for good if no image is
// answered.
class Report {
 public:
  Report(const std::filesystem::path &folder, std::vector<std::string> classes);
  Report(const Report &) = delete;
  Report &operator=(const Report &) = delete;
  ~Report();

  void Add(const std::string &file, const Answer &answer);
  // Writes the rest and replaces earlier results; `seconds` is the time of all images, `warm_up_ms`
  // of inferences that do not count.
  void Finish(double seconds, const std::vector<double> &warm_up_ms);

  // The lines of test_perform_static.txt.
  std::string Performance(double seconds, const std::vector<double> &warm_up_ms) const;
  const std::vector<std::string> &failed() const { return failed_; }  // "file: reason"

 private:
  std::filesystem::path folder_;
  std::filesystem::path unfinished_;
  std::vector<std::string> classes_;
  std::string lines_;
  std::vector<std::string> failed_;
  std::vector<double> inference_ms_;
  std::vector<double> latency_ms_;
};

}  // namespace spnas

#endif  // SPNAS_REPORT_H_
