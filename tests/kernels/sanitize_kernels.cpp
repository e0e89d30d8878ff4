// Runs every operator with buffers of exactly the needed size: to be built with
// -fsanitize=address,undefined or -fsanitize=thread, which stop it where something is wrong. Runs
// many shapes, since they decide which memory is touched. As `sanitize large` it runs the largest
// of each kind alone, but from two threads at once, since they decide whose threads touch it at the
// same time.
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../src/kernels/bfloat16.cpp"
#include "../../src/kernels/block_backward.cpp"
#include "../../src/kernels/block_forward.cpp"
#include "../../src/kernels/choice.cpp"
#include "../../src/kernels/ends.cpp"
#include "../../src/kernels/layers.cpp"
#include "../../src/kernels/momentum.cpp"

namespace {

using Operator = int (*)(int, void **, int *, int64_t **, const char **, void *, void *);
using Dims = std::vector<int64_t>;
using Values = std::vector<float>;

// `values` of some parameters, by place; `halves` are bfloat16.
bool run(Operator op, const std::vector<Dims> &dims, const std::map<int, Values> &values = {},
         const std::set<int> &halves = {}) {
  std::vector<std::vector<uint16_t>> data;
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
    const int place = static_cast<int>(params.size());
    const bool half = halves.count(place) > 0;
    data.emplace_back(half ? size : 2 * size);
    if (half) {
      types[place] = "bfloat16";
    }
    const auto given = values.find(place);
    for (int64_t i = 0; i < size; ++i) {
      const float value =
          given == values.end() ? static_cast<float>(i * 7919 % 97) / 50 + 0.1f : given->second[i];
      if (half) {
        data.back()[i] = spnas::Bfloat16(value).bits;
      } else {
        std::memcpy(&data.back()[2 * i], &value, sizeof(value));
      }
    }
    params.push_back(data.back().data());
    ndims.push_back(static_cast<int>(d.size()));
    shapes.push_back(d.data());
  }
  return op(static_cast<int>(dims.size()), params.data(), ndims.data(), shapes.data(), types.data(),
            nullptr, nullptr) == 0;
}

// The core of a shuffle block: inference, forward, backward.
bool run_core(Operator infer, Operator forward, Operator backward, const Dims &x,
              const Dims &weight, const Dims &y) {
  const Dims channel{x[1]}, options{2};
  std::vector<Dims> inputs{x, weight};
  inputs.insert(inputs.end(), 8, channel);
  std::vector<Dims> forward_dims = inputs, backward_dims = inputs;
  forward_dims.insert(forward_dims.end(), {options, y});
  forward_dims.insert(forward_dims.end(), 4, channel);
  bool ok = run(infer, forward_dims);
  forward_dims.insert(forward_dims.end(), 4, channel);
  ok &= run(forward, forward_dims);
  backward_dims.insert(backward_dims.end(), {y, x, weight});
  backward_dims.insert(backward_dims.end(), 4, channel);
  return ok && run(backward, backward_dims);
}

