// Direct convolution of dense fp32 [B, C, T, H, W], forward and backward, without an unfolded copy.
//
// The image is packed piece by piece, zeros included, into a flat grid in which every tap of the kernel is one shift:
// a row of W outputs takes W + (taps - 1) places there, the last ones are computed and dropped. With a stride, each
// of its phases has a grid of its own, so shifts stay contiguous. On this grid a convolution is a matrix product whose
// right side is read in place: ``tile`` keeps outputs x positions in registers, ``gather`` (the weights' gradient)
// outputs x taps. Sums run in one order that depends on shapes only, with fused multiply-adds wherever the processor
// has them: the same bits for any number of threads and for AVX2 and AVX-512.

#include "kernels_vector.h"

using namespace kernels;

namespace {

#if defined(__AVX512F__)
constexpr int kOutputs = 8, kVectors = 3;  // 24 sums of 32 registers
constexpr int kRows = 8, kColumns = 3;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kOutputs = 4, kVectors = 3;  // 12 sums of 16 registers
constexpr int kRows = 2, kColumns = 3;     // each of two registers
#else
constexpr int kOutputs = 8, kVectors = 2;
constexpr int kRows = 2, kColumns = 2;
#endif
constexpr int kPerLanes = kLanes / kWide;
constexpr int64_t kPositions = 1024;   // of one piece of an output plane, about
constexpr int64_t kPacked = 1 << 16;   // floats of packed image that should stay in the second-level cache
constexpr int64_t kChannels = 16;      // packed at a time for the weights' gradient
constexpr int64_t kBlock = 8;          // output channels of one piece of work there

// One axis of a convolution. ``back``: the transposed direction, which reads the output's gradient.
struct Axis {
  int64_t in, out;  // lengths of what is read and what is written
  int64_t kernel, stride, pad;
  bool back;

  // Place i * write_step + phase is written from the places i * read_step + shift(tap, phase).
  int64_t read_step() const { return back ? 1 : stride; }
  int64_t write_step() const { return back ? stride : 1; }
  bool meets(int64_t tap, int64_t phase) const { return !back || (phase + pad - tap) % stride == 0; }
  int64_t shift(int64_t tap, int64_t phase) const { return back ? (phase + pad - tap) / stride : tap - pad; }
  int64_t written(int64_t phase) const { return phase < out ? divide_up(out - phase, write_step()) : 0; }
};

// Where the taps of one phase of an axis read.
struct Taps {
  int64_t low = 0, high = 0;  // smallest and largest shift
  std::vector<int64_t> index;

  Taps(const Axis& axis, int64_t phase) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      if (!axis.meets(tap, phase)) continue;
      const int64_t shift = axis.shift(tap, phase);
      low = index.empty() ? shift : std::min(low, shift);
      high = index.empty() ? shift : std::max(high, shift);
      index.push_back(tap);
    }
  }
};

// The packed grid of ``rows`` x ``columns`` outputs of one plane.
struct Grid {
  const Axis &h, &w;
  Taps taps_h, taps_w;
  int64_t rows, columns;      // written
  int64_t height, width;      // of the grid of one phase
  int64_t plane;              // floats of all phases

  Grid(const Axis& h, int64_t phase_h, const Axis& w, int64_t phase_w, int64_t rows)
      : h(h), w(w), taps_h(h, phase_h), taps_w(w, phase_w), rows(rows), columns(w.written(phase_w)) {
    height = rows + (taps_h.high - taps_h.low) / h.read_step();
    width = columns + (taps_w.high - taps_w.low) / w.read_step();
    plane = h.read_step() * w.read_step() * height * width;
  }
  int64_t positions() const { return (rows - 1) * width + columns; }

  int64_t offset(int64_t shift_h, int64_t shift_w) const {
    const int64_t y = shift_h - taps_h.low, x = shift_w - taps_w.low;
    const int64_t phase = y % h.read_step() * w.read_step() + x % w.read_step();
    return (phase * height + y / h.read_step()) * width + x / w.read_step();
  }

