// Direct convolution of dense fp32 [B, C, T, H, W], forward and backward.
//
// The image is packed piece by piece, zeros included, into a flat grid in which every tap of the kernel is one shift:
// a row of W outputs takes W places and the zeros that end it, which begin the next; what is computed there is dropped.
// With a stride, each of its phases has a grid of its own, so shifts stay contiguous. On this grid a convolution is a
// matrix product whose right side is read in place: ``tile`` keeps outputs x positions in registers, ``gather`` (the
// weights' gradient) outputs x taps. Sums run in one order that depends on shapes only, with fused multiply-adds wherever the processor
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
constexpr int64_t kImage = 1 << 21;    // floats of packed image that exist at a time
constexpr int64_t kUnfolded = kImage / 2;  // the same of images with a copy for each tap, which cost more to read
constexpr int64_t kPacks = 4;          // channels that a thread packs at a time
constexpr int64_t kAhead = 3;          // channels from now whose image is fetched: the processor does not see the stride
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
  int64_t span;               // floats of one row: the zeros that end it may be those that begin the next
  int64_t plane;              // floats of all phases

  Grid(const Axis& h, int64_t phase_h, const Axis& w, int64_t phase_w, int64_t rows)
      : h(h), w(w), taps_h(h, phase_h), taps_w(w, phase_w), rows(rows), columns(w.written(phase_w)) {
    height = rows + (taps_h.high - taps_h.low) / h.read_step();
    span = columns + (taps_w.high - taps_w.low) / w.read_step();
    const int64_t before = -taps_w.low, after = columns + taps_w.high - w.in;
    const int64_t shared = w.read_step() == 1 ? std::max<int64_t>(0, std::min(before, after)) : 0;
    width = span - shared;
    plane = h.read_step() * w.read_step() * height * width + shared;
  }
  int64_t positions() const { return (rows - 1) * width + columns; }

  int64_t offset(int64_t shift_h, int64_t shift_w) const {
    const int64_t y = shift_h - taps_h.low, x = shift_w - taps_w.low;
    const int64_t phase = y % h.read_step() * w.read_step() + x % w.read_step();
    return (phase * height + y / h.read_step()) * width + x / w.read_step();
  }

  // Packs the part of a plane that ``rows`` outputs from row ``first`` on read; ``source(begin, end)`` is where those
  // rows of the plane lie.
  template <class Source>
  void pack(const Source& source, int64_t first, float* to) const {
    const int64_t step_h = h.read_step(), step_w = w.read_step();
    const int64_t begin = std::max<int64_t>(0, first * step_h + taps_h.low);
    const int64_t end = std::min(h.in, (first + height) * step_h + taps_h.low);
    const float* from = begin < end ? source(begin, end) : nullptr;
    for (int64_t ph = 0; ph < step_h; ++ph) {
      for (int64_t pw = 0; pw < step_w; ++pw) {
        for (int64_t r = 0; r < height; ++r, to += width) {
          const int64_t row = (first + r) * step_h + ph + taps_h.low;
          if (row < 0 || row >= h.in) {
            std::fill_n(to, span, 0.0f);
          } else {
            pack_row(from + (row - begin) * w.in, pw + taps_w.low, step_w, to);
          }
        }
      }
    }
  }

 private:
  void pack_row(const float* from, int64_t start, int64_t step, float* to) const {
    const int64_t before = std::min(span, start < 0 ? divide_up(-start, step) : 0);
    const int64_t end = std::max(before, std::min(span, divide_up(w.in - start, step)));
    std::fill_n(to, before, 0.0f);
    if (step == 1) {
      std::copy(from + start + before, from + start + end, to + before);
    } else {
      for (int64_t i = before; i < end; ++i) to[i] = from[start + i * step];
    }
    std::fill(to + end, to + span, 0.0f);
  }
};

// A buffer for what a source makes, and what is in it.
struct Made {
  Scratch* scratch;
  int64_t key = -1, first = 0, size = 0;
};

// A source gives the rows from ``begin`` to ``end`` of one plane, one after the other.

// A dense image [B, C, T, H, W] as a convolution reads it.
struct Dense {
  const float* image;
  int64_t channels, frames, height, width;

