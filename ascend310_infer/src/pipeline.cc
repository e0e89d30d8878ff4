#include "pipeline.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "timing.h"

namespace spnas {

namespace {

using Batch = std::vector<Answer>;

constexpr size_t kAhead = 4;  // batches per worker that may wait for delivery

// What one worker does with a batch; its buffers are used again and again.
class BatchWorker {
 public:
  BatchWorker(const PipelineOptions &options, const Prepare &prepare, const Infer &infer)
      : options_(options), prepare_(prepare), infer_(infer),
        images_(options.batch_size * options.tensor_size),
        logits_(options.batch_size * options.classes), starts_(options.batch_size) {}

  // Answers files first..last-1. The model always computes a whole batch; places of failed images,
  // and those beyond the last one, hold old values whose results are dropped.
  Batch operator()(size_t first, size_t last) {
    Batch batch(last - first);
    for (size_t i = 0; i < batch.size(); ++i) {
      batch[i].index = first + i;
      starts_[i] = Clock::now();
      try {
        prepare_(first + i, &images_[i * options_.tensor_size]);
      } catch (const std::exception &failure) {
        batch[i].error = *failure.what() == '\0' ? "unknown error" : failure.what();
      }
    }
    const auto good =
        std::find_if(batch.begin(), batch.end(), [](const Answer &a) { return a.error.empty(); });
    if (good == batch.end()) {
      return batch;
    }
    good->inference_ms = infer_(images_.data(), logits_.data());
    const auto end = Clock::now();
    for (size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].error.empty()) {
        const float *row = &logits_[i * options_.classes];
        batch[i].logits.assign(row, row + options_.classes);
        batch[i].latency_ms = Milliseconds(starts_[i], end);
      }
    }
    return batch;
  }

 private:
  const PipelineOptions &options_;
  const Prepare &prepare_;
  const Infer &infer_;
  std::vector<float> images_;
  std::vector<float> logits_;
  std::vector<Clock::time_point> starts_;
};

// Batches pass from the workers to the caller, in order, through a ring: a batch's place is free
// once it is delivered.
class Run {
 public:
  Run(size_t count, const PipelineOptions &options, const Prepare &prepare,
      const std::vector<Infer> &infer)
      : count_(count), options_(options),
        batches_((count + options.batch_size - 1) / options.batch_size),
        ring_(kAhead * infer.size()) {
    try {
      for (const Infer &function : infer) {
        threads_.emplace_back([this, &prepare, &function] { Work(prepare, function); });
      }
    } catch (...) {  // the system has no more threads
      Stop();
      throw;
    }
  }

  ~Run() { Stop(); }

  void DeliverAll(const Deliver &deliver) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (delivered_ < batches_) {
      Batch &place = ring_[delivered_ % ring_.size()];
      changed_.wait(lock, [&] { return !place.empty() || failure_; });
      if (failure_) {
        std::rethrow_exception(failure_);
      }
      const Batch batch = std::move(place);
      place.clear();
      ++delivered_;
      changed_.notify_all();
      lock.unlock();
      for (const Answer &answer : batch) {
        deliver(answer);
      }
      lock.lock();
    }
  }

 private:
  void Stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread &thread : threads_) {
      thread.join();
    }
  }

  void Work(const Prepare &prepare, const Infer &infer) {
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    try {
      BatchWorker worker(options_, prepare, infer);
      lock.lock();
      while (true) {
        changed_.wait(lock, [this] {
          return stopped_ || taken_ == batches_ || taken_ < delivered_ + ring_.size();
        });
        if (stopped_ || taken_ == batches_) {
          return;
        }
        const size_t number = taken_++;
        lock.unlock();
        const size_t first = number * options_.batch_size;
        Batch batch = worker(first, std::min(first + options_.batch_size, count_));
        lock.lock();
        ring_[number % ring_.size()] = std::move(batch);
        changed_.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) {
        lock.lock();
      }
      failure_ = std::current_exception();
      stopped_ = true;
      changed_.notify_all();
    }
  }

  const size_t count_;
  const PipelineOptions &options_;
  const size_t batches_;
  // Under mutex_, as everything below. A place is empty or holds a finished batch.
  std::vector<Batch> ring_;
  size_t taken_ = 0;
  size_t delivered_ = 0;
  bool stopped_ = false;
  std::exception_ptr failure_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
};

}  // namespace

void RunPipeline(size_t count, const PipelineOptions &options, const Prepare &prepare,
                 const std::vector<Infer> &infer, const Deliver &deliver) {
  Run(count, options, prepare, infer).DeliverAll(deliver);
}

}  // namespace spnas