  // Packs the part of a plane that ``rows`` outputs from row ``first`` on read; ``source(row)`` is where a row lies.
  template <class Source>
  void pack(const Source& source, int64_t first, float* to) const {
    const int64_t step_h = h.read_step(), step_w = w.read_step();
    for (int64_t ph = 0; ph < step_h; ++ph) {
      for (int64_t pw = 0; pw < step_w; ++pw) {
        for (int64_t r = 0; r < height; ++r, to += width) {
          const int64_t row = (first + r) * step_h + ph + taps_h.low;
          if (row < 0 || row >= h.in) {
            std::fill_n(to, width, 0.0f);
          } else {
            pack_row(source(row), pw + taps_w.low, step_w, to);
          }
        }
      }
    }
  }

 private:
  void pack_row(const float* from, int64_t start, int64_t step, float* to) const {
    const int64_t before = std::min(width, start < 0 ? divide_up(-start, step) : 0);
    const int64_t end = std::max(before, std::min(width, divide_up(w.in - start, step)));
    std::fill_n(to, before, 0.0f);
    if (step == 1) {
      std::copy(from + start + before, from + start + end, to + before);
    } else {
      for (int64_t i = before; i < end; ++i) to[i] = from[start + i * step];
    }
    std::fill(to + end, to + width, 0.0f);
  }
};

// A dense image [B, C, T, H, W] as a convolution reads it.
struct Dense {
  const float* image;
  int64_t channels, frames, height, width;

  int64_t buffer() const { return 0; }
  const float* row(int64_t b, int64_t channel, int64_t frame, int64_t row, float*) const {
    return image + (((b * channels + channel) * frames + frame) * height + row) * width;
  }
};

// The same, each frame but the first of an odd number repeated ``time`` times, each row and column twice.
struct Nearest {
  const float* image;
  int64_t channels, frames, height, width, time;

  int64_t buffer() const { return 2 * width; }
  const float* row(int64_t b, int64_t channel, int64_t frame, int64_t row, float* buffer) const {
    const int64_t at = frames % 2 == 0 ? frame / time : (frame == 0 ? 0 : 1 + (frame - 1) / time);
    const float* from = image + (((b * channels + channel) * frames + at) * height + row / 2) * width;
    for (int64_t i = 0; i < width; ++i) buffer[2 * i] = buffer[2 * i + 1] = from[i];
    return buffer;
  }
};

// What a causal convolution of SiLU of a group norm reads: the frames remembered from before (null: the first frame
// again), then the norm of ``x``, made row by row when it is packed: it never exists as a whole.
struct Normed {
  const float* x;
  const float* cache;
  int64_t memory;
  GroupNorm norm;
  const float *weight, *bias, *scale, *shift;
  std::vector<Moments> moments;  // of each sample and group

  int64_t buffer() const { return 3 * norm.width; }
  const float* row(int64_t b, int64_t channel, int64_t frame, int64_t row, float* buffer) const {
    const int64_t plane = b * norm.channels + channel;
    if (frame < memory && cache) return cache + ((plane * memory + frame) * norm.height + row) * norm.width;
    made(b, channel, std::max<int64_t>(0, frame - memory), row, buffer, buffer + norm.width);
    return buffer;
  }

  // One row of the norm's result; ``factors`` has room for two rows.
  void made(int64_t b, int64_t channel, int64_t frame, int64_t row, float* to, float* factors) const {
    const int64_t plane = b * norm.channels + channel;
    const float* from = x + ((plane * norm.frames + frame) * norm.height + row) * norm.width;
    const int64_t cells = norm.cells_of(plane, frame, row);
    norm.along_row(weight[channel], bias[channel], scale + cells, shift + cells, factors, factors + norm.width);
    norm_silu_row(from, factors, factors + norm.width,
                  moments[static_cast<size_t>(b * norm.groups + channel / norm.each())], norm.width, to);
  }
};

struct Tap {
  int64_t x, w;  // offsets in the packed image and in the packed weights of one channel
};

