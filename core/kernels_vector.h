// One register of the machine's vectors, and memory that a thread keeps: for kernels that are matrix products.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace kernels {

#if defined(__AVX512F__)
constexpr int kWide = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kWide)));

inline Vector get(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vector spread(float x) { return x - Vector{}; }
inline void put(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

inline Vector fused(Vector a, Vector b, Vector c) {  // a b + c
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__) && defined(__FMA__)
  return reinterpret_cast<Vector>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// Keeps a value that several products use in a register: compilers would read it again for each of them.
inline void hold(Vector& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  (void)v;
#endif
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that a thread keeps, on a cache line: fresh pages for each piece of work would cost as much as the work.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(new float[static_cast<size_t>(count) + kLanes]);
      size_ = count;
    }
    const uintptr_t past = reinterpret_cast<uintptr_t>(memory_.get()) / sizeof(float) % kLanes;
    return memory_.get() + (kLanes - past) % kLanes;
  }

 private:
  std::unique_ptr<float[]> memory_;
  int64_t size_ = 0;
};

}  // namespace kernels
