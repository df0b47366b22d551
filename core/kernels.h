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

typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4)));

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

}  // namespace kernels
