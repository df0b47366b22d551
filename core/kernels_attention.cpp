// Softmax attention of dense fp32 queries [G, L, K] with keys and values [G, S, K], forward and backward, G samples
// times heads. A block of queries at a time meets all keys, so that never more than its scores exist.
//
// The gradient reads the inputs alone: scores and their softmax are computed again, and the inner products of output
// and gradient are those of softmax and gradient of the softmax. Sums run in one order that depends on shapes only,
// with fused multiply-adds: the same bits for any number of threads and for AVX2 and AVX-512.

#include "kernels_vector.h"

using namespace kernels;

namespace {

#if defined(__AVX512F__)
constexpr int kMost = 4;  // vectors of one register's tile
constexpr int rows_beside(int vectors) { return vectors == 4 ? 6 : 8; }
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kMost = 3;
constexpr int rows_beside(int) { return 4; }
#else
constexpr int kMost = 2;
constexpr int rows_beside(int) { return 4; }
#endif
constexpr int64_t kPanel = 3 * kLanes;    // keys that lie beside each other in the packed transpose
constexpr int64_t kScores = 1 << 17;      // floats of one block of scores, about
constexpr int64_t kMostQueries = 64;      // of one block
constexpr int64_t kDeep = 128;            // rows of the right side that should stay in the first-level cache
constexpr int64_t kPieces = 16;           // of the queries of all heads, for as many threads

// A matrix as the left side of a product reads it.
struct Left {
  const float* at;
  int64_t row, step;  // from row to row, and along the sum
};

template <int kR, int kV>
void tile(Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool add) {
  Vector sum[kR][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) sum[r][v] = Vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector value[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) value[v] = get(b + k * b_row + v * kWide);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vector left = spread(a.at[r * a.row + k * a.step]);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) sum[r][v] = fused(left, value[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      float* to = c + r * c_row + v * kWide;
      put(to, add ? get(to) + sum[r][v] : sum[r][v]);
    }
  }
}

template <int kR, int kV>
int64_t tiles(int64_t m, int64_t rows, Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row,
              bool add) {
  for (; m + kR <= rows; m += kR) {
    tile<kR, kV>({a.at + m * a.row, a.row, a.step}, b, b_row, depth, c + m * c_row, c_row, add);
  }
  return m;
}

template <int kV>
void columns(int64_t rows, Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, bool add) {
  int64_t m = tiles<rows_beside(kV), kV>(0, rows, a, b, b_row, depth, c, c_row, add);
  m = tiles<4, kV>(m, rows, a, b, b_row, depth, c, c_row, add);
  m = tiles<2, kV>(m, rows, a, b, b_row, depth, c, c_row, add);
  tiles<1, kV>(m, rows, a, b, b_row, depth, c, c_row, add);
}

// c [rows][width] (+)= a [rows][depth] b [depth][width]; ``width`` is a multiple of kLanes. Long sums are sums of sums.
void product(int64_t rows, int64_t width, Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row,
             bool add) {
  for (int64_t k = 0; k < depth; k += kDeep, add = true) {
    const Left part{a.at + k * a.step, a.row, a.step};
    const float* from = b + k * b_row;
    const int64_t deep = std::min(kDeep, depth - k);
    for (int64_t done = 0; done < width;) {
      const int64_t now = std::min<int64_t>(kMost, (width - done) / kWide);
      const auto run = now == 1 ? columns<1> : now == 2 ? columns<2> : now == 3 ? columns<3> : columns<4>;
      run(rows, part, from + done, b_row, deep, c + done, c_row, add);
      done += now * kWide;
    }
  }
}

inline int64_t padded(int64_t count, int64_t to) { return divide_up(count, to) * to; }

// One sample and head.
struct Head {
  int64_t queries, keys, size;

  int64_t width() const { return padded(size, kLanes); }  // of rows that a product reads or writes whole
  int64_t scores() const { return padded(keys, kPanel); }
  int64_t transposed() const { return scores() * size; }
  int64_t block() const { return std::max<int64_t>(8, std::min(kMostQueries, kScores / scores() / 8 * 8)); }

  // x [keys][size] -> [panel][size][kPanel], zeros behind the last key.
  void transpose(const float* x, float* to) const {
    for (int64_t first = 0; first < keys; first += kPanel) {
      const int64_t count = std::min(kPanel, keys - first);
      for (int64_t k = 0; k < size; ++k, to += kPanel) {
        for (int64_t s = 0; s < count; ++s) to[s] = x[(first + s) * size + k];
        std::fill(to + count, to + kPanel, 0.0f);
      }
    }
  }

