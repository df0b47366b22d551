// What every kernel needs: sleeping threads, IEEE rounding, MindSpore's arguments, sixteen lanes.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace kernels {

constexpr int64_t kPart = 32768;  // elements of one piece of work
constexpr int kMaxThreads = 16;   // the kernels wait for memory: more threads do not help
constexpr int kLanes = 16;

// Rounding as IEEE has it while alive: some of MindSpore's threads flush small numbers to zero, others do not.
class DefaultRounding {
 public:
  DefaultRounding() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultRounding() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

// Sleeping helpers. The caller works too and waits only for pieces that a helper has begun, so a helper that wakes
// late (busy machine) or does not exist (after fork) costs nothing.
class Pool {
 public:
  Pool() : owner_(getpid()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    const int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    for (int i = 1; i < std::min(cores, kMaxThreads); ++i) {
      try {
        std::thread([this] { help(); }).detach();
        ++helpers_;
      } catch (const std::system_error&) {
        break;
      }
    }
  }

  void run(int64_t parts, const std::function<void(int64_t)>& job) {
    std::unique_lock<std::mutex> mine(busy_, std::defer_lock);
    if (parts < 2 || helpers_ == 0 || getpid() != owner_ || !mine.try_lock()) {
      for (int64_t part = 0; part < parts; ++part) job(part);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(state_);
      job_ = &job;
      parts_ = parts;
      next_ = 0;
      ++round_;
    }
    wake_.notify_all();
    work(job, parts);
    std::unique_lock<std::mutex> lock(state_);
    job_ = nullptr;
    idle_.wait(lock, [this] { return inside_ == 0; });
  }

 private:
  void work(const std::function<void(int64_t)>& job, int64_t parts) {
    for (int64_t part; (part = next_.fetch_add(1)) < parts;) job(part);
  }

  void help() {
    DefaultRounding rounding;
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && round_ != seen; });
      seen = round_;
      ++inside_;
      const auto* job = job_;
      const int64_t parts = parts_;
      lock.unlock();
      work(*job, parts);
      lock.lock();
      if (--inside_ == 0) idle_.notify_all();
    }
  }

  const pid_t owner_;
  int helpers_ = 0, inside_ = 0;
  std::mutex busy_, state_;
  std::condition_variable wake_, idle_;
  const std::function<void(int64_t)>* job_ = nullptr;
  int64_t parts_ = 0;
  uint64_t round_ = 0;
  std::atomic<int64_t> next_{0};
};

inline void parallel(int64_t parts, const std::function<void(int64_t)>& job) {
  DefaultRounding rounding;
  static Pool* pool = new Pool;  // never destroyed: its threads sleep until the process ends
  pool->run(parts, job);
}

struct Arguments {
  int count;
  void** data;
  int* ranks;
  int64_t** shapes;
  const char** types;

  bool are_fp32(int expected) const {
    if (count != expected) return false;
    return std::all_of(types, types + count, [](const char* name) { return std::strcmp(name, "float32") == 0; });
  }
  int64_t size(int index) const {
    int64_t n = 1;
    for (int i = 0; i < ranks[index]; ++i) n *= shapes[index][i];
    return n;
  }
  const float* in(int index) const { return static_cast<const float*>(data[index]); }
  float* out(int index) const { return static_cast<float*>(data[index]); }
};

// e^x to about one unit in the last place for x in [-87, 88]; 0 < result <= infinity; NaN stays NaN. Range reduction
// and coefficients are those of Cephes' expf (S. L. Moshier).
template <class Real, class Natural>
Real exponential_of(Real x) {
  x = x > 89.0f ? Real{} + 89.0f : x;
  x = x < -87.0f ? Real{} - 87.0f : x;
  const Real shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  Natural bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const Real n = shifted - 12582912.0f;
  const Real r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // x - n ln 2, ln 2 in two parts
  Real p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Natural power = (bits - 0x4b400000u + 127u) << 23;
  Real scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef uint32_t NaturalLanes __attribute__((vector_size(4 * kLanes), aligned(4)));

inline float exponential(float x) { return exponential_of<float, uint32_t>(x); }
inline Lanes exponential(Lanes x) { return exponential_of<Lanes, NaturalLanes>(x); }

inline Lanes load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }

