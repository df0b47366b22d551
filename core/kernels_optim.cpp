// The optimiser's kernels: an update reads each tensor once and writes it once, where operators make a dozen passes.
// Same rules as kernels.cpp; the sequence of roundings is that of core/optim/adamw.py, so the bits are, too.

#include "kernels.h"

using namespace kernels;

extern "C" {

// value, gradient, m, v of one shape; scalars factor, lr, correction1, correction2;
// fixed [beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay] -> value, m, v
int adamw(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(12)) return 1;
  const float *__restrict p = a.in(0), *__restrict g = a.in(1), *__restrict m = a.in(2), *__restrict v = a.in(3);
  const float factor = a.in(4)[0], lr = a.in(5)[0], correction1 = a.in(6)[0], correction2 = a.in(7)[0];
  const float beta1 = a.in(8)[0], rest1 = a.in(8)[1], beta2 = a.in(8)[2], rest2 = a.in(8)[3];
  const float eps = a.in(8)[4], kept = 1.0f - lr * a.in(8)[5];
  float *__restrict p_out = a.out(9), *__restrict m_out = a.out(10), *__restrict v_out = a.out(11);
  const int64_t n = a.size(0);
  parallel((n + kPart - 1) / kPart, [=](int64_t part) {
    const int64_t end = std::min(n, (part + 1) * kPart);
    for (int64_t i = part * kPart; i < end; ++i) {
      const float gradient = g[i] * factor;
      const float first = beta1 * m[i] + rest1 * gradient;
      const float second = beta2 * v[i] + rest2 * (gradient * gradient);
      m_out[i] = first;
      v_out[i] = second;
      p_out[i] = p[i] * kept - lr * (first / correction1) / (std::sqrt(second / correction2) + eps);
    }
  });
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
