// CAME on a tensor's own memory (core/optim/came.py has the formulas, docs/design/007 the reasons): four passes over a
// matrix instead of thirty. Sums over columns and over elements are kept for each block of rows and added in the blocks'
// order, and blocks do not depend on the number of threads: so neither do the bits.

#include "kernels.h"

using namespace kernels;

namespace {

constexpr int64_t kBlocks = 64;  // at most: each has a sum of every column

// Numbers of a step and constants of a tensor, in the order in which they are handed over.
struct Came {
  float factor, lr, beta1, rest1, beta2, rest2, beta3, rest3, eps1, eps2, threshold, weight_decay;
};

// ``count`` matrices of rows x columns in one piece; a block is some rows of one matrix.
struct Cut {
  int64_t count, rows, columns, each, blocks;  // rows of a block, blocks of a matrix

  Cut(int64_t count, int64_t rows, int64_t columns) : count(count), rows(rows), columns(columns) {
    each = std::max((rows + kBlocks - 1) / kBlocks, std::max<int64_t>(1, kPart / columns));
    blocks = (rows + each - 1) / each;
  }
  int64_t all() const { return count * blocks; }
  int64_t begin(int64_t block) const { return block % blocks * each; }
  int64_t end(int64_t block) const { return std::min(rows, begin(block) + each); }
};

inline float inverse_root(float x) { return 1.0f / std::sqrt(x); }

// x = (gradient factor)^2 + eps1; adds it to the columns' sums, returns the row's sum.
float squares_of_row(const float* __restrict g, float factor, float eps, float* __restrict columns, int64_t n) {
  Lanes lanes = {};
  float rest = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes gradient = load(g + i) * factor, x = gradient * gradient + eps;
    store(columns + i, load(columns + i) + x);
    lanes += x;
  }
  for (; i < n; ++i) {
    const float gradient = g[i] * factor, x = gradient * gradient + eps;
    columns[i] += x;
    rest += x;
  }
  return sum(lanes) + rest;
}

// Sum of the squares of u = row column gradient.
float updates_of_row(const float* __restrict g, float factor, float row, const float* __restrict column, int64_t n) {
  Lanes lanes = {};
  float rest = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes u = load(column + i) * row * (load(g + i) * factor);
    lanes += u * u;
  }
  for (; i < n; ++i) {
    const float u = column[i] * row * (g[i] * factor);
    rest += u * u;
  }
  return sum(lanes) + rest;
}

// m of the clipped u, and x = (u - m)^2 + eps2: adds it to the columns' sums, returns the row's sum.
float residual_of_row(const float* __restrict g, const Came& s, float row, const float* __restrict column, float clip,
                      float* __restrict m, float* __restrict columns, int64_t n) {
  Lanes lanes = {};
  float rest = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes u = load(column + i) * row * (load(g + i) * s.factor) / clip;
    const Lanes momentum = load(m + i) * s.beta1 + u * s.rest1, x = (u - momentum) * (u - momentum) + s.eps2;
    store(m + i, momentum);
    store(columns + i, load(columns + i) + x);
    lanes += x;
  }
  for (; i < n; ++i) {
    const float u = column[i] * row * (g[i] * s.factor) / clip;
    m[i] = s.beta1 * m[i] + s.rest1 * u;
    const float x = (u - m[i]) * (u - m[i]) + s.eps2;
    columns[i] += x;
    rest += x;
  }
  return sum(lanes) + rest;
}

void value_of_row(float* __restrict p, const float* __restrict m, float decay, float lr, float row,
                  const float* __restrict column, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = (p[i] - decay * p[i]) - lr * (row * column[i] * m[i]);
}

// Moves averages towards the means of x, whose rows' sums ``sum_of(row, sums of columns)`` gives; then their inverse
// roots: 1 / sqrt(row column / mean of rows).
template <typename SumOf>
void factored_average(const Cut& cut, float* row, float* column, float beta, float rest, SumOf sum_of, float* inverse_row,
                      float* inverse_column) {
  const int64_t n = cut.columns;
  std::vector<float> sums(static_cast<size_t>(cut.all() * n), 0.0f);
  parallel(cut.all(), [&](int64_t block) {
    float* mine = sums.data() + block * n;
    for (int64_t r = cut.begin(block); r < cut.end(block); ++r) {
      const int64_t at = block / cut.blocks * cut.rows + r;
      row[at] = beta * row[at] + rest * (sum_of(at, mine) / static_cast<float>(n));
    }
  });
  parallel(cut.count, [&](int64_t matrix) {
    float *rows = row + matrix * cut.rows, *columns = column + matrix * n;
    double mean = 0.0;
    for (int64_t r = 0; r < cut.rows; ++r) mean += rows[r];
    const float v_mean = static_cast<float>(mean / static_cast<double>(cut.rows));
    for (int64_t r = 0; r < cut.rows; ++r) inverse_row[matrix * cut.rows + r] = inverse_root(rows[r] / v_mean);
    for (int64_t i = 0; i < n; ++i) {
      double total = 0.0;
      for (int64_t b = 0; b < cut.blocks; ++b) total += sums[static_cast<size_t>((matrix * cut.blocks + b) * n + i)];
      columns[i] = beta * columns[i] + rest * static_cast<float>(total / static_cast<double>(cut.rows));
      inverse_column[matrix * n + i] = inverse_root(columns[i]);
    }
  });
}

