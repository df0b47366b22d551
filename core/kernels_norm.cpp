// SiLU of a group norm of [B, C, T, H, W] that latents may modulate: one kernel each way instead of a dozen operators.
//
// y = silu(n (w s) + (b s + h)), n = (x - mean) / sqrt(variance + eps) over a group; the scale s and shift h of a sample
// and channel are given on a coarser grid of cells [t, h, w] (nearest neighbour; one cell for no modulation). Backward,
// everything but the gradient of x follows from two sums for each cell. Arithmetic as in kernels.cpp.

#include "kernels.h"

using namespace kernels;

namespace {

// The factor and summand of n along one row, from the cells of that row.
struct Row {
  std::vector<float> factor, summand;

  explicit Row(int64_t width) : factor(static_cast<size_t>(width)), summand(static_cast<size_t>(width)) {}

  void fill(const GroupNorm& p, float weight, float bias, const float* scale, const float* shift) {
    p.along_row(weight, bias, scale, shift, factor.data(), summand.data());
  }
};

// A row's du, summed up in ``plain`` and (times n) in ``along``; ``to`` gets the gradient of n. A function of its own:
// inside a lambda the compiler does not use vectors.
__attribute__((noinline)) void back(const float* __restrict from, const float* __restrict grad, const Row& row,
                                    Moments m, int64_t width, float* __restrict to, float* __restrict plain,
                                    float* __restrict along) {
  const float* __restrict factor = row.factor.data();
  const float* __restrict summand = row.summand.data();
  for (int64_t i = 0; i < width; ++i) {
    const float n = (from[i] - m.mean) * m.inverse, u = n * factor[i] + summand[i], s = sigmoid(u);
    const float du = grad[i] * s * (1.0f + u * (1.0f - s));
    plain[i] += du;
    along[i] += du * n;
    to[i] = du * factor[i];
  }
}

// One group of one sample; ``cell_row`` is called before the rows of a row of cells, ``row`` for each row.
template <class CellRow, class EachRow>
void each_row(const GroupNorm& p, const CellRow& cell_row, const EachRow& row) {
  const int64_t repeat = p.height / p.cells_h;
  for (int64_t c = 0; c < p.each(); ++c) {
    for (int64_t frame = 0; frame < p.frames; ++frame) {
      for (int64_t y = 0; y < p.height; ++y) {
        const int64_t cells = ((c * p.cells_t + p.cell_of(frame)) * p.cells_h + y / repeat) * p.cells_w;
        if (y % repeat == 0) cell_row(c, cells);
        row(((c * p.frames + frame) * p.height + y) * p.width);
        if (y % repeat == repeat - 1) cell_row.done(c, cells);
      }
    }
  }
}

struct Filler {
  const GroupNorm& p;
  Row& row;
  const float *weight, *bias, *scale, *shift;

  void operator()(int64_t c, int64_t cells) const { row.fill(p, weight[c], bias[c], scale + cells, shift + cells); }
  void done(int64_t, int64_t) const {}
};

// Sums over a cell's places of du and of du n, where u is what SiLU takes.
struct Collector : Filler {
  float *plain, *along;            // along the current row of cells
  float *cell_plain, *cell_along;  // of each cell

  void operator()(int64_t c, int64_t cells) const {
    Filler::operator()(c, cells);
    std::fill_n(plain, p.width, 0.0f);
    std::fill_n(along, p.width, 0.0f);
  }
  void done(int64_t, int64_t cells) const {
    const int64_t repeat = p.width / p.cells_w;
    for (int64_t i = 0; i < p.width; ++i) {
      cell_plain[cells + i / repeat] += plain[i];
      cell_along[cells + i / repeat] += along[i];
    }
  }
};

}  // namespace