  const float* rows(int64_t b, int64_t channel, int64_t frame, int64_t begin, int64_t, Made&) const {
    return image + (((b * channels + channel) * frames + frame) * height + begin) * width;
  }
};

// An image, each frame but the first of an odd number repeated ``time`` times, each row and column twice.
struct Nearest {
  Dense image;
  int64_t time;

  const float* rows(int64_t b, int64_t channel, int64_t frame, int64_t begin, int64_t end, Made& made) const {
    const int64_t width = image.width;
    const int64_t at = image.frames % 2 == 0 ? frame / time : (frame == 0 ? 0 : 1 + (frame - 1) / time);
    const float* from = image.rows(b, channel, at, 0, 0, made);
    float* to = made.scratch->floats((end - begin) * 2 * width);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < width; ++i) to[2 * i] = to[2 * i + 1] = from[row / 2 * width + i];
      to += 2 * width;
    }
    return to - (end - begin) * 2 * width;
  }
};

// The means of frames 2t and 2t + 1 (``time`` 2; the first of an odd number stays as it is), or the frames themselves.
struct Paired {
  Dense image;
  int64_t time;

  const float* rows(int64_t b, int64_t channel, int64_t frame, int64_t begin, int64_t end, Made& made) const {
    const int64_t lone = image.frames % 2, first = time == 1 ? frame : (frame < lone ? 0 : 2 * frame - lone);
    const float* from = image.rows(b, channel, first, begin, end, made);
    if (time == 1 || frame < lone) return from;
    const float* other = from + image.height * image.width;
    float* to = made.scratch->floats((end - begin) * image.width);
    for (int64_t i = 0; i < (end - begin) * image.width; ++i) to[i] = (from[i] + other[i]) * 0.5f;
    return to;
  }
};

// SiLU of a group norm, made when it is packed: it never exists as a whole.
struct Normed {
  const float* x;
  GroupNorm norm;
  const float *weight, *bias, *scale, *shift;
  std::vector<Moments> moments;  // of each sample and group

  const float* rows(int64_t b, int64_t channel, int64_t frame, int64_t begin, int64_t end, Made& made) const {
    const int64_t plane = b * norm.channels + channel, cells = norm.cells_of(plane, frame, 0);
    const int64_t size = (end - begin) * norm.width;
    float *to = made.scratch->floats(3 * size), *factor = to + size, *summand = factor + size;
    if (made.key != cells || made.first != begin || made.size != size) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = norm.cells_of(plane, frame, row), place = (row - begin) * norm.width;
        norm.along_row(weight[channel], bias[channel], scale + at, shift + at, factor + place, summand + place);
      }
      made.key = cells;
      made.first = begin;
      made.size = size;
    }
    norm_silu_row(x + ((plane * norm.frames + frame) * norm.height + begin) * norm.width, factor, summand,
                  moments[static_cast<size_t>(b * norm.groups + channel / norm.each())], size, to);
    return to;
  }
};

// The frames remembered from before (null: the first frame again), then those of an image.
template <class Image>
struct Following {
  Image image;
  const float* cache;
  int64_t memory, channels, height, width;

  const float* rows(int64_t b, int64_t channel, int64_t frame, int64_t begin, int64_t end, Made& made) const {
    if (frame >= memory || !cache) {
      return image.rows(b, channel, std::max<int64_t>(0, frame - memory), begin, end, made);
    }
    return cache + (((b * channels + channel) * memory + frame) * height + begin) * width;
  }
};

struct Tap {
  int64_t x, w;  // offsets in the packed image and in the packed weights of one channel

  bool operator==(const Tap& other) const { return x == other.x && w == other.w; }
};