// Stem, blocks and head: forward, backward, inference, folded. Small planes, as `rows` and
// `columns` of x, and large ones.
bool run_network(const Dims &x, int64_t outputs, int64_t k) {
  const int64_t n = x[0], c = x[1], mid = 2 * c;
  bool ok = true;
  for (int64_t h : {x[2], x[2] + 30}) {
    const int64_t w = x[3];
    for (int64_t stride : {1, 2}) {
      const int64_t h2 = (h - 1) / stride + 1, w2 = (w - 1) / stride + 1, pixels = n * h2 * w2;
      const bool residual = stride == 1 && c == outputs;
      const Values options{1e-5f, 0.9f, residual ? 1.0f : 0.0f, 6};
      const auto groups = [&](int64_t channels, int64_t count) {
        return Dims{(channels + 15) / 16, count, 16};
      };
      const Dims in{n, h, w, c}, y{n, h2, w2, outputs}, wide{mid}, narrow{outputs};
      const Dims expand{mid, c, 1, 1}, depthwise{mid, 1, k, k}, project{outputs, mid, 1, 1};
      for (const Values &decision : {Values{static_cast<float>(k), static_cast<float>(mid), 1},
                                     Values{3, static_cast<float>(c), 1}, Values{3, 1, 0}}) {
        if (decision[2] == 0 && !residual) {
          continue;
        }
        std::vector<Dims> infer{in,        expand, wide,   wide,   wide, wide,
                                depthwise, wide,   wide,   wide,   wide, project,
                                narrow,    narrow, narrow, narrow, {4},  {3}};
        const std::map<int, Values> values{{16, options}, {17, decision}};
        std::vector<Dims> train = infer;
        infer.push_back(y);
        train.insert(train.end(), {y,
                                   groups(mid, pixels),
                                   y,
                                   {c},
                                   {mid, c},
                                   {4, mid},
                                   {2, outputs},
                                   wide,
                                   wide,
                                   wide,
                                   wide,
                                   narrow,
                                   narrow});
        ok &= run(stride == 1 ? BlockInfer1 : BlockInfer2, infer, values) &&
              run(stride == 1 ? BlockTrain1 : BlockTrain2, train, values) &&
              run(stride == 1 ? BlockBfloat16Train1 : BlockBfloat16Train2, train, values,
                  {0, 18, 19, 20});
        const std::vector<Dims> backward{in,      expand, wide,      wide,     depthwise,
                                         wide,    wide,   project,   narrow,   groups(mid, pixels),
                                         y,       {c},    {mid, c},  {4, mid}, {2, outputs},
                                         {4},     {3},    y,         in,       expand,
                                         wide,    wide,   depthwise, wide,     wide,
                                         project, narrow, narrow};
        ok &= run(stride == 1 ? BlockBackward1 : BlockBackward2, backward,
                  {{15, options}, {16, decision}}) &&
              run(stride == 1 ? BlockBfloat16Backward1 : BlockBfloat16Backward2, backward,
                  {{15, options}, {16, decision}}, {0, 9, 10, 17, 18});
        ok &= run(stride == 1 ? BlockFolded1 : BlockFolded2,
                  {in, expand, wide, depthwise, wide, project, narrow, {4}, {3}, y},
                  {{7, options}, {8, decision}});
      }
      const Values all{static_cast<float>(k), static_cast<float>(c), 1};
      const Dims plain{c, 1, k, k}, last{outputs, c, 1, 1}, channel{c};
      const std::vector<Dims> train{in,      plain,  channel,      channel, channel,
                                    channel, last,   narrow,       narrow,  narrow,
                                    narrow,  {4},    {3},          y,       groups(c, pixels),
                                    y,       {2, c}, {2, outputs}, channel, channel,
                                    narrow,  narrow};
      const std::map<int, Values> values{{11, options}, {12, all}};
      const std::vector<Dims> infer(train.begin(), train.begin() + 14);
      ok &= run(stride == 1 ? BlockPlainInfer1 : BlockPlainInfer2, infer, values);
      ok &= run(stride == 1 ? BlockPlainTrain1 : BlockPlainTrain2, train, values) &&
            run(stride == 1 ? BlockPlainBfloat16Train1 : BlockPlainBfloat16Train2, train, values,
                {0, 13, 14, 15});
      const std::vector<Dims> backward{
          in,    plain,   channel,      channel, last,   narrow, groups(c, pixels),
          y,     {2, c},  {2, outputs}, {4},     {3},    y,      in,
          plain, channel, channel,      last,    narrow, narrow};
      const std::map<int, Values> more{{10, options}, {11, all}};
      ok &= run(stride == 1 ? BlockPlainBackward1 : BlockPlainBackward2, backward, more) &&
            run(stride == 1 ? BlockPlainBfloat16Backward1 : BlockPlainBfloat16Backward2, backward,
                more, {0, 6, 7, 12, 13});
      ok &= run(stride == 1 ? BlockPlainFolded1 : BlockPlainFolded2,
                {in, plain, channel, last, narrow, {4}, {3}, y}, {{5, options}, {6, all}});
      const Dims image{n, 3, h, w}, kernel{outputs, 3, k, k}, s = groups(outputs, pixels);
      const std::map<int, Values> stem{{6, options}};
      const std::vector<Dims> first{image, kernel, narrow, narrow,       narrow, narrow,
                                    {4},   y,      s,      {2, outputs}, narrow, narrow};
      ok &= run(stride == 1 ? StemInfer1 : StemInfer2, {first.begin(), first.begin() + 8}, stem) &&
            run(stride == 1 ? StemTrain1 : StemTrain2, first, stem) &&
            run(stride == 1 ? StemBfloat16Train1 : StemBfloat16Train2, first, stem, {7, 8});
      std::vector<Dims> back{image, kernel, narrow, narrow, s,     {2, outputs},
                             {4},   y,      kernel, narrow, narrow};
      ok &= run(stride == 1 ? StemBackward1 : StemBackward2, back, stem) &&
            run(stride == 1 ? StemBfloat16Backward1 : StemBfloat16Backward2, back, stem, {4, 7});
      back = {image, kernel, narrow, narrow, s, {2, outputs}, {4}, y, narrow, narrow, image};
      ok &= run(stride == 1 ? StemInputGradient1 : StemInputGradient2, back, stem) &&
            run(stride == 1 ? StemBfloat16InputGradient1 : StemBfloat16InputGradient2, back, stem,
                {4, 7});
      ok &= run(stride == 1 ? StemFolded1 : StemFolded2, {image, kernel, narrow, {4}, y},
                {{3, options}});
    }
    const Dims in{n, h, w, c}, weight{outputs, c, 1, 1}, narrow{outputs}, y{n, outputs};
    const Dims q{(outputs + 15) / 16, n * h * w, 16};
    const std::vector<Dims> train{in,  weight, narrow, narrow,       narrow, narrow,
                                  {4}, y,      q,      {2, outputs}, narrow, narrow};
    ok &= run(HeadInfer, {train.begin(), train.begin() + 8}) && run(HeadTrain, train) &&
          run(HeadBfloat16Train, train, {}, {0, 8});
    const std::vector<Dims> backward{in,  weight, narrow, narrow, q,      {2, outputs},
                                     {4}, y,      in,     weight, narrow, narrow};
    ok &= run(HeadBackward, backward) && run(HeadBfloat16Backward, backward, {}, {0, 4, 8});
    ok &= run(HeadFolded, {in, weight, narrow, {4}, y});
  }
  return ok;
}

