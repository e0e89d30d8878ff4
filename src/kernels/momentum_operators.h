// SGD with momentum of all weights of a network in one call: what a framework computes by a dozen
// small operators for each weight.
//
//     gradient = min(1, clip / norm) gradient + decay weight
//     moment   = momentum moment + gradient
//     weight  -= rate moment
//
// with the norm of all gradients together, before decay. Of a weight and its moment, what is not
// used keeps every bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "call.h"
#include "tasks.h"

namespace spnas {

// Weights, moments, gradients and what is used, as many of each; decay of each weight; factors;
// and the output, the norm.
struct MomentumPlaces {
  enum { kRate, kMomentum, kClip, kFactors };  // clip is 0 where nothing is clipped
  int weights, moments, gradients, used, decays, factors, norm, count;

  explicit MomentumPlaces(int parameters)
      : weights((parameters - 3) / 4), moments(weights), gradients(2 * weights), used(3 * weights),
        decays(4 * weights), factors(decays + 1), norm(factors + 1), count(norm + 1) {}
};

// Rows of one weight that a task works on. A weight (outputs, ...) has a row per output, a vector
// is one row.
struct WeightRows {
  int weight;
  int64_t first, last, width;
};

// 0 and 1 for the elements of a weight: a value per element of a row or per row, the same for all
// rows or not.
struct UsedParts {
  const float *values;
  int64_t pitch, width;  // from row to row; values of a row, 1 or as many as it has

  // Of parameter i for a weight; false where the shapes do not fit.
  static bool read(const Call &call, int i, int weight, int64_t rows, int64_t width,
                   UsedParts &out) {
    const int64_t size = call.size(i);
    if (size == 1) {
      out = {call.data(i), 0, 1};
      return true;
    }
    if (call.ndims[i] != call.ndims[weight]) {
      return false;
    }
    const int first = call.ndims[i] == 1 ? 0 : 1;  // dimension of a row
    const int64_t own_rows = first > 0 ? call.shapes[i][0] : 1;
    const int64_t own = own_rows > 0 ? size / own_rows : 0;
    out = {call.data(i), own_rows > 1 ? own : 0, own};
    const bool whole =
        own == width && std::equal(call.shapes[i] + first, call.shapes[i] + call.ndims[i],
                                   call.shapes[weight] + first);
    return (own_rows == 1 || own_rows == rows) && (own == 1 || whole);
  }
};

inline Status momentum_step(const Call &call) {
  const MomentumPlaces at(call.count);
  if (Status status = call.check(at.count)) {
    return status;
  }
  if (at.weights < 1 || !call.is_shape(at.decays, {at.weights}) ||
      !call.is_shape(at.factors, {MomentumPlaces::kFactors}) || !call.is_shape(at.norm, {1})) {
    return kBadShape;
  }
  std::vector<WeightRows> tasks;
  std::vector<UsedParts> used(at.weights);
  for (int i = 0; i < at.weights; ++i) {
    const bool vector = call.ndims[i] == 1;
    const int64_t rows = vector || call.ndims[i] == 0 ? 1 : call.shapes[i][0];
    const int64_t size = call.size(i), width = rows > 0 ? size / rows : 0;
    if (size == 0 || !same_shape(call, i, at.moments + i) ||
        !same_shape(call, i, at.gradients + i) ||
        !UsedParts::read(call, at.used + i, i, rows, width, used[i])) {
      return kBadShape;
    }
    const int64_t group = std::max<int64_t>(1, kGrain / width);
    for (int64_t first = 0; first < rows; first += group) {
      tasks.push_back({i, first, std::min(rows, first + group), width});
    }
  }
  const auto count = static_cast<int64_t>(tasks.size());
  std::vector<double> squares(count);
  Status status = parallel(count, 1, [&](int64_t t, int64_t) {
    const WeightRows &task = tasks[t];
    const float *gradient = call.data(at.gradients + task.weight);
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = task.first * task.width; j < task.last * task.width; ++j) {
      sum += static_cast<double>(gradient[j]) * gradient[j];
    }
    squares[t] = sum;
  });
  if (status) {
    return status;
  }
  double total = 0;
  for (const double square : squares) {
    total += square;
  }
  const auto norm = static_cast<float>(std::sqrt(total));
  call.data(at.norm)[0] = norm;
  const float *factors = call.data(at.factors);
  const float rate = factors[MomentumPlaces::kRate], momentum = factors[MomentumPlaces::kMomentum];
  const float clip = factors[MomentumPlaces::kClip];
  // A norm that is no number makes all weights none, so that nothing hides it.
  const float scale = clip > 0 && !(norm <= clip) ? clip / norm : 1;
  return parallel(count, 1, [&](int64_t t, int64_t) {
    const WeightRows &task = tasks[t];
    const UsedParts &parts = used[task.weight];
    const float decay = call.data(at.decays)[task.weight];
    for (int64_t row = task.first; row < task.last; ++row) {
      const int64_t begin = row * task.width;
      const float *gradient = call.data(at.gradients + task.weight) + begin;
      float *weight = call.data(task.weight) + begin;
      float *moment = call.data(at.moments + task.weight) + begin;
      const float *own = parts.values + row * parts.pitch;
      const auto step = [&](int64_t j, bool moves) {
        const float moved = momentum * moment[j] + (scale * gradient[j] + decay * weight[j]);
        const float changed = weight[j] - rate * moved;
        moment[j] = moves ? moved : moment[j];
        weight[j] = moves ? changed : weight[j];
      };
      if (parts.width > 1) {
#pragma omp simd
        for (int64_t j = 0; j < task.width; ++j) {
          step(j, own[j] != 0);
        }
      } else if (own[0] != 0) {
#pragma omp simd
        for (int64_t j = 0; j < task.width; ++j) {
          step(j, true);
        }
      }
    }
  });
}

}  // namespace spnas
