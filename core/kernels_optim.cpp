// The optimiser's kernels: an update reads each tensor once and writes it once, where operators make a dozen passes.
// Same rules as kernels.cpp; the sequence of roundings is that of core/optim/adamw.py, so the bits are, too.

#include "kernels.h"

using namespace kernels;

namespace {

// Scalars of a step and constants of a tensor, in the order in which they are handed over.
struct Step {
  float factor, lr, correction1, correction2, beta1, beta2, rest1, rest2, eps, weight_decay;

  // No captured pointers here: those lose __restrict, and the compiler does not ask whether so many overlap.
  void piece(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v, int64_t n) const {
    const Step s = *this;
    const float kept = 1.0f - s.lr * s.weight_decay;
    for (int64_t i = 0; i < n; ++i) {
      const float gradient = g[i] * s.factor;
      const float first = s.beta1 * m[i] + s.rest1 * gradient;
      const float second = s.beta2 * v[i] + s.rest2 * (gradient * gradient);
      m[i] = first;
      v[i] = second;
      p[i] = p[i] * kept - s.lr * (first / s.correction1) / (std::sqrt(second / s.correction2) + s.eps);
    }
  }
};

void averaged_piece(float* __restrict average, const float* __restrict value, float rest, int64_t n) {
  for (int64_t i = 0; i < n; ++i) average[i] = average[i] + rest * (value[i] - average[i]);
}

float square_sum_of(const float* x, int64_t n) {
  const int64_t parts = (n + kPart - 1) / kPart;
  std::vector<float> partial(static_cast<size_t>(parts));
  parallel(parts, [&](int64_t part) {
    const int64_t end = std::min(n, (part + 1) * kPart);
    Lanes total = {};
    float rest = 0.0f;
    int64_t i = part * kPart;
    for (; i + kLanes <= end; i += kLanes) {
      const Lanes value = load(x + i);
      total += value * value;
    }
    for (; i < end; ++i) rest += x[i] * x[i];
    partial[static_cast<size_t>(part)] = sum(total) + rest;
  });
  double total = 0.0;
  for (const float one : partial) total += one;
  return static_cast<float>(total);
}

void in_pieces(int64_t n, const std::function<void(int64_t, int64_t)>& piece) {
  parallel((n + kPart - 1) / kPart, [&](int64_t part) { piece(part * kPart, std::min(n - part * kPart, kPart)); });
}

}  // namespace

// Called on the tensors' own memory, not as operators: what is updated is updated in place, and a call with a hundred
// tensors costs nothing beside the work. ``sizes`` are elements.
extern "C" {

// values, gradients, m, v of n tensors; numbers: the fields of Step
void adamw(int64_t n, float** values, const float** gradients, float** m, float** v, const int64_t* sizes,
           const float* numbers) {
  Step step;
  std::memcpy(&step, numbers, sizeof step);
  for (int64_t k = 0; k < n; ++k) {
    in_pieces(sizes[k], [&](int64_t from, int64_t count) {
      step.piece(values[k] + from, gradients[k] + from, m[k] + from, v[k] + from, count);
    });
  }
}

// averages and values of n tensors: average += rest (value - average)
void averaged(int64_t n, float** averages, const float** values, const int64_t* sizes, float rest) {
  for (int64_t k = 0; k < n; ++k) {
    in_pieces(sizes[k], [&](int64_t from, int64_t count) {
      averaged_piece(averages[k] + from, values[k] + from, rest, count);
    });
  }
}

// Sum of the squares of n tensors: fp32 in lanes within a piece (an element beyond 1.8e19 makes it infinite), pieces
// added in their order in double, tensors in theirs in fp32. NaN where memory ran out.
float square_sum(int64_t n, const float** tensors, const int64_t* sizes) try {
  float total = 0.0f;
  for (int64_t k = 0; k < n; ++k) total += square_sum_of(tensors[k], sizes[k]);
  return total;
} catch (const std::bad_alloc&) {
  return std::nanf("");
}

}  // extern "C"