// acc[o][p] (+)= sum over channels c and taps q of w[c][q][o] x[c][p + shift(q)], for a register's tile of o and p.
template <int kOut, int kVec>
void tile(const float* x, const float* w, const std::vector<Tap>& taps, int64_t channels, int64_t x_stride,
          int64_t w_stride, const float* bias, float* acc, int64_t acc_stride) {
  Vector sum[kOut][kVec];
#pragma GCC unroll 8
  for (int o = 0; o < kOut; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVec; ++v) sum[o][v] = bias ? spread(bias[o]) : get(acc + o * acc_stride + v * kWide);
  }
  const Tap* begin = taps.data();
  const Tap* end = begin + taps.size();
  for (int64_t c = 0; c < channels; ++c, x += x_stride, w += w_stride) {
    for (const Tap* tap = begin; tap != end; ++tap) {
      const float* at = x + tap->x;
      const float* by = w + tap->w;
      Vector value[kVec];
#pragma GCC unroll 4
      for (int v = 0; v < kVec; ++v) value[v] = get(at + v * kWide);
#pragma GCC unroll 8
      for (int o = 0; o < kOut; ++o) {
        const Vector weight = spread(by[o]);
#pragma GCC unroll 4
        for (int v = 0; v < kVec; ++v) sum[o][v] = fused(weight, value[v], sum[o][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < kOut; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVec; ++v) put(acc + o * acc_stride + v * kWide, sum[o][v]);
  }
}

template <int kOut>
void tiles(const float* x, const float* w, const std::vector<Tap>& taps, int64_t channels, int64_t x_stride,
           int64_t w_stride, const float* bias, float* acc, int64_t acc_stride, int64_t vectors) {
  int64_t v = 0;
  for (; v + kVectors <= vectors; v += kVectors) {
    tile<kOut, kVectors>(x + v * kWide, w, taps, channels, x_stride, w_stride, bias, acc + v * kWide, acc_stride);
  }
  for (; v < vectors; ++v) {
    tile<kOut, 1>(x + v * kWide, w, taps, channels, x_stride, w_stride, bias, acc + v * kWide, acc_stride);
  }
}

// A convolution, or the way back to its input: reads [B, from, t.in, h.in, w.in], writes [B, to, t.out, h.out, w.out].
struct Convolution {
  int64_t batch, from, to;
  Axis t, h, w;

  int64_t taps() const { return t.kernel * h.kernel * w.kernel; }
  int64_t outputs() const { return to <= 4 ? 4 : kOutputs; }  // channels written by one tile

  // Weights [blocks of outputs][from][taps][outputs]; they come as [O, C, taps].
  void pack_weights(const float* weight, float* packed) const {
    const int64_t block = outputs(), count = taps();
    parallel(divide_up(to, block), [&](int64_t part) {
      float* mine = packed + part * from * count * block;
      for (int64_t c = 0; c < from; ++c) {
        for (int64_t o = 0; o < block; ++o) {
          const int64_t out = part * block + o;
          const float* source = weight + (t.back ? c * to + out : out * from + c) * count;
          for (int64_t q = 0; q < count; ++q) mine[(c * count + q) * block + o] = out < to ? source[q] : 0.0f;
        }
      }
    });
  }

  // One piece: some rows of one output plane and phase, some blocks of output channels. ``added``: as the result, or
  // null.
  template <class Source>
  void piece(const Source& source, const float* packed, const float* bias, const float* added, float* result, int64_t b,
             int64_t frame, const Grid& grid, int64_t phase_h, int64_t phase_w, int64_t first, int64_t block_begin, int64_t block_end,
             Scratch& scratch) const {
    std::vector<int64_t> frames;  // read by this frame
    std::vector<Tap> shifts;
    const int64_t block = outputs(), phase_t = frame % t.write_step();
    for (int64_t kt = 0; kt < t.kernel; ++kt) {
      if (!t.meets(kt, phase_t)) continue;
      const int64_t at = frame / t.write_step() * t.read_step() + t.shift(kt, phase_t);
      if (at < 0 || at >= t.in) continue;
      for (const int64_t kh : grid.taps_h.index) {
        for (const int64_t kw : grid.taps_w.index) {
          const int64_t x = grid.offset(h.shift(kh, phase_h), w.shift(kw, phase_w));
          const int64_t planes = static_cast<int64_t>(frames.size());
          shifts.push_back({planes * grid.plane + x, ((kt * h.kernel + kh) * w.kernel + kw) * block});
        }
      }
      frames.push_back(at);
    }
    const int64_t x_stride = grid.plane * static_cast<int64_t>(frames.size()), w_stride = taps() * block;
    const int64_t vectors = divide_up(grid.positions(), kWide), acc_stride = vectors * kWide;
    const int64_t group = std::max<int64_t>(1, std::min(from, kPacked / std::max<int64_t>(1, x_stride)));
    const int64_t width = (block_end - block_begin) * block;
    float* x = scratch.floats(group * x_stride + 2 * kLanes + width * acc_stride + source.buffer());
    float* acc = x + group * x_stride + 2 * kLanes;
    float* buffer = acc + width * acc_stride;
    for (int64_t c = 0; c < from; c += group) {
      const int64_t channels = std::min(group, from - c);
      float* to_pack = x;
      for (int64_t i = c; i < c + channels; ++i) {
        for (const int64_t at : frames) {
          grid.pack([&](int64_t row) { return source.row(b, i, at, row, buffer); }, first, to_pack);
          to_pack += grid.plane;
        }
      }
      for (int64_t n = block_begin; n < block_end; ++n) {
        const float* weights = packed + (n * from + c) * w_stride;
        float* sums = acc + (n - block_begin) * block * acc_stride;
        const float* start = c == 0 ? bias + n * block : nullptr;
        const auto run = block == 4 ? tiles<4> : tiles<kOutputs>;
        run(x, weights, shifts, channels, x_stride, w_stride, start, sums, acc_stride, vectors);
      }
    }
    for (int64_t o = block_begin * block; o < std::min(to, block_end * block); ++o) {
      const float* sums = acc + (o - block_begin * block) * acc_stride;
      const int64_t plane = ((b * to + o) * t.out + frame) * h.out * w.out;
      for (int64_t r = 0; r < grid.rows; ++r, sums += grid.width) {
        const int64_t at = plane + ((first + r) * h.write_step() + phase_h) * w.out + phase_w;
        float* row = result + at;
        if (added) {
          for (int64_t i = 0; i < grid.columns; ++i) row[i] = sums[i] + added[at + i];
        } else if (w.write_step() == 1) {
          std::copy_n(sums, grid.columns, row);
        } else {
          for (int64_t i = 0; i < grid.columns; ++i) row[i * w.write_step()] = sums[i];
        }
      }
    }
  }

  // Rows of a strip, all strips of a plane about equally high.
  int64_t strip(int64_t rows, int64_t columns) const {
    const int64_t strips = std::max<int64_t>(1, rows * columns / kPositions);
    return std::max<int64_t>(1, divide_up(rows, strips));
  }

  // ``bias`` [to] or null. Returns 0, or 1 without memory.
  int run(const float* image, const float* weight, const float* bias, float* result) const {
    return run(Dense{image, from, t.in, h.in, w.in}, weight, bias, nullptr, result);
  }

  // ``added``: of the result's shape, or null; for a convolution forward.
  template <class Source>
  int run(const Source& source, const float* weight, const float* bias, const float* added, float* result) const {
    struct Strip {
      int64_t phase_h, phase_w, first;
      Grid grid;
    };
    std::vector<Strip> strips;
    for (int64_t ph = 0; ph < h.write_step(); ++ph) {
      for (int64_t pw = 0; pw < w.write_step(); ++pw) {
        const int64_t rows = h.written(ph), high = strip(rows, w.written(pw));
        for (int64_t r = 0; r < rows && w.written(pw) > 0; r += high) {
          strips.push_back({ph, pw, r, Grid(h, ph, w, pw, std::min(high, rows - r))});
        }
      }
    }
    const int64_t block = outputs(), blocks = divide_up(to, block);
    std::vector<float> packed(static_cast<size_t>(blocks * from * taps() * block));
    pack_weights(weight, packed.data());
    std::vector<float> start(static_cast<size_t>(blocks * block), 0.0f);
    if (bias) std::copy_n(bias, to, start.begin());
    const int64_t count = static_cast<int64_t>(strips.size()), planes = batch * t.out;
    const int64_t groups = std::min(blocks, divide_up(kMaxThreads, std::max<int64_t>(1, planes * count)));
    const int64_t each = divide_up(blocks, groups);
    std::atomic<int> failed{0};
    parallel(planes * count * groups, [&](int64_t part) {
      try {
        thread_local Scratch scratch;
        const Strip& s = strips[static_cast<size_t>(part / groups % count)];
        const int64_t plane = part / groups / count, begin = part % groups * each;
        piece(source, packed.data(), start.data(), added, result, plane / t.out, plane % t.out, s.grid, s.phase_h,
              s.phase_w, s.first, std::min(blocks, begin), std::min(blocks, begin + each), scratch);
      } catch (const std::bad_alloc&) {
        failed = 1;
      }
    });
    return failed;
  }
};

struct Lane16 {
  Vector part[kPerLanes];
};

inline float total(const Lane16& lanes) {
  Lanes all;
  std::memcpy(&all, &lanes, sizeof all);
  return sum(all);
}

// d[r][q] += sum over units u and positions p of g[r][u][p] x[u][p + shift(q)], for a register's tile of r and q.
template <int kR, int kQ>
void gather(const float* g, int64_t g_row, int64_t g_unit, const float* x, const int64_t* shifts, int64_t x_unit,
            int64_t units, int64_t positions, float* d, int64_t d_row) {
  Lane16 sums[kR][kQ] = {};
  for (int64_t u = 0; u < units; ++u, g += g_unit, x += x_unit) {
    const float* at[kQ];
#pragma GCC unroll 4
    for (int q = 0; q < kQ; ++q) at[q] = x + shifts[q];
    for (int64_t p = 0; p < positions; p += kLanes) {
#pragma GCC unroll 4
      for (int v = 0; v < kPerLanes; ++v) {
        Vector value[kQ];
#pragma GCC unroll 4
        for (int q = 0; q < kQ; ++q) value[q] = get(at[q] + p + v * kWide);
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r) {
          Vector gradient = get(g + r * g_row + p + v * kWide);
          hold(gradient);
#pragma GCC unroll 4
          for (int q = 0; q < kQ; ++q) sums[r][q].part[v] = fused(gradient, value[q], sums[r][q].part[v]);
        }
      }
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int q = 0; q < kQ; ++q) d[r * d_row + q] += total(sums[r][q]);
  }
}

// The gradient of the weights and the bias; ``Axis`` as in the forward direction.
struct WeightGradient {
  int64_t batch, channels, outputs;
  Axis t, h, w;
  Grid grid;               // of a strip
  int64_t strips, units;   // strips of a plane; of all planes
  int64_t positions;       // of a strip's gradient on the grid, a multiple of the lanes
  int64_t x_channel;       // floats of one channel of a unit
  int64_t group;           // channels packed at a time
  int64_t together;        // units packed at a time
  int64_t pieces, each;    // pieces of the sum over units, units of one

  WeightGradient(int64_t batch, int64_t channels, int64_t outputs, const Axis& t, const Axis& h, const Axis& w)
      : batch(batch), channels(channels), outputs(outputs), t(t), h(h), w(w), grid(this->h, 0, this->w, 0, rows(h, w)) {
    strips = divide_up(h.out, grid.rows);
    units = batch * t.out * strips;
    positions = divide_up(grid.positions(), kLanes) * kLanes;
    x_channel = t.kernel * grid.plane;
    group = std::max<int64_t>(1, std::min({channels, kChannels, kPacked / x_channel}));
    together = std::max<int64_t>(1, std::min(units, kPacked / (group * x_channel)));
    const int64_t blocks = divide_up(outputs, kBlock);
    pieces = std::max<int64_t>(1, std::min(divide_up(2 * kMaxThreads, blocks), units / together));
    each = divide_up(units, pieces);
  }
  WeightGradient(const WeightGradient&) = delete;

  static int64_t rows(const Axis& h, const Axis& w) {
    return std::max<int64_t>(1, divide_up(h.out, std::max<int64_t>(1, h.out * w.out / kPositions)));
  }
  int64_t columns() const { return t.kernel * h.kernel * w.kernel; }

  void pack_image(const float* image, int64_t unit, int64_t c, int64_t count, float* to) const {
    const int64_t strip = unit % strips, frame = unit / strips % t.out, b = unit / strips / t.out;
    for (int64_t i = c; i < c + count; ++i) {
      for (int64_t kt = 0; kt < t.kernel; ++kt, to += grid.plane) {
        const int64_t at = frame * t.stride + t.shift(kt, 0);
        if (at < 0 || at >= t.in) {
          std::fill_n(to, grid.plane, 0.0f);
        } else {
          const float* plane = image + ((b * channels + i) * t.in + at) * h.in * w.in;
          grid.pack([&](int64_t row) { return plane + row * w.in; }, strip * grid.rows, to);
        }
      }
    }
  }

  void pack_gradient(const float* gradient, int64_t unit, int64_t o, float* to) const {
    const int64_t strip = unit % strips, frame = unit / strips % t.out, b = unit / strips / t.out;
    const float* plane = gradient + ((b * outputs + o) * t.out + frame) * h.out * w.out;
    const int64_t first = strip * grid.rows, end = std::min(h.out, first + grid.rows);
    float* place = to;
    for (int64_t row = first; row < end; ++row) {
      place = std::copy_n(plane + row * w.out, w.out, place);
      if (row + 1 < end) place = std::fill_n(place, grid.width - w.out, 0.0f);
    }
    std::fill(place, to + positions, 0.0f);
  }

  // The sum over the units of one piece for up to 8 output channels from ``o`` on: d [8, channels, taps], bias [8].
  void piece(const float* image, const float* gradient, int64_t first, int64_t last, int64_t o, float* d, float* bias,
             Scratch& scratch) const {
    const int64_t rows = std::min(kBlock, outputs - o), filled = rows <= 4 ? 4 : kBlock;
    const int64_t g_row = together * positions, unit_size = group * x_channel, all = channels * columns();
    float* g = scratch.floats(kBlock * g_row + together * unit_size + kLanes);
    float* x = g + kBlock * g_row;
    std::vector<int64_t> shifts;
    for (int64_t c = 0; c < group; ++c) {
      for (int64_t kt = 0; kt < t.kernel; ++kt) {
        for (const int64_t kh : grid.taps_h.index) {
          for (const int64_t kw : grid.taps_w.index) {
            const int64_t place = grid.offset(h.shift(kh, 0), w.shift(kw, 0));
            shifts.push_back(c * x_channel + kt * grid.plane + place);
          }
        }
      }
    }
    for (int64_t u = first; u < last; u += together) {
      const int64_t count = std::min(together, last - u);
      for (int64_t r = 0; r < filled; ++r) {
        for (int64_t i = 0; i < count; ++i) {
          float* to = g + r * g_row + i * positions;
          r < rows ? pack_gradient(gradient, u + i, o + r, to) : void(std::fill_n(to, positions, 0.0f));
        }
        if (r < rows) bias[r] += total_of(g + r * g_row, count * positions);
      }
      for (int64_t c = 0; c < channels; c += group) {
        const int64_t taken = std::min(group, channels - c), wide = taken * columns();
        for (int64_t i = 0; i < count; ++i) pack_image(image, u + i, c, taken, x + i * unit_size);
        std::fill_n(x + (count - 1) * unit_size + taken * x_channel, kLanes, 0.0f);  // read, times zero
        if (kRows == 8 && filled == 4) {
          columns_of<4>(g, g_row, x, shifts.data(), unit_size, count, filled, wide, d + c * columns(), all);
        } else {
          columns_of<kRows>(g, g_row, x, shifts.data(), unit_size, count, filled, wide, d + c * columns(), all);
        }
      }
    }
  }

  static float total_of(const float* g, int64_t size) {
    Lanes lanes = {};
    for (int64_t i = 0; i < size; i += kLanes) lanes += load(g + i);
    return sum(lanes);
  }

  template <int kR>
  void columns_of(const float* g, int64_t g_row, const float* x, const int64_t* shifts, int64_t unit_size,
                  int64_t count, int64_t filled, int64_t wide, float* d, int64_t all) const {
    int64_t q = 0;
    for (; q + kColumns <= wide; q += kColumns) {
      for (int64_t r = 0; r < filled; r += kR) {
        gather<kR, kColumns>(g + r * g_row, g_row, positions, x, shifts + q, unit_size, count, positions,
                             d + r * all + q, all);
      }
    }
    for (; q < wide; ++q) {
      for (int64_t r = 0; r < filled; r += kR) {
        gather<kR, 1>(g + r * g_row, g_row, positions, x, shifts + q, unit_size, count, positions, d + r * all + q,
                      all);
      }
    }
  }

  int run(const float* image, const float* gradient, float* dweight, float* dbias) const {
    const int64_t blocks = divide_up(outputs, kBlock), size = channels * columns(), one = kBlock * (size + 1);
    std::vector<float> partial(static_cast<size_t>(pieces * blocks * one), 0.0f);
    std::atomic<int> failed{0};
    parallel(pieces * blocks, [&](int64_t part) {
      try {
        thread_local Scratch scratch;
        float* d = partial.data() + part * one;
        const int64_t first = std::min(units, part / blocks * each), last = std::min(units, first + each);
        piece(image, gradient, first, last, part % blocks * kBlock, d, d + kBlock * size, scratch);
      } catch (const std::bad_alloc&) {
        failed = 1;
      }
    });
    parallel(blocks, [&](int64_t block) {
      const int64_t begin = block * kBlock, rows = std::min(kBlock, outputs - begin);
      float* weight = dweight + begin * size;
      for (int64_t n = 0; n < pieces; ++n) {
        const float* d = partial.data() + (n * blocks + block) * one;
        for (int64_t i = 0; i < rows * size; ++i) weight[i] = n == 0 ? d[i] : weight[i] + d[i];
        for (int64_t r = 0; r < rows; ++r) dbias[begin + r] = d[kBlock * size + r] + (n == 0 ? 0.0f : dbias[begin + r]);
      }
    });
    return failed;
  }
};

// A convolution's shapes: x and y [B, C, T, H, W] (or without T), weight [O, C, kt, kh, kw]. Stride and padding are the
// *shape* of an argument of its own (padding plus one: no empty tensors), for types and shapes are all that MindSpore
// shows to the function that infers the output's shape.
struct Shapes {
  int64_t batch, channels, outputs;
  Axis t, h, w;

  Shapes(const int64_t* x, const int64_t* weight, const int64_t* y, const int64_t* geometry, int rank) {
    batch = x[0];
    channels = x[1];
    outputs = weight[0];
    t = rank == 5 ? Axis{x[2], y[2], weight[2], geometry[0], geometry[3] - 1, false} : Axis{1, 1, 1, 1, 0, false};
    h = {x[rank - 2], y[rank - 2], weight[rank - 2], geometry[1], geometry[4] - 1, false};
    w = {x[rank - 1], y[rank - 1], weight[rank - 1], geometry[2], geometry[5] - 1, false};
  }
  bool empty() const { return batch * channels * outputs * t.out * h.out * w.out == 0; }
};

inline Axis reversed(const Axis& axis) { return {axis.out, axis.in, axis.kernel, axis.stride, axis.pad, true}; }

}  // namespace