extern "C" {

// x, weight [C], bias [C], scale [B, C, t, h, w], shift, (groups, eps) -> y
int norm_silu(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(7)) return 1;
  const GroupNorm p(shapes[0], shapes[3], a.in(5));
  if (!p.fits()) return 1;
  std::atomic<int> failed{0};
  parallel(p.batch * p.groups, [&](int64_t part) {
    try {
      const int64_t channel = part % p.groups * p.each(), first = (part / p.groups * p.channels + channel);
      const float* x = a.in(0) + first * p.frames * p.plane();
      float* y = a.out(6) + first * p.frames * p.plane();
      const Moments m = p.moments_of(x);
      Row row(p.width);
      const float *scale = a.in(3) + first * p.cells(), *shift = a.in(4) + first * p.cells();
      each_row(p, Filler{p, row, a.in(1) + channel, a.in(2) + channel, scale, shift}, [&](int64_t at) {
        norm_silu_row(x + at, row.factor.data(), row.summand.data(), m, p.width, y + at);
      });
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  });
  return failed;
}

// x, weight, bias, scale, shift, (groups, eps), gradient of y -> gradients of x, weight, bias, scale, shift
int norm_silu_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(12)) return 1;
  const GroupNorm p(shapes[0], shapes[3], a.in(5));
  if (!p.fits()) return 1;
  std::vector<float> partial(static_cast<size_t>(2 * p.batch * p.channels), 0.0f);
  std::atomic<int> failed{0};
  parallel(p.batch * p.groups, [&](int64_t part) {
    try {
      const int64_t channel = part % p.groups * p.each(), first = (part / p.groups * p.channels + channel);
      const int64_t size = p.each() * p.frames * p.plane(), cells = p.each() * p.cells();
      const float *x = a.in(0) + first * p.frames * p.plane(), *g = a.in(6) + first * p.frames * p.plane();
      float* dx = a.out(7) + first * p.frames * p.plane();
      const float *weight = a.in(1) + channel, *bias = a.in(2) + channel;
      const float *scale = a.in(3) + first * p.cells(), *shift = a.in(4) + first * p.cells();
      float *dscale = a.out(10) + first * p.cells(), *dshift = a.out(11) + first * p.cells();
      const Moments m = p.moments_of(x);
      Row row(p.width);
      std::vector<float> sums(static_cast<size_t>(2 * p.width));
      float *plain = sums.data(), *along = plain + p.width;
      std::fill_n(dscale, cells, 0.0f);  // holds the sum of du n first
      std::fill_n(dshift, cells, 0.0f);
      each_row(p, Collector{{p, row, weight, bias, scale, shift}, plain, along, dshift, dscale}, [&](int64_t at) {
        back(x + at, g + at, row, m, p.width, dx + at, plain, along);
      });
      double mean = 0.0, slope = 0.0;
      for (int64_t c = 0; c < p.each(); ++c) {
        double dw = 0.0, db = 0.0;
        for (int64_t i = c * p.cells(); i < (c + 1) * p.cells(); ++i) {
          const float du = dshift[i], du_n = dscale[i];
          dw += static_cast<double>(scale[i]) * du_n;
          db += static_cast<double>(scale[i]) * du;
          dscale[i] = weight[c] * du_n + bias[c] * du;
        }
        mean += weight[c] * db;
        slope += weight[c] * dw;
        partial[static_cast<size_t>(first + c)] = static_cast<float>(dw);
        partial[static_cast<size_t>(p.batch * p.channels + first + c)] = static_cast<float>(db);
      }
      const float average = static_cast<float>(mean / static_cast<double>(size));
      const float tilt = static_cast<float>(slope / static_cast<double>(size));
      for (int64_t i = 0; i < size; ++i) {
        dx[i] = (dx[i] - average - (x[i] - m.mean) * m.inverse * tilt) * m.inverse;
      }
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  });
  for (int64_t i = 0; i < 2 * p.channels; ++i) {
    float total = 0.0f;
    for (int64_t b = 0; b < p.batch; ++b) {
      total += partial[static_cast<size_t>((i / p.channels * p.batch + b) * p.channels + i % p.channels)];
    }
    a.out(i < p.channels ? 8 : 9)[i % p.channels] = total;
  }
  return failed;
} catch (const std::bad_alloc&) {
  return 1;
}

}  // extern "C"
