// Many images at once: every worker reads, prepares and classifies batches of its own; results come
// in order.
#ifndef SPNAS_PIPELINE_H_
#define SPNAS_PIPELINE_H_

#include <functional>
#include <string>
#include <vector>

namespace spnas {

// The outcome for one file: logits, or the reason why there are none.
struct Answer {
  size_t index = 0;  // of the file
  std::vector<float> logits;
  std::string error;
  double latency_ms = 0;  // from the start of reading the file until its batch is answered
  // Of its batch; on the first image of a batch that was inferred, otherwise 0.
  double inference_ms = 0;
};

struct PipelineOptions {
  size_t batch_size = 1;
  size_t tensor_size = 0;  // floats per image
  size_t classes = 0;
};

// Reads file `index` and writes the image to a tensor; what it throws becomes the file's error.
using Prepare = std::function<void(size_t index, float *tensor)>;
// Computes logits (batch_size, classes) of (batch_size, tensor_size); returns how long the model
// took, in milliseconds, without waiting for it.
using Infer = std::function<double(const float *images, float *logits)>;
using Deliver = std::function<void(const Answer &answer)>;

// Answers files 0..count-1, in order, with as many workers as there are functions in `infer`.
// `prepare` is called from all of them, each `infer` from one only, `deliver` from the caller's
// thread. Memory is bounded, whatever the count. What `infer` and `deliver` throw ends the run and
// is thrown again.
void RunPipeline(size_t count, const PipelineOptions &options, const Prepare &prepare,
                 const std::vector<Infer> &infer, const Deliver &deliver);

}  // namespace spnas

#endif  // SPNAS_PIPELINE_H_