extern "C" {

// x, weight, bias [O], geometry -> y
int convolution(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(5)) return 1;
  const Shapes s(shapes[0], shapes[1], shapes[4], shapes[3], ranks[0]);
  if (s.empty()) return 0;
  return Convolution{s.batch, s.channels, s.outputs, s.t, s.h, s.w}.run(a.in(0), a.in(1), a.in(2), a.out(4));
} catch (const std::bad_alloc&) {
  return 1;
}

// x, weight, bias [O], geometry, added (of y's shape) -> y + added
int convolution_added(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(6)) return 1;
  const Shapes s(shapes[0], shapes[1], shapes[5], shapes[3], ranks[0]);
  if (s.empty()) return 0;
  const Dense image{a.in(0), s.channels, s.t.in, s.h.in, s.w.in};
  return Convolution{s.batch, s.channels, s.outputs, s.t, s.h, s.w}.run(image, a.in(1), a.in(2), a.in(4), a.out(5));
} catch (const std::bad_alloc&) {
  return 1;
}

// x [B, C, t, h, w], weight [O, C, 1, kh, kw], bias [O], geometry of the convolution, [time] (its shape counts)
// -> convolution of x repeated [B, C, T, 2h, 2w]
int convolution_upsampled(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(6)) return 1;
  const int64_t* x = shapes[0];
  const int64_t time = shapes[4][0], grown[5] = {x[0], x[1], shapes[5][2], 2 * x[3], 2 * x[4]};
  const Shapes s(grown, shapes[1], shapes[5], shapes[3], 5);
  if (s.empty()) return 0;
  const Nearest image{a.in(0), s.channels, x[2], x[3], x[4], time};
  return Convolution{s.batch, s.channels, s.outputs, s.t, s.h, s.w}.run(image, a.in(1), a.in(2), nullptr, a.out(5));
} catch (const std::bad_alloc&) {
  return 1;
}