// What the update is divided by, from the sum of its squares.
float clipping(double squares, int64_t elements, float threshold) {
  const float rms = std::sqrt(static_cast<float>(squares / static_cast<double>(elements)));
  return std::max(rms / threshold, 1.0f);
}

void factored(const Came& s, const Cut& cut, float* p, const float* g, float* m, float* v_row, float* v_column,
              float* r_row, float* r_column) {
  const int64_t n = cut.columns;
  std::vector<float> inverse_row(static_cast<size_t>(cut.count * cut.rows)),
      inverse_column(static_cast<size_t>(cut.count * n)), squares(static_cast<size_t>(cut.all()));
  float *row = inverse_row.data(), *column = inverse_column.data();
  const auto column_of = [&](int64_t at) { return column + at / cut.rows * n; };
  const auto each_row = [&](const auto& work) {
    parallel(cut.all(), [&](int64_t block) {
      for (int64_t r = cut.begin(block); r < cut.end(block); ++r) work(block, block / cut.blocks * cut.rows + r);
    });
  };
  factored_average(cut, v_row, v_column, s.beta2, s.rest2, [&](int64_t at, float* columns) {
    return squares_of_row(g + at * n, s.factor, s.eps1, columns, n);
  }, row, column);
  each_row([&](int64_t block, int64_t at) {
    squares[static_cast<size_t>(block)] += updates_of_row(g + at * n, s.factor, row[at], column_of(at), n);
  });
  double total = 0.0;
  for (const float one : squares) total += one;
  const float clip = clipping(total, cut.count * cut.rows * n, s.threshold);
  // The old roots are read while the new ones are made.
  std::vector<float> next_row(inverse_row.size()), next_column(inverse_column.size());
  factored_average(cut, r_row, r_column, s.beta3, s.rest3, [&](int64_t at, float* columns) {
    return residual_of_row(g + at * n, s, row[at], column_of(at), clip, m + at * n, columns, n);
  }, next_row.data(), next_column.data());
  inverse_column.swap(next_column);
  column = inverse_column.data();
  each_row([&](int64_t, int64_t at) {
    value_of_row(p + at * n, m + at * n, s.lr * s.weight_decay, s.lr, next_row[static_cast<size_t>(at)], column_of(at), n);
  });
}

void unfactored(const Came& s, float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v,
                int64_t n) {
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = g[i] * s.factor;
    v[i] = s.beta2 * v[i] + s.rest2 * (gradient * gradient + s.eps1);
    const float u = inverse_root(v[i]) * gradient;
    squares += static_cast<double>(u * u);
  }
  const float clip = clipping(squares, n, s.threshold), decay = s.lr * s.weight_decay;
  for (int64_t i = 0; i < n; ++i) {
    const float u = inverse_root(v[i]) * (g[i] * s.factor) / clip;
    m[i] = s.beta1 * m[i] + s.rest1 * u;
    p[i] = (p[i] - decay * p[i]) - s.lr * m[i];
  }
}

}  // namespace

extern "C" {

// One tensor of shape [count, rows, columns]; numbers: the fields of Came. Returns 1, and may have changed averages,
// where memory ran out.
int came_factored(const int64_t* shape, float* p, const float* g, float* m, float* v_row, float* v_column, float* r_row,
                  float* r_column, const float* numbers) try {
  Came step;
  std::memcpy(&step, numbers, sizeof step);
  factored(step, Cut(shape[0], shape[1], shape[2]), p, g, m, v_row, v_column, r_row, r_column);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// A vector of n elements.
void came_unfactored(int64_t n, float* p, const float* g, float* m, float* v, const float* numbers) {
  DefaultRounding rounding;
  Came step;
  std::memcpy(&step, numbers, sizeof step);
  unfactored(step, p, g, m, v, n);
}

}  // extern "C"