  // Rows that a product may read whole: x itself, or a copy with zeros behind each row.
  const float* wide(const float* x, int64_t rows, float* copy) const {
    if (width() == size) return x;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(x + r * size, size, copy + r * width());
      std::fill(copy + r * width() + size, copy + (r + 1) * width(), 0.0f);
    }
    return copy;
  }
  void scaled(const float* x, int64_t rows, float scale, float* to) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < size; ++k) to[r * width() + k] = x[r * size + k] * scale;
      std::fill(to + r * width() + size, to + (r + 1) * width(), 0.0f);
    }
  }
  void narrow(const float* from, int64_t rows, float scale, float* to) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < size; ++k) to[r * size + k] = from[r * width() + k] * scale;
    }
  }

  // rows [rows][size] (``width()`` floats apart) times all keys' vectors, which were transposed -> [rows][scores()]
  void meet(const float* x, int64_t rows, const float* across, float* to) const {
    for (int64_t p = 0; p < scores(); p += kPanel) {
      product(rows, kPanel, {x, width(), 1}, across + p * size, kPanel, size, to + p, scores(), false);
    }
  }

  // Scores of one query -> weights that add up to 1; 0 behind the last key.
  void softmax(float* row) const {
    const int64_t whole = keys / kLanes * kLanes;
    float largest = row[0];
    if (whole) {
      Lanes best = load(row);
      for (int64_t s = kLanes; s < whole; s += kLanes) {
        const Lanes next = load(row + s);
        best = next > best ? next : best;
      }
      for (int i = 0; i < kLanes; ++i) largest = best[i] > largest ? best[i] : largest;
    }
    for (int64_t s = whole; s < keys; ++s) largest = row[s] > largest ? row[s] : largest;
    for (int64_t s = 0; s < keys; ++s) row[s] = exponential(row[s] - largest);
    const float share = 1.0f / total(row, nullptr);
    for (int64_t s = 0; s < keys; ++s) row[s] *= share;
    std::fill(row + keys, row + scores(), 0.0f);
  }

  void raise(float* row, const float* by) const {
    for (int64_t s = 0; s < keys; ++s) row[s] += by[s];
  }

  // Sum of x, or of x times y.
  float total(const float* x, const float* y) const {
    const int64_t whole = keys / kLanes * kLanes;
    Lanes lanes = {};
    float rest = 0.0f;
    for (int64_t s = 0; s < whole; s += kLanes) lanes += y ? load(x + s) * load(y + s) : load(x + s);
    for (int64_t s = whole; s < keys; ++s) rest += y ? x[s] * y[s] : x[s];
    return sum(lanes) + rest;
  }

  int64_t forward_floats() const { return transposed() + keys * width() + block() * (scores() + 2 * width()); }
  // ``bias`` [queries][keys] is added to the scores, or null.
  void forward(const float* q, const float* k, const float* v, const float* bias, float scale, int64_t begin,
               int64_t end, float* y, float* scratch) const {
    float* across = scratch;
    float* values = across + transposed();
    float* weights = values + keys * width();
    float* query = weights + block() * scores();
    float* result = query + block() * width();
    transpose(k, across);
    const float* value = wide(v, keys, values);
    for (int64_t first = begin; first < end; first += block()) {
      const int64_t rows = std::min(block(), end - first);
      scaled(q + first * size, rows, scale, query);
      meet(query, rows, across, weights);
      for (int64_t r = 0; r < rows; ++r) {
        if (bias) raise(weights + r * scores(), bias + (first + r) * keys);
        softmax(weights + r * scores());
      }
      float* to = width() == size ? y + first * size : result;
      product(rows, width(), {weights, scores(), 1}, value, width(), keys, to, width(), false);
      if (to == result) narrow(result, rows, 1.0f, y + first * size);
    }
  }

  int64_t backward_floats() const {
    return 2 * transposed() + 3 * keys * width() + block() * (2 * scores() + 3 * width());
  }
  // ``dbias`` is added to where ``more``, or written.
  void backward(const float* q, const float* k, const float* v, const float* bias, const float* g, float scale,
                float* dq, float* dk, float* dv, float* dbias, bool more, float* scratch) const {
    float* across_k = scratch;
    float* across_v = across_k + transposed();
    float* keys_copy = across_v + transposed();
    float* sum_k = keys_copy + keys * width();
    float* sum_v = sum_k + keys * width();
    float* weights = sum_v + keys * width();
    float* slopes = weights + block() * scores();
    float* query = slopes + block() * scores();
    float* gradient_copy = query + block() * width();
    float* result = gradient_copy + block() * width();
    const bool direct = width() == size;
    if (direct) sum_k = dk, sum_v = dv;
    transpose(k, across_k);
    transpose(v, across_v);
    const float* key = wide(k, keys, keys_copy);
    for (int64_t first = 0; first < queries; first += block()) {
      const int64_t rows = std::min(block(), queries - first);
      scaled(q + first * size, rows, scale, query);
      const float* gradient = wide(g + first * size, rows, gradient_copy);
      meet(query, rows, across_k, weights);
      meet(gradient, rows, across_v, slopes);
      for (int64_t r = 0; r < rows; ++r) {
        float* __restrict weight = weights + r * scores();
        float* __restrict slope = slopes + r * scores();
        if (bias) raise(weight, bias + (first + r) * keys);
        softmax(weight);
        const float inner = total(weight, slope);
        for (int64_t s = 0; s < keys; ++s) slope[s] = weight[s] * (slope[s] - inner);
        if (!bias) continue;
        float* __restrict d = dbias + (first + r) * keys;
        for (int64_t s = 0; s < keys; ++s) d[s] = more ? d[s] + slope[s] : slope[s];
      }
      product(rows, width(), {slopes, scores(), 1}, key, width(), keys, result, width(), false);
      narrow(result, rows, scale, dq + first * size);
      product(keys, width(), {weights, 1, scores()}, gradient, width(), rows, sum_v, width(), first > 0);
      product(keys, width(), {slopes, 1, scores()}, query, width(), rows, sum_k, width(), first > 0);
    }
    if (direct) return;
    narrow(sum_k, keys, 1.0f, dk);
    narrow(sum_v, keys, 1.0f, dv);
  }
};