// acc[o][p] (+)= sum over channels c and taps q of w[c][q][o] x[c][p + shift(q)], for a register's tile of o and p; the
// vectors of p begin at the places ``at`` of x.
template <int kOut, int kVec>
void tile(const float* x, const int64_t* at, const float* w, const std::vector<Tap>& taps, int64_t channels,
          int64_t x_stride, int64_t w_stride, const float* bias, float* acc, int64_t acc_stride) {
  Vector sum[kOut][kVec];
  const float* from[kVec];
#pragma GCC unroll 4
  for (int v = 0; v < kVec; ++v) from[v] = x + at[v];
#pragma GCC unroll 8
  for (int o = 0; o < kOut; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVec; ++v) sum[o][v] = bias ? spread(bias[o]) : get(acc + o * acc_stride + v * kWide);
  }
  const Tap* begin = taps.data();
  const Tap* end = begin + taps.size();
  for (int64_t c = 0; c < channels; ++c, w += w_stride) {
    for (const Tap* tap = begin; tap != end; ++tap) {
      const float* by = w + tap->w;
      __builtin_prefetch(from[0] + kAhead * x_stride + tap->x);
      __builtin_prefetch(from[kVec - 1] + kAhead * x_stride + tap->x + kWide - 1);
      Vector value[kVec];
#pragma GCC unroll 4
      for (int v = 0; v < kVec; ++v) value[v] = get(from[v] + tap->x);
#pragma GCC unroll 8
      for (int o = 0; o < kOut; ++o) {
        const Vector weight = spread(by[o]);
#pragma GCC unroll 4
        for (int v = 0; v < kVec; ++v) sum[o][v] = fused(weight, value[v], sum[o][v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVec; ++v) from[v] += x_stride;
  }
#pragma GCC unroll 8
  for (int o = 0; o < kOut; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVec; ++v) put(acc + o * acc_stride + v * kWide, sum[o][v]);
  }
}

template <int kOut>
void tiles(const float* x, const std::vector<int64_t>& at, const float* w, const std::vector<Tap>& taps,
           int64_t channels, int64_t x_stride, int64_t w_stride, const float* bias, float* acc) {
  const int64_t vectors = static_cast<int64_t>(at.size()), acc_stride = vectors * kWide;
  for (int64_t v = 0; v < vectors;) {
    const int64_t left = vectors - v, taken = left == 4 ? 2 : std::min<int64_t>(kVectors, left);
    const auto run = taken == 1 ? tile<kOut, 1> : taken == 2 ? tile<kOut, 2> : tile<kOut, kVectors>;
    run(x, at.data() + v, w, taps, channels, x_stride, w_stride, bias, acc + v * kWide, acc_stride);
    v += taken;
  }
}

// to[i][o] = from[o * stride + i] for ``block`` (a multiple of 4) o and ``length`` i; zero from o = ``rows`` on.
inline void interleave(const float* from, int64_t stride, int64_t rows, int64_t block, int64_t length, float* to) {
  for (int64_t o = 0; o < block; o += 4) {
    int64_t i = 0;
#if defined(__SSE__)
    const float* row = from + o * stride;
    for (; o + 4 <= rows && i + 4 <= length; i += 4) {
      __m128 a = _mm_loadu_ps(row + i), b = _mm_loadu_ps(row + stride + i);
      __m128 c = _mm_loadu_ps(row + 2 * stride + i), d = _mm_loadu_ps(row + 3 * stride + i);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      _mm_storeu_ps(to + i * block + o, a);
      _mm_storeu_ps(to + (i + 1) * block + o, b);
      _mm_storeu_ps(to + (i + 2) * block + o, c);
      _mm_storeu_ps(to + (i + 3) * block + o, d);
    }
#endif
    for (; i < length; ++i) {
      for (int64_t r = o; r < o + 4; ++r) to[i * block + r] = r < rows ? from[r * stride + i] : 0.0f;
    }
  }
}

// A convolution, or the way back to its input: reads [B, from, t.in, h.in, w.in], writes [B, to, t.out, h.out, w.out].
//
// Some frames and rows at a time (``Unit``) are packed for all channels, once, by all threads. Pieces of work are some
// thousand positions (``Chunk``) by some blocks of output channels; a thread puts the weights in order for a block and
// the channels whose image is in its cache, right before it uses them.
struct Convolution {
  int64_t batch, from, to;
  Axis t, h, w;

  // What is packed as one: the rows from ``first`` on of the frames from ``frame`` on, of one phase. As a grid; or, where
  // planes are so small that the places between rows cost more, ``unfolded``: a copy for each tap of height and width,
  // without such places.
  struct Unit {
    int64_t b, frame, frames, phase_h, phase_w, first;
    Grid grid;
    int64_t low, planes;  // of the frames read
    bool unfolded = false;
    int64_t x = 0;  // where it lies

    int64_t across() const { return static_cast<int64_t>(grid.taps_h.index.size() * grid.taps_w.index.size()); }
    int64_t places() const { return grid.rows * grid.columns; }
    int64_t plane() const { return unfolded ? places() : grid.plane; }
    int64_t x_stride() const { return planes * plane() * (unfolded ? across() : 1); }
  };

  // Some rows of a frame of a unit, or some frames of an unfolded one, and where they lie in the packed image.
  struct Segment {
    const Unit* unit;
    int64_t frame, frames, row, rows, x;
    std::vector<Tap> taps;

    int64_t each() const { return divide_up(unit->grid.columns, kWide); }
    int64_t through() const { return divide_up((rows - 1) * unit->grid.width + unit->grid.columns, kWide); }
    // Positions run through the places between rows, or each row begins with a vector of its own.
    bool flat() const { return unit->unfolded || through() <= rows * each(); }
    int64_t vectors() const {
      if (unit->unfolded) return divide_up(frames * unit->places(), kWide);
      return flat() ? through() : rows * each();
    }
    int64_t vector(int64_t v) const {
      return flat() ? x + v * kWide : x + v / each() * unit->grid.width + v % each() * kWide;
    }
    int64_t width() const { return flat() ? unit->grid.width : each() * kWide; }
    // Floats that one channel's sums read, about.
    int64_t floats() const {
      const Grid& grid = unit->grid;
      const int64_t times = static_cast<int64_t>(taps.size()) / std::max<int64_t>(1, unit->across());
      if (unit->unfolded) return (frames + times - 1) * unit->places() * unit->across();
      return times * (rows * grid.h.read_step() + grid.taps_h.high - grid.taps_h.low) * grid.w.read_step() * grid.width;
    }
  };

  // Segments with the same taps.
  struct Chunk {
    std::vector<Segment> segments;
    std::vector<int64_t> at;  // of each vector
    int64_t floats = 0;

    bool takes(const Segment& next) const {
      const int64_t more = static_cast<int64_t>(at.size()) + next.vectors();
      return segments.empty() || (more * kWide <= kPositions && segments[0].taps == next.taps &&
                                  segments[0].unit->x_stride() == next.unit->x_stride());
    }
    void add(const Segment& next) {
      for (int64_t v = 0; v < next.vectors(); ++v) at.push_back(next.vector(v));
      segments.push_back(next);
      floats += next.floats();
    }
  };

  int64_t taps() const { return t.kernel * h.kernel * w.kernel; }
  int64_t outputs() const { return to <= 4 ? 4 : kOutputs; }  // channels written by one tile

  // The frame that a tap reads, or -1.
  int64_t frame_read(int64_t frame, int64_t tap) const {
    const int64_t phase = frame % t.write_step();
    if (!t.meets(tap, phase)) return -1;
    const int64_t at = frame / t.write_step() * t.read_step() + t.shift(tap, phase);
    return at < t.in ? at : -1;
  }

  Unit unit(int64_t b, int64_t frame, int64_t frames, int64_t phase_h, int64_t phase_w, int64_t first,
            int64_t rows) const {
    int64_t low = t.in, high = -1;
    for (int64_t f = frame; f < frame + frames; ++f) {
      for (int64_t tap = 0; tap < t.kernel; ++tap) {
        const int64_t at = frame_read(f, tap);
        if (at < 0) continue;
        low = std::min(low, at);
        high = std::max(high, at);
      }
    }
    Unit made{b, frame, frames, phase_h, phase_w, first, Grid(h, phase_h, w, phase_w, rows), low,
              std::max<int64_t>(0, high - low + 1)};
    made.unfolded = unfolds(made);
    return made;
  }

  // Whether enough vectors are saved.
  bool unfolds(const Unit& unit) const {
    if (h.stride != 1 || w.stride != 1 || w.in != unit.grid.columns || unit.places() > kPositions) return false;
    if (unit.planes * unit.places() * unit.across() * from > kUnfolded) return false;
    const Segment frame{&unit, 0, 1, 0, unit.grid.rows, 0, {}};
    return 8 * divide_up(unit.frames * unit.places(), kWide) <= 7 * unit.frames * frame.vectors();
  }

  // Frames and rows of a unit: as few planes and rows as possible are packed twice, in the given room.
  void choose(int64_t rows, int64_t phase_h, int64_t phase_w, int64_t* frames, int64_t* high) const {
    double best = 0.0;
    *frames = *high = 1;
    for (int64_t parts = 1; parts <= t.out; ++parts) {
      const int64_t f = divide_up(t.out, parts);
      for (int64_t strips = 1; strips <= rows; ++strips) {
        const int64_t r = divide_up(rows, strips);
        const Unit one = unit(0, 0, f, phase_h, phase_w, 0, r);
        const int64_t floats = std::max<int64_t>(1, one.planes * one.grid.plane);
        if (floats * from > kImage) continue;
        const double share = static_cast<double>(f * r) / static_cast<double>(floats);
        if (share > best) {
          best = share;
          *frames = f;
          *high = r;
        }
        break;
      }
    }
  }

  std::vector<Unit> units() const {
    std::vector<Unit> all;
    for (int64_t ph = 0; ph < h.write_step(); ++ph) {
      for (int64_t pw = 0; pw < w.write_step(); ++pw) {
        const int64_t rows = h.written(ph);
        if (rows == 0 || w.written(pw) == 0) continue;
        int64_t frames, high;
        choose(rows, ph, pw, &frames, &high);
        for (int64_t b = 0; b < batch; ++b) {
          for (int64_t f = 0; f < t.out; f += frames) {
            for (int64_t r = 0; r < rows; r += high) {
              all.push_back(unit(b, f, std::min(frames, t.out - f), ph, pw, r, std::min(high, rows - r)));
            }
          }
        }
      }
    }
    return all;
  }

  // The first frame that an output frame reads (-1: none), and its taps from there.
  int64_t taps_of(const Unit& unit, int64_t frame, std::vector<Tap>* taps) const {
    int64_t first = -1;
    for (int64_t kt = 0; kt < t.kernel; ++kt) {
      const int64_t at = frame_read(frame, kt);
      if (at < 0) continue;
      if (first < 0) first = at;
      int64_t copy = 0;
      for (const int64_t kh : unit.grid.taps_h.index) {
        for (const int64_t kw : unit.grid.taps_w.index) {
          const int64_t place = unit.unfolded ? copy++ * unit.planes * unit.plane()
                                              : unit.grid.offset(h.shift(kh, unit.phase_h), w.shift(kw, unit.phase_w));
          taps->push_back({(at - first) * unit.plane() + place, ((kt * h.kernel + kh) * w.kernel + kw) * outputs()});
        }
      }
    }
    return first;
  }

  // A unit in pieces of a chunk's size: frames, or rows, about equally many, of each frame.
  void add_segments(const Unit& of, std::vector<Chunk>* chunks) const {
    const auto add = [&](const Segment& next) {
      if (chunks->empty() || !chunks->back().takes(next)) chunks->emplace_back();
      chunks->back().add(next);
    };
    const int64_t strips = std::max<int64_t>(1, of.places() / kPositions), high = divide_up(of.grid.rows, strips);
    Segment many{&of, 0, 0, 0, of.grid.rows, 0, {}};
    for (int64_t f = of.frame; f < of.frame + of.frames; ++f) {
      std::vector<Tap> taps;
      const int64_t first = taps_of(of, f, &taps), x = of.x + std::max<int64_t>(0, first - of.low) * of.plane();
      if (!of.unfolded) {
        for (int64_t r = 0; r < of.grid.rows; r += high) {
          add({&of, f, 1, r, std::min(high, of.grid.rows - r), x + r * of.grid.width, taps});
        }
        continue;
      }
      const bool follows = many.frames > 0 && many.taps == taps && x == many.x + many.frames * of.plane();
      if (!follows || (many.frames + 1) * of.places() > kPositions) {
        if (many.frames > 0) add(many);
        many = {&of, f, 0, 0, of.grid.rows, x, taps};
      }
      ++many.frames;
    }
    if (many.frames > 0) add(many);
  }

  template <class Source>
  void pack_image(const Source& source, const Unit& unit, int64_t channel, float* to, Made& made) const {
    for (int64_t at = unit.low; at < unit.low + unit.planes; ++at, to += unit.plane()) {
      const auto rows = [&](int64_t begin, int64_t end) { return source.rows(unit.b, channel, at, begin, end, made); };
      if (!unit.unfolded) {
        unit.grid.pack(rows, unit.first, to);
        continue;
      }
      const Grid& grid = unit.grid;
      const int64_t begin = std::max<int64_t>(0, unit.first + grid.taps_h.low);
      const int64_t end = std::min(h.in, unit.first + grid.rows + grid.taps_h.high);
      const float* from = begin < end ? rows(begin, end) : nullptr;
      float* copy = to;
      for (const int64_t kh : grid.taps_h.index) {
        for (const int64_t kw : grid.taps_w.index) {
          shifted(from, begin, end, unit.first + h.shift(kh, 0), w.shift(kw, 0), grid.rows, copy);
          copy += unit.planes * unit.places();
        }
      }
    }
  }

  // ``rows`` rows from row ``first`` and column ``across`` on; given are those from ``begin`` to ``end``, others are zero.
  void shifted(const float* from, int64_t begin, int64_t end, int64_t first, int64_t across, int64_t rows,
               float* to) const {
    const int64_t low = std::min(rows, std::max<int64_t>(0, begin - first));
    const int64_t high = std::max(low, std::min(rows, end - first)), width = w.in, size = (high - low) * width;
    std::fill(to, to + low * width, 0.0f);
    std::fill(to + high * width, to + rows * width, 0.0f);
    if (size == 0) return;
    const int64_t before = std::min(width, std::max<int64_t>(0, -across));
    const int64_t after = std::min(width, std::max<int64_t>(0, across));
    const float* start = from + (first + low - begin) * width;
    to += low * width;
    std::copy(start + after, start + size - before, to + before);
    for (float* row = to; row < to + size; row += width) {
      std::fill_n(row, before, 0.0f);
      std::fill_n(row + width - after, after, 0.0f);
    }
  }

  // Weights [channels][taps][outputs] of a block of outputs; they come as [O, C, taps].
  void pack_weights(const float* weight, int64_t block, int64_t c, int64_t channels, float* packed) const {
    const int64_t first = block * outputs(), rows = std::min(outputs(), to - first), count = taps();
    if (!t.back) {
      interleave(weight + (first * from + c) * count, from * count, rows, outputs(), channels * count, packed);
      return;
    }
    for (int64_t i = 0; i < channels; ++i) {
      const float* source = weight + ((c + i) * to + first) * count;
      interleave(source, count, rows, outputs(), count, packed + i * count * outputs());
    }
  }

  // One piece of work. ``added``: as the result, or null.
  void piece(const float* x, const float* weight, const float* bias, const float* added, float* result,
             const Chunk& chunk, int64_t block_begin, int64_t block_end, Scratch& scratch) const {
    const Segment& any = chunk.segments[0];
    const int64_t block = outputs(), w_stride = taps() * block, x_stride = any.unit->x_stride();
    const int64_t acc_stride = static_cast<int64_t>(chunk.at.size()) * kWide, width = (block_end - block_begin) * block;
    const int64_t group = std::max<int64_t>(1, std::min(from, kPacked / std::max<int64_t>(1, chunk.floats)));
    float* acc = scratch.floats(width * acc_stride + group * w_stride);
    float* packed = acc + width * acc_stride;
    for (int64_t c = 0; c < from; c += group) {
      const int64_t channels = std::min(group, from - c);
      for (int64_t n = block_begin; n < block_end; ++n) {
        pack_weights(weight, n, c, channels, packed);
        float* sums = acc + (n - block_begin) * block * acc_stride;
        const float* start = c == 0 ? bias + n * block : nullptr;
        const auto run = block == 4 ? tiles<4> : tiles<kOutputs>;
        run(x + c * x_stride, chunk.at, packed, any.taps, channels, x_stride, w_stride, start, sums);
      }
    }
    for (int64_t o = block_begin * block; o < std::min(to, block_end * block); ++o) {
      const float* sums = acc + (o - block_begin * block) * acc_stride;
      for (const Segment& segment : chunk.segments) {
        write(segment, o, sums, added, result);
        sums += segment.vectors() * kWide;
      }
    }
  }

  void write(const Segment& segment, int64_t o, const float* sums, const float* added, float* result) const {
    const Unit& unit = *segment.unit;
    const int64_t rows = unit.unfolded ? segment.frames : segment.rows;
    const int64_t count = unit.unfolded ? unit.places() : unit.grid.columns, step = unit.unfolded ? 1 : w.write_step();
    for (int64_t r = 0; r < rows; ++r, sums += unit.unfolded ? count : segment.width()) {
      const int64_t frame = segment.frame + (unit.unfolded ? r : 0);
      const int64_t row = (unit.first + segment.row + (unit.unfolded ? 0 : r)) * h.write_step() + unit.phase_h;
      const int64_t at = (((unit.b * to + o) * t.out + frame) * h.out + row) * w.out + unit.phase_w;
      if (added) {
        for (int64_t i = 0; i < count; ++i) result[at + i] = sums[i] + added[at + i];
      } else if (step == 1) {
        std::copy_n(sums, count, result + at);
      } else {
        for (int64_t i = 0; i < count; ++i) result[at + i * step] = sums[i];
      }
    }
  }

  // ``bias`` [to] or null. Returns 0, or 1 without memory.
  int run(const float* image, const float* weight, const float* bias, float* result) const {
    return run(Dense{image, from, t.in, h.in, w.in}, weight, bias, nullptr, result);
  }

  // ``added``: of the result's shape, or null; for a convolution forward.
  template <class Source>
  int run(const Source& source, const float* weight, const float* bias, const float* added, float* result) const {
    const int64_t block = outputs(), blocks = divide_up(to, block);
    std::vector<float> start(static_cast<size_t>(blocks * block), 0.0f);
    if (bias) std::copy_n(bias, to, start.begin());
    std::vector<Unit> all = units();
    static std::mutex* busy = new std::mutex;  // neither is destroyed: threads may outlive what the process destroys
    static Scratch* kept = new Scratch;
    Scratch own;
    const std::unique_lock<std::mutex> lock(*busy, std::try_to_lock);
    Scratch& image = lock ? *kept : own;
    int failed = 0;
    for (size_t begin = 0, end; begin < all.size() && !failed; begin = end) {
      int64_t size = 0;
      for (end = begin; end < all.size() && (end == begin || size + from * all[end].x_stride() <= kImage); ++end) {
        all[end].x = size;
        size += from * all[end].x_stride();
      }
      float* x = image.floats(size + 2 * kLanes);
      failed = round(source, all, begin, end, x, weight, start.data(), added, result);
    }
    return failed;
  }

  // The units from ``begin`` to ``end``, packed into ``x``.
  template <class Source>
  int round(const Source& source, const std::vector<Unit>& all, size_t begin, size_t end, float* x, const float* weight,
            const float* bias, const float* added, float* result) const {
    std::vector<Chunk> chunks;
    for (size_t i = begin; i < end; ++i) add_segments(all[i], &chunks);
    std::atomic<int> failed{0};
    const auto guarded = [&](int64_t parts, const std::function<void(int64_t, Scratch&)>& job) {
      parallel(parts, [&](int64_t part) {
        try {
          thread_local Scratch scratch;
          job(part, scratch);
        } catch (const std::bad_alloc&) {
          failed = 1;
        }
      });
    };
    const int64_t packs = divide_up(from, kPacks);
    guarded(static_cast<int64_t>(end - begin) * packs, [&](int64_t part, Scratch& scratch) {
      const Unit& unit = all[begin + static_cast<size_t>(part / packs)];
      const int64_t first = part % packs * kPacks, last = std::min(from, first + kPacks);
      Made made{&scratch};
      for (int64_t c = first; c < last; ++c) pack_image(source, unit, c, x + unit.x + c * unit.x_stride(), made);
    });
    const int64_t blocks = divide_up(to, outputs()), count = static_cast<int64_t>(chunks.size());
    const int64_t groups = std::min(blocks, divide_up(kMaxThreads, count)), each = divide_up(blocks, groups);
    guarded(count * groups, [&](int64_t part, Scratch& scratch) {
      const int64_t first = std::min(blocks, part % groups * each), last = std::min(blocks, first + each);
      if (first < last) {
        piece(x, weight, bias, added, result, chunks[static_cast<size_t>(part / groups)], first, last, scratch);
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
          grid.pack([&](int64_t row, int64_t) { return plane + row * w.in; }, strip * grid.rows, to);
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

// A convolution, and the frames that the next one has to know.
template <class Image>
int causal(const Shapes& s, const Following<Image>& image, const float* weight, const float* bias, const float* added,
           float* result, float* last) {
  const Convolution convolution{s.batch, s.channels, s.outputs, s.t, s.h, s.w};
  if (convolution.run(image, weight, bias, added, result)) return 1;
  std::atomic<int> failed{0};
  parallel(s.batch * s.channels, [&](int64_t plane) {
    try {
      thread_local Scratch scratch;
      Made made{&scratch};
      const int64_t size = s.h.in * s.w.in;
      for (int64_t i = 0; i < image.memory; ++i) {
        const int64_t frame = s.t.in - image.memory + i;
        const float* rows = image.rows(plane / s.channels, plane % s.channels, frame, 0, s.h.in, made);
        std::copy_n(rows, size, last + (plane * image.memory + i) * size);
      }
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  });
  return failed;
}

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
  const Nearest image{{a.in(0), s.channels, x[2], x[3], x[4]}, time};
  return Convolution{s.batch, s.channels, s.outputs, s.t, s.h, s.w}.run(image, a.in(1), a.in(2), nullptr, a.out(5));
} catch (const std::bad_alloc&) {
  return 1;
}

// x [B, C, T, H, W], weight [O, C, 1, kh, kw], bias [O], geometry of the convolution (no padding), [time] (its shape
// counts) -> convolution of the means of ``time`` frames of x, a row and a column of zeros after the last
int convolution_downsampled(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(6)) return 1;
  const int64_t* x = shapes[0];
  const int64_t fewer[5] = {x[0], x[1], shapes[5][2], x[3], x[4]};
  const Shapes s(fewer, shapes[1], shapes[5], shapes[3], 5);
  if (s.empty()) return 0;
  const Paired image{{a.in(0), s.channels, x[2], x[3], x[4]}, shapes[4][0]};
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
  Normed normed{a.in(0), norm, a.in(1), a.in(2), a.in(3), a.in(4), {}};
  normed.moments.resize(static_cast<size_t>(norm.batch * norm.groups));
  parallel(norm.batch * norm.groups, [&](int64_t part) {
    const int64_t first = part / norm.groups * norm.channels + part % norm.groups * norm.each();
    normed.moments[static_cast<size_t>(part)] = norm.moments_of(a.in(0) + first * norm.frames * norm.plane());
  });
  const Following<Normed> image{normed, ranks[6] == 5 ? a.in(6) : nullptr, memory, x[1], x[3], x[4]};
  return causal(s, image, a.in(7), a.in(8), ranks[10] == 5 ? a.in(10) : nullptr, a.out(11), a.out(12));
} catch (const std::bad_alloc&) {
  return 1;
}

// x [B, C, T, H, W], weight [O, C, kt, kh, kw], bias [O], geometry, frames before [B, C, kt - 1, H, W] (or [1]: none)
// -> causal convolution of x, the last frames that it read [B, C, kt - 1, H, W]
int causal_convolution(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) try {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(7)) return 1;
  const int64_t *x = shapes[0], memory = shapes[1][2] - 1;
  const int64_t joined[5] = {x[0], x[1], x[2] + memory, x[3], x[4]};
  const Shapes s(joined, shapes[1], shapes[5], shapes[3], 5);
  if (s.empty()) return 0;
  const Dense dense{a.in(0), x[1], x[2], x[3], x[4]};
  const Following<Dense> image{dense, ranks[4] == 5 ? a.in(4) : nullptr, memory, x[1], x[3], x[4]};
  return causal(s, image, a.in(1), a.in(2), nullptr, a.out(5), a.out(6));
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
