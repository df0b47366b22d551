// The CPU kernels that MindSpore's own lack: one pass over memory instead of six, both directions.
//
// Every function has the signature of mindspore.ops.Custom's "aot" kernels: pointers of inputs, then outputs; shapes;
// type names; returns 0, or 1 for arguments it does not know (MindSpore raises). All tensors are dense fp32.
// Only IEEE additions, products, quotients and square roots in a fixed order (no fast-math, no contraction): the bits
// depend neither on the number of threads nor on the width of the machine's vectors.

#include "kernels.h"

using namespace kernels;

namespace {

// e^x to about one unit in the last place for x in [-87, 88]; 0 < result <= infinity; NaN stays NaN. Range reduction
// and coefficients are those of Cephes' expf (S. L. Moshier).
inline float exponential(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // x - n ln 2, ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t power = (static_cast<uint32_t>(bits) - 0x4b400000u + 127u) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  return p * scale;
}

inline float clamped(float v) {  // beyond 12 the sigmoid below is 0 or 1; no overflow in the cube
  v = v > 12.0f ? 12.0f : v;
  return v < -12.0f ? -12.0f : v;
}

constexpr float kCubic = 0.07135481282553303f, kLinear = 1.5957691216057308f;

inline float gate(float u) { return 1.0f / (1.0f + exponential(-(u * (u * u * kCubic + kLinear)))); }

template <class Element>
int elementwise(int64_t n, const Element& element) {
  parallel((n + kPart - 1) / kPart, [&](int64_t part) {
    const int64_t end = std::min(n, (part + 1) * kPart);
    element(part * kPart, end);
  });
  return 0;
}

struct Moments {
  float mean, inverse;
};

inline Moments moments(const float* x, int64_t size, float eps) {
  Lanes total = {};
  float rest = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) total += load(x + i);
  for (; i < size; ++i) rest += x[i];
  const float mean = (sum(total) + rest) / static_cast<float>(size);
  Lanes squares = {};
  rest = 0.0f;
  for (i = 0; i + kLanes <= size; i += kLanes) {
    const Lanes d = load(x + i) - mean;
    squares += d * d;
  }
  for (; i < size; ++i) rest += (x[i] - mean) * (x[i] - mean);
  const float variance = (sum(squares) + rest) / static_cast<float>(size);
  return {mean, 1.0f / std::sqrt(variance + eps)};
}

// Rows of one group (they share weight and bias) in pieces whose number depends on the shape alone.
struct Rows {
  int64_t groups, rows, size, pieces, per_piece;

  Rows(int64_t elements, int64_t affine, int64_t size) : groups(affine / size), size(size) {
    rows = elements / size / groups;
    pieces = std::max<int64_t>(1, std::min<int64_t>({rows, 32, rows * size / kPart}));
    per_piece = (rows + pieces - 1) / pieces;
  }
  int64_t begin(int64_t part) const { return std::min(rows, part % pieces * per_piece) + part / pieces * rows; }
  int64_t end(int64_t part) const { return std::min(rows, (part % pieces + 1) * per_piece) + part / pieces * rows; }
};

}  // namespace

extern "C" {

// x -> x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))
int gelu(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(2)) return 1;
  const float* __restrict x = a.in(0);
  float* __restrict y = a.out(1);
  return elementwise(a.size(0), [=](int64_t i, int64_t end) {
    for (; i < end; ++i) y[i] = x[i] * gate(clamped(x[i]));
  });
}

// x, gradient of the output -> gradient of x
int gelu_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(3)) return 1;
  const float* __restrict x = a.in(0);
  const float* __restrict g = a.in(1);
  float* __restrict d = a.out(2);
  return elementwise(a.size(0), [=](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const float u = clamped(x[i]), s = gate(u);
      d[i] = g[i] * (s * (1.0f + u * (1.0f - s) * (u * u * (3.0f * kCubic) + kLinear)));
    }
  });
}

// x [..., D], weight [G, D], bias [G, D], eps [1] -> (x - mean) / sqrt(variance + eps) * weight + bias;
// the rows of x are G groups of equal length, each with its own weight and bias.
int layer_norm(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(5)) return 1;
  const int64_t size = shapes[0][ranks[0] - 1];
  if (a.size(0) == 0) return 0;
  const Rows rows(a.size(0), a.size(1), size);
  const float eps = a.in(3)[0];
  parallel(rows.groups * rows.pieces, [&](int64_t part) {
    const float* w = a.in(1) + part / rows.pieces * size;
    const float* b = a.in(2) + part / rows.pieces * size;
    for (int64_t row = rows.begin(part); row < rows.end(part); ++row) {
      const float* __restrict x = a.in(0) + row * size;
      float* __restrict y = a.out(4) + row * size;
      const Moments m = moments(x, size, eps);
      for (int64_t i = 0; i < size; ++i) y[i] = (x[i] - m.mean) * m.inverse * w[i] + b[i];
    }
  });
  return 0;
}