// q [..., L, K], k and v [..., S, K], scale [1], and a bias [1 or B, N, L, S] if there is one.
struct Call {
  Head head;
  int64_t heads, own, theirs, biases, scores;  // biases: 0, or the heads that have one of their own

  Call(const Arguments& a, bool biased)
      : head{a.shapes[0][a.ranks[0] - 2], a.shapes[1][a.ranks[1] - 2], a.shapes[0][a.ranks[0] - 1]},
        heads(a.size(0) / (head.queries * head.size)), own(head.queries * head.size), theirs(head.keys * head.size),
        biases(biased ? a.size(4) / (head.queries * head.keys) : 0), scores(head.queries * head.keys) {}
  int64_t bias(int64_t n) const { return n % biases * scores; }
};

}  // namespace

extern "C" {

// q, k, v, scale, perhaps a bias -> softmax(scale q k' + bias) v
int attention(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  const int result = count - 1;
  if (!a.are_fp32(count == 6 ? 6 : 5)) return 1;
  if (a.size(0) == 0) return 0;
  if (a.size(1) == 0) return std::fill_n(a.out(result), a.size(result), 0.0f), 0;
  const Call call(a, count == 6);
  const Head& head = call.head;
  const int64_t blocks = divide_up(head.queries, head.block());
  const int64_t pieces = std::min(blocks, divide_up(kPieces, call.heads));
  const int64_t each = divide_up(blocks, pieces) * head.block();
  std::atomic<int> failed{0};
  parallel(call.heads * pieces, [&](int64_t part) {
    try {
      thread_local Scratch scratch;
      const int64_t n = part / pieces, begin = part % pieces * each, end = std::min(head.queries, begin + each);
      if (begin >= end) return;
      head.forward(a.in(0) + n * call.own, a.in(1) + n * call.theirs, a.in(2) + n * call.theirs,
                   call.biases ? a.in(4) + call.bias(n) : nullptr, a.in(3)[0], begin, end, a.out(result) + n * call.own,
                   scratch.floats(head.forward_floats()));
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  });
  return failed;
}

// q, k, v, scale, y -> y: the output that was computed before, whose gradient is that of attention
int attention_known(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  if (!a.are_fp32(6)) return 1;
  std::copy_n(a.in(4), a.size(4), a.out(5));
  return 0;
}

// q, k, v, scale, perhaps a bias, gradient of the output -> gradients of q, k, v and of the bias
int attention_gradient(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) {
  const Arguments a{count, data, ranks, shapes, types};
  const bool biased = count == 10;
  if (!a.are_fp32(biased ? 10 : 8)) return 1;
  const int first = biased ? 6 : 5;
  if (a.size(0) == 0 || a.size(1) == 0) {
    for (int i = first; i < count; ++i) std::fill_n(a.out(i), a.size(i), 0.0f);
    return 0;
  }
  const Call call(a, biased);
  const Head& head = call.head;
  // Heads that share a bias come one after the other: so do the sums of its gradient.
  const int64_t groups = biased ? call.biases : call.heads;
  std::atomic<int> failed{0};
  parallel(groups, [&](int64_t group) {
    try {
      thread_local Scratch scratch;
      float* memory = scratch.floats(head.backward_floats());
      for (int64_t n = group; n < call.heads; n += groups) {
        head.backward(a.in(0) + n * call.own, a.in(1) + n * call.theirs, a.in(2) + n * call.theirs,
                      biased ? a.in(4) + call.bias(n) : nullptr, a.in(first - 1) + n * call.own, a.in(3)[0],
                      a.out(first) + n * call.own, a.out(first + 1) + n * call.theirs,
                      a.out(first + 2) + n * call.theirs, biased ? a.out(first + 3) + call.bias(n) : nullptr,
                      n != group, memory);
      }
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  });
  return failed;
}

}  // extern "C"