// x [B, C, T, H, W], norm's weight, bias, scale, shift, (groups, eps), frames before [B, C, kt - 1, H, W] (or [1]: none),
// weight [O, C, kt, kh, kw], bias [O], geometry, added [B, O, T, H, W] (or [1]: nothing)
// -> causal convolution of silu(norm(x)) + added, the last frames that it read [B, C, kt - 1, H, W]
int norm_convolution(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(13)) return 1;
  const int64_t *x = shapes[0], memory = shapes[7][2] - 1;
  const GroupNorm norm(x, shapes[3], a.in(5));
  if (!norm.fits()) return 1;
  const int64_t joined[5] = {x[0], x[1], x[2] + memory, x[3], x[4]};
  const Shapes s(joined, shapes[7], shapes[11], shapes[9], 5);
  if (s.empty()) return 0;
  Normed image{a.in(0), ranks[6] == 5 ? a.in(6) : nullptr, memory, norm, a.in(1), a.in(2), a.in(3), a.in(4), {}};
  image.moments.resize(static_cast<size_t>(norm.batch * norm.groups));
  parallel(norm.batch * norm.groups, [&](int64_t part) {
    const int64_t first = part / norm.groups * norm.channels + part % norm.groups * norm.each();
    image.moments[static_cast<size_t>(part)] = norm.moments_of(a.in(0) + first * norm.frames * norm.plane());
  });
  const Convolution convolution{s.batch, s.channels, s.outputs, s.t, s.h, s.w};
  if (convolution.run(image, a.in(7), a.in(8), ranks[10] == 5 ? a.in(10) : nullptr, a.out(11))) return 1;
  std::vector<float> buffer(static_cast<size_t>(image.buffer()));
  float* to = a.out(12);
  for (int64_t plane = 0; plane < norm.batch * norm.channels; ++plane) {
    for (int64_t frame = 0; frame < memory; ++frame) {
      for (int64_t row = 0; row < norm.height; ++row, to += norm.width) {
        const int64_t at = s.t.in - memory + frame;
        std::copy_n(image.row(plane / norm.channels, plane % norm.channels, at, row, buffer.data()), norm.width, to);
      }
    }
  }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// gradient of y, weight, geometry, x (for its shape) -> gradient of x
int convolution_image_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*,
                               void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(5)) return 1;
  const Shapes s(shapes[3], shapes[1], shapes[0], shapes[2], ranks[0]);
  if (s.empty()) return std::fill_n(a.out(4), a.size(4), 0.0f), 0;
  const Convolution back{s.batch, s.outputs, s.channels, reversed(s.t), reversed(s.h), reversed(s.w)};
  return back.run(a.in(0), a.in(1), nullptr, a.out(4));
} catch (const std::bad_alloc&) {
  return 1;
}

// x, gradient of y, geometry, weight (for its shape) -> gradients of weight and bias
int convolution_weight_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*,
                                void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(6)) return 1;
  const Shapes s(shapes[0], shapes[3], shapes[1], shapes[2], ranks[0]);
  if (s.empty()) {
    std::fill_n(a.out(4), a.size(4), 0.0f);
    std::fill_n(a.out(5), a.size(5), 0.0f);
    return 0;
  }
  const WeightGradient gradient(s.batch, s.channels, s.outputs, s.t, s.h, s.w);
  return gradient.run(a.in(0), a.in(1), a.out(4), a.out(5));
} catch (const std::bad_alloc&) {
  return 1;
}

}  // extern "C"
