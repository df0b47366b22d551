// The optimiser's kernels: an update reads each tensor once and writes it once, where operators make a dozen passes.
// Same rules as kernels.cpp; the sequence of roundings is that of core/optim/adamw.py, so the bits are, too.

#include "kernels.h"

using namespace kernels;

namespace {

// Scalars of a step, and what a tensor's recipe fixes.
struct Step {
  float factor, lr, correction1, correction2, beta1, rest1, beta2, rest2, eps, kept;

  Step(const Arguments& a, int first)
      : factor(a.in(first)[0]), lr(a.in(first + 1)[0]), correction1(a.in(first + 2)[0]),
        correction2(a.in(first + 3)[0]) {
    const float* fixed = a.in(first + 4);
    beta1 = fixed[0], rest1 = fixed[1], beta2 = fixed[2], rest2 = fixed[3], eps = fixed[4];
    kept = 1.0f - lr * fixed[5];
  }

  void run(const float* __restrict p, const float* __restrict g, const float* __restrict m, const float* __restrict v,
           float* __restrict p_out, float* __restrict m_out, float* __restrict v_out, int64_t n) const {
    const Step s = *this;
    parallel((n + kPart - 1) / kPart, [=](int64_t part) {
      const int64_t end = std::min(n, (part + 1) * kPart);
      for (int64_t i = part * kPart; i < end; ++i) {
        const float gradient = g[i] * s.factor;
        const float first = s.beta1 * m[i] + s.rest1 * gradient;
        const float second = s.beta2 * v[i] + s.rest2 * (gradient * gradient);
        m_out[i] = first;
        v_out[i] = second;
        p_out[i] = p[i] * s.kept - s.lr * (first / s.correction1) / (std::sqrt(second / s.correction2) + s.eps);
      }
    });
  }
};

}  // namespace

extern "C" {

// values, gradients, m, v of n tensors; scalars factor, lr, correction1, correction2;
// fixed [beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay] -> values, m, v
int adamw(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  const int n = (count - 5) / 7, out = 4 * n + 5;
  if (n < 1 || !a.are_fp32(7 * n + 5)) return 1;
  const Step step(a, 4 * n);
  for (int k = 0; k < n; ++k) {
    step.run(a.in(k), a.in(n + k), a.in(2 * n + k), a.in(3 * n + k), a.out(out + k), a.out(out + n + k),
             a.out(out + 2 * n + k), a.size(k));
  }
  return 0;
}

// x -> [1], the sum of its squares: fp32 in lanes within a piece (an element beyond 1.8e19 makes it infinite), pieces
// added in their order in double.
int square_sum(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(2)) return 1;
  const float* x = a.in(0);
  const int64_t n = a.size(0), parts = (n + kPart - 1) / kPart;
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
  a.out(1)[0] = static_cast<float>(total);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

}  // extern "C"