// x, weight, eps, gradient of the output -> gradients of x, weight, bias
int layer_norm_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(7)) return 1;
  const int64_t size = shapes[0][ranks[0] - 1], affine = a.size(1);
  std::fill_n(a.out(5), affine, 0.0f);
  std::fill_n(a.out(6), affine, 0.0f);
  if (a.size(0) == 0) return 0;
  const Rows rows(a.size(0), affine, size);
  const float eps = a.in(2)[0], share = 1.0f / static_cast<float>(size);
  std::vector<float> partial(static_cast<size_t>(rows.groups * rows.pieces * 2 * size), 0.0f);
  parallel(rows.groups * rows.pieces, [&](int64_t part) {
    const float* w = a.in(1) + part / rows.pieces * size;
    float* __restrict dw = partial.data() + part * 2 * size;
    float* __restrict db = dw + size;
    for (int64_t row = rows.begin(part); row < rows.end(part); ++row) {
      const float* __restrict x = a.in(0) + row * size;
      const float* __restrict g = a.in(3) + row * size;
      float* __restrict dx = a.out(4) + row * size;
      const Moments m = moments(x, size, eps);
      Lanes plain = {}, along = {};
      float plain_rest = 0.0f, along_rest = 0.0f;
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) {
        const Lanes grad = load(g + i), normed = (load(x + i) - m.mean) * m.inverse, scaled = grad * load(w + i);
        plain += scaled;
        along += scaled * normed;
        store(dw + i, load(dw + i) + grad * normed);
        store(db + i, load(db + i) + grad);
      }
      for (; i < size; ++i) {
        const float normed = (x[i] - m.mean) * m.inverse, scaled = g[i] * w[i];
        plain_rest += scaled;
        along_rest += scaled * normed;
        dw[i] += g[i] * normed;
        db[i] += g[i];
      }
      const float mean = (sum(plain) + plain_rest) * share, slope = (sum(along) + along_rest) * share;
      for (i = 0; i < size; ++i) {
        const float normed = (x[i] - m.mean) * m.inverse;
        dx[i] = (g[i] * w[i] - mean - normed * slope) * m.inverse;
      }
    }
  });
  for (int64_t part = 0; part < rows.groups * rows.pieces; ++part) {
    const float* dw = partial.data() + part * 2 * size;
    float* weight = a.out(5) + part / rows.pieces * size;
    float* bias = a.out(6) + part / rows.pieces * size;
    for (int64_t i = 0; i < size; ++i) weight[i] += dw[i];
    for (int64_t i = 0; i < size; ++i) bias[i] += dw[size + i];
  }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// x [R, S, K], cos [S, K], sin [S, K] -> neighbouring pairs turned: (x0 cos - x1 sin, x1 cos + x0 sin)
int rotate(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(4)) return 1;
  const int64_t table = a.size(1), turns = table ? a.size(0) / table : 0;
  parallel(turns, [&](int64_t part) {
    const float* __restrict x = a.in(0) + part * table;
    const float* __restrict c = a.in(1);
    const float* __restrict s = a.in(2);
    float* __restrict y = a.out(3) + part * table;
    for (int64_t i = 0; i < table; i += 2) {
      y[i] = x[i] * c[i] - x[i + 1] * s[i];
      y[i + 1] = x[i + 1] * c[i + 1] + x[i] * s[i + 1];
    }
  });
  return 0;
}

// gradient of the output, cos, sin -> gradient of x
int rotate_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(4)) return 1;
  const int64_t table = a.size(1), turns = table ? a.size(0) / table : 0;
  parallel(turns, [&](int64_t part) {
    const float* __restrict g = a.in(0) + part * table;
    const float* __restrict c = a.in(1);
    const float* __restrict s = a.in(2);
    float* __restrict d = a.out(3) + part * table;
    for (int64_t i = 0; i < table; i += 2) {
      d[i] = g[i] * c[i] + g[i + 1] * s[i + 1];
      d[i + 1] = g[i + 1] * c[i + 1] - g[i] * s[i];
    }
  });
  return 0;
}

}  // extern "C"