inline float sum(Lanes v) {
  float part[kLanes];
  std::memcpy(part, &v, sizeof v);
  for (int width = kLanes / 2; width; width /= 2) {
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  }
  return part[0];
}

struct Moments {
  float mean, inverse;
};

// SiLU of a group norm of [B, C, T, H, W] that cells may modulate (kernels_norm.cpp).
struct GroupNorm {
  int64_t batch, channels, frames, height, width, cells_t, cells_h, cells_w, groups;
  float eps;

  GroupNorm(const int64_t* x, const int64_t* cells, const float* settings)
      : batch(x[0]), channels(x[1]), frames(x[2]), height(x[3]), width(x[4]), cells_t(cells[2]), cells_h(cells[3]),
        cells_w(cells[4]), groups(static_cast<int64_t>(settings[0])), eps(settings[1]) {}

  int64_t plane() const { return height * width; }
  int64_t cells() const { return cells_t * cells_h * cells_w; }
  int64_t each() const { return channels / groups; }
  bool fits() const {
    return groups > 0 && channels % groups == 0 && height % cells_h == 0 && width % cells_w == 0 && cells_t <= frames;
  }

  // With an odd number of frames the first latent stands for the first frame alone.
  int64_t cell_of(int64_t frame) const {
    if (cells_t == frames) return frame;
    if (cells_t == 1) return 0;
    if (frames % 2 == 0) return frame / (frames / cells_t);
    return frame == 0 ? 0 : 1 + (frame - 1) / ((frames - 1) / (cells_t - 1));
  }

  // Moments of a group: sums of planes in fp32, of all planes in fp64.
  Moments moments_of(const float* x) const {
    const int64_t count = each() * frames, size = plane();
    double total = 0.0, squares = 0.0;
    for (int64_t p = 0; p < count; ++p) total += summed(x + p * size, size, 0.0f, false);
    const double share = 1.0 / static_cast<double>(count * size);
    const float mean = static_cast<float>(total * share);
    for (int64_t p = 0; p < count; ++p) squares += summed(x + p * size, size, mean, true);
    return {mean, 1.0f / std::sqrt(static_cast<float>(squares * share) + eps)};
  }

  static float summed(const float* x, int64_t size, float mean, bool squared) {
    Lanes lanes = {};
    float rest = 0.0f;
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const Lanes d = load(x + i) - mean;
      lanes += squared ? d * d : d;
    }
    for (; i < size; ++i) rest += squared ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
    return sum(lanes) + rest;
  }

  // Where the cells of one row begin; ``at``: sample and channel as one number.
  int64_t cells_of(int64_t at, int64_t frame, int64_t row) const {
    return ((at * cells_t + cell_of(frame)) * cells_h + row / (height / cells_h)) * cells_w;
  }

  // The factor and summand of n along one row, from the cells of that row.
  void along_row(float weight, float bias, const float* scale, const float* shift, float* factor, float* summand) const {
    const int64_t repeat = width / cells_w;
    for (int64_t c = 0; c < cells_w; ++c) {
      std::fill_n(factor + c * repeat, repeat, weight * scale[c]);
      std::fill_n(summand + c * repeat, repeat, bias * scale[c] + shift[c]);
    }
  }
};

template <class Real>
Real sigmoid(Real u) {
  return 1.0f / (1.0f + exponential(-u));
}

inline void norm_silu_row(const float* __restrict from, const float* __restrict factor, const float* __restrict summand,
                          Moments m, int64_t width, float* __restrict to) {
  const auto made = [&](int64_t i, int64_t count) {
    Lanes x = {}, by = {}, more = {};
    std::memcpy(&x, from + i, static_cast<size_t>(4 * count));
    std::memcpy(&by, factor + i, static_cast<size_t>(4 * count));
    std::memcpy(&more, summand + i, static_cast<size_t>(4 * count));
    const Lanes u = (x - m.mean) * m.inverse * by + more, y = u * sigmoid(u);
    std::memcpy(to + i, &y, static_cast<size_t>(4 * count));
  };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) made(i, kLanes);
  if (i < width && width > kLanes) made(width - kLanes, kLanes);  // some again
  if (width < kLanes) made(0, width);
}

}  // namespace kernels