// A layer that chooses between a block of three convolutions and one of two.
bool run_choices(const Dims &x, int64_t branch, int64_t mid, int64_t k) {
  bool ok = true;
  for (int64_t stride : {1, 2}) {
    const int64_t n = x[0], h = x[2], w = x[3], c = 2 * x[1];
    const int64_t h2 = (h - 1) / stride + 1, w2 = (w - 1) / stride + 1;
    const int64_t in = stride == 1 ? x[1] : c;
    std::vector<Dims> weights{{mid, in, 1, 1}, {mid, 1, k, k}, {branch, mid, 1, 1}};
    const std::vector<Dims> projection{{in, 1, 3, 3}, {in, in, 1, 1}};
    if (stride == 2) {
      weights.insert(weights.end(), projection.begin(), projection.end());
    }
    weights.insert(weights.end(), {{in, 1, k, k}, {branch, in, 1, 1}});
    if (stride == 2) {
      weights.insert(weights.end(), projection.begin(), projection.end());
    }
    const float more = stride == 2 ? 2 : 0;
    const Values counts{3, more, 2, more}, options{1e-5f, 0.9f, 0, 6};
    const Dims images{n, h, w, c}, y{n, h2, w2, in + branch};
    const auto number = static_cast<int>(weights.size());
    for (float choice : {0, 1}) {
      // What the block needs of the parameter that is left to backward, to the last float.
      int64_t saved = 0;
      const int first = choice == 0 ? 0 : 3 + static_cast<int>(more);
      for (int i = first; i < first + (choice == 0 ? 3 : 2) + static_cast<int>(more); ++i) {
        const bool full = choice == 0 && i == 0;  // in front of the stride
        const int64_t pixels = n * (full ? h * w : h2 * w2);
        saved += (weights[i][0] + 15) / 16 * pixels * 16 + 2 * weights[i][0];
      }
      std::vector<Dims> forward{images};
      forward.insert(forward.end(), weights.begin(), weights.end());
      std::vector<Dims> backward = forward, momentum;
      for (const Dims &weight : weights) {
        forward.insert(forward.end(), 2, Dims{weight[0]});
      }
      forward.insert(forward.end(), {{4}, {2, 2}, {}, y});
      std::map<int, Values> values{
          {1 + 3 * number, options}, {2 + 3 * number, counts}, {3 + 3 * number, {choice}}};
      ok &= run(stride == 1 ? ChoiceInfer1 : ChoiceInfer2, forward, values);
      ok &= run(stride == 1 ? ChoiceBfloat16Infer1 : ChoiceBfloat16Infer2, forward, values);
      forward.push_back({saved});
      ok &= run(stride == 1 ? ChoiceTrain1 : ChoiceTrain2, forward, values);
      ok &= run(stride == 1 ? ChoiceBfloat16Train1 : ChoiceBfloat16Train2, forward, values);
      backward.insert(backward.end(), {{2, 2}, {}, {saved}, y, images});
      backward.insert(backward.end(), weights.begin(), weights.end());
      values = {{1 + number, counts}, {2 + number, {choice}}};
      ok &= run(stride == 1 ? ChoiceBackward1 : ChoiceBackward2, backward, values);
      for (int i = 0; i < 3; ++i) {
        momentum.insert(momentum.end(), weights.begin(), weights.end());
      }
      momentum.insert(momentum.end(), {{3}, {2, 2}, {}, {1}});
      ok &= run(ChoiceMomentum, momentum, {{3 * number + 1, counts}, {3 * number + 2, {choice}}});
    }
  }
  return ok;
}

