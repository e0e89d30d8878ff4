// Runs every operator on many shapes, from two threads at once, with buffers of exactly the needed
// size: to be built with -fsanitize=address,undefined or -fsanitize=thread, which stop it where
// something is wrong.
#include <cstdio>
#include <initializer_list>
#include <thread>
#include <vector>

#include "../../src/kernels/operators.cpp"

namespace {

using Operator = int (*)(int, void **, int *, int64_t **, const char **, void *, void *);
using Dims = std::vector<int64_t>;

bool run(Operator op, const std::vector<Dims> &dims) {
  std::vector<std::vector<float>> data;
  std::vector<void *> params;
  std::vector<int> ndims;
  std::vector<int64_t *> shapes;
  std::vector<const char *> types(dims.size(), "float32");
  std::vector<Dims> copies = dims;
  for (Dims &d : copies) {
    int64_t size = 1;
    for (int64_t n : d) {
      size *= n;
    }
    data.emplace_back(size);
    for (int64_t i = 0; i < size; ++i) {
      data.back()[i] = static_cast<float>(i * 7919 % 97) / 50 + 0.1f;
    }
    params.push_back(data.back().data());
    ndims.push_back(static_cast<int>(d.size()));
    shapes.push_back(d.data());
  }
  return op(static_cast<int>(dims.size()), params.data(), ndims.data(), shapes.data(), types.data(),
            nullptr, nullptr) == 0;
}

// The core of an MBConv block, forward, with `statistics` outputs for each normalisation, and
// backward.
bool run_core(Operator forward, Operator backward, const Dims &x, const Dims &weight, const Dims &y,
              int statistics) {
  const Dims channel{x[1]}, options{2};
  std::vector<Dims> inputs{x, weight}, outputs{y}, gradients{y, x, weight};
  inputs.insert(inputs.end(), 8, channel);
  outputs.insert(outputs.end(), 2 * statistics, channel);
  gradients.insert(gradients.end(), 4, channel);
  std::vector<Dims> forward_dims = inputs, backward_dims = inputs;
  forward_dims.push_back(options);
  forward_dims.insert(forward_dims.end(), outputs.begin(), outputs.end());
  backward_dims.insert(backward_dims.end(), gradients.begin(), gradients.end());
  return run(forward, forward_dims) && run(backward, backward_dims);
}

bool run_all() {
  bool ok = true;
  for (int64_t n : {1, 3}) {
    for (int64_t c : {1, 19}) {
      for (int64_t h : {1, 7, 16}) {
        for (int64_t w : {1, 4, 9, 35}) {
          const Dims x{n, c, h, w}, channel{c}, options{2};
          for (int64_t k : {3, 5, 7}) {
            const Dims weight{c, 1, k, k}, y2{n, c, (h + 1) / 2, (w + 1) / 2};
            ok &= run(DepthwiseForward1, {x, weight, x}) && run(DepthwiseForward2, {x, weight, y2});
            ok &= run(DepthwiseBackward1, {x, weight, x, x, weight});
            ok &= run(DepthwiseBackward2, {x, weight, y2, x, weight});
            ok &= run_core(CoreReluTrain1, CoreReluTrainBackward1, x, weight, x, 4);
            ok &= run_core(CoreReluTrain2, CoreReluTrainBackward2, x, weight, y2, 4);
            ok &= run_core(CoreReluInfer1, CoreReluInferBackward1, x, weight, x, 2);
            ok &= run_core(CoreReluInfer2, CoreReluInferBackward2, x, weight, y2, 2);
            const Dims image{n, 3, h, w}, kernels{c, 3, k, k};
            ok &=
                run(ImageForward1, {image, kernels, x}) && run(ImageForward2, {image, kernels, y2});
            ok &= run(ImageBackward1, {image, kernels, x, kernels});
            ok &= run(ImageBackward2, {image, kernels, y2, kernels});
          }
          for (int64_t outputs : {1, 8, 21}) {
            const Dims bias{outputs}, project{outputs, 2 * c, 1, 1}, y{n, outputs, h, w};
            const Dims y2{n, outputs, (h + 1) / 2, (w + 1) / 2};
            ok &= run(PointwiseRelu, {x, {outputs, c, 1, 1}, bias, y});
            for (int64_t k : {3, 5, 7}) {
              const Dims weight{outputs, c, k, k};
              ok &= run(ConvRelu1, {x, weight, bias, y}) && run(ConvRelu2, {x, weight, bias, y2});
              const Dims expand{2 * c, c, 1, 1}, mid{2 * c}, depthwise{2 * c, 1, k, k};
              ok &= run(MBConv1, {x, expand, mid, depthwise, mid, project, bias, y});
              ok &= run(MBConv2, {x, expand, mid, depthwise, mid, project, bias, y2});
              ok &= run(MBConvResidual, {x, {c, 1, k, k}, channel, {c, c, 1, 1}, channel, x});
            }
          }
          for (Operator op : {NormTrain, NormReluTrain}) {
            ok &= run(op, {x, channel, channel, channel, channel, options, x, channel, channel,
                           channel, channel});
          }
          for (Operator op : {NormInfer, NormReluInfer}) {
            ok &= run(op, {x, channel, channel, channel, channel, options, x, channel, channel});
          }
          for (Operator op : {NormTrainBackward, NormReluTrainBackward, NormInferBackward,
                              NormReluInferBackward}) {
            ok &= run(op, {x, channel, channel, channel, channel, x, x, channel, channel});
          }
        }
      }
    }
  }
  return ok;
}

}  // namespace

int main() {
  bool first = false, second = false;
  std::thread other([&] { first = run_all(); });
  second = run_all();
  other.join();
  std::puts(first && second ? "ok" : "an operator refused its input");
  return first && second ? 0 : 1;
}
