// What the kernels for the CPU share: types, vectors, threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace {

struct BFloat16 { uint16_t bits; };

inline float read(float value) { return value; }
inline float read(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline void write(float* place, float value) { *place = value; }
inline void write(BFloat16* place, float value) {  // rounds to the nearest, to even in the middle
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  place->bits = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Calls work(next) on each thread; it takes numbers below n from `next` until there are none left.
template <typename Work>
void on_threads(int64_t n, int64_t n_threads, Work work) {
  std::atomic<int64_t> next{0};
  auto take = [&] { work(next); };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min(n_threads, n); ++i) others.emplace_back(take);
  take();
  for (auto& other : others) other.join();
}

}  // namespace