// Weights of some outputs, inputs and taps, of which rows, columns, taps and everything is used.
bool run_update(int64_t outputs, int64_t inputs, int64_t k) {
  const std::vector<Dims> weights{
      {outputs, inputs, 1, 1}, {outputs, inputs, 1, 1}, {outputs, 1, k, k}, {outputs}, {inputs}};
  const std::vector<Dims> used{
      {outputs, 1, 1, 1}, {1, inputs, 1, 1}, {outputs, 1, k, k}, {outputs}, {1}};
  std::vector<Dims> dims;
  for (const auto *group : {&weights, &weights, &weights, &used}) {
    dims.insert(dims.end(), group->begin(), group->end());
  }
  dims.insert(dims.end(), {{static_cast<int64_t>(weights.size())}, {3}, {1}});
  return run(MomentumStep, dims);
}

using Sizes = std::vector<int64_t>;
using Planes = std::vector<std::pair<int64_t, int64_t>>;

bool run_all(bool large) {
  bool ok = run_choices({3, 16, 17, 19}, 16, 16, 7) && run_network({2, 19, 7, 9}, 19, 5);
  ok &= run_update(300, 70, 5) && run_update(1, 1, 3);
  ok &= run_network({2, 5, 6, 5}, 50, 5);  // so many outputs that a gradient is kept
  if (!large) {
    ok &= run_choices({1, 1, 1, 1}, 1, 1, 3) && run_choices({2, 9, 7, 9}, 17, 33, 5);
    ok &= run_network({1, 1, 1, 1}, 1, 3) && run_network({1, 19, 4, 35}, 21, 7);
    ok &= run_network({3, 16, 2, 4}, 8, 3);
  }
  // Heights and widths: even and odd ones, a single row or column, wider than two vectors.
  const Planes planes{{1, 1}, {1, 35}, {9, 1}, {7, 4}, {6, 9}, {16, 35}};
  for (int64_t n : large ? Sizes{3} : Sizes{1, 3}) {
    for (int64_t c : large ? Sizes{19} : Sizes{1, 19}) {
      for (auto [h, w] : large ? Planes{planes.back()} : planes) {
        const Dims x{n, c, h, w}, channel{c}, options{2};
        for (int64_t k : {3, 5, 7}) {
          const Dims weight{c, 1, k, k}, y2{n, c, (h + 1) / 2, (w + 1) / 2};
          ok &= run(DepthwiseForward1, {x, weight, x}) && run(DepthwiseForward2, {x, weight, y2});
          ok &= run(DepthwiseBackward1, {x, weight, x, x, weight});
          ok &= run(DepthwiseBackward2, {x, weight, y2, x, weight});
          ok &= run_core(CoreInfer1, CoreTrain1, CoreTrainBackward1, x, weight, x);
          ok &= run_core(CoreInfer2, CoreTrain2, CoreTrainBackward2, x, weight, y2);
          const Dims image{n, 3, h, w}, kernels{c, 3, k, k};
          ok &= run(ImageForward1, {image, kernels, x}) && run(ImageForward2, {image, kernels, y2});
          ok &= run(ImageBackward1, {image, kernels, x, kernels});
          ok &= run(ImageBackward2, {image, kernels, y2, kernels});
        }
        for (int64_t outputs : {1, 8, 21}) {
          const Dims bias{outputs}, y{n, outputs, h, w};
          const Dims y2{n, outputs, (h + 1) / 2, (w + 1) / 2};
          const Dims pointwise{outputs, c, 1, 1};
          ok &= run(PointwiseForward, {x, pointwise, y});
          ok &= run(PointwiseBackward, {x, pointwise, y, x, pointwise});
          ok &= run(PointwiseRelu, {x, pointwise, bias, y});
          for (int64_t k : {3, 5, 7}) {
            const Dims weight{outputs, c, k, k};
            ok &= run(ConvRelu1, {x, weight, bias, y}) && run(ConvRelu2, {x, weight, bias, y2});
          }
        }
        for (Operator op : {NormTrain, NormReluTrain}) {
          ok &= run(op, {x, channel, channel, channel, channel, options, x, channel, channel,
                         channel, channel});
        }
        for (Operator op : {NormInfer, NormReluInfer}) {
          ok &= run(op, {x, channel, channel, channel, channel, options, x, channel, channel});
        }
        for (Operator op : {NormTrainBackward, NormReluTrainBackward}) {
          ok &= run(op, {x, channel, channel, channel, channel, x, x, channel, channel});
        }
      }
    }
  }
  return ok;
}

}  // namespace

int main(int argc, char **argv) {
  const bool large = argc > 1 && std::string(argv[1]) == "large";
  bool first = true, second = false;
  std::thread other([&] { first = !large || run_all(large); });
  second = run_all(large);
  other.join();
  std::puts(first && second ? "ok" : "an operator refused its input");
  return first && second ? 0 : 1;
}
