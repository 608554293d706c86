// max(x, 0)^2 on the CPU, forward and backward, each in one pass over memory.

#include "common.h"

namespace {

constexpr int64_t kPiece = 1 << 14;  // elements that a thread takes at once

template <typename Each>
void in_pieces(int64_t n, int64_t n_threads, Each each) {
  on_threads((n + kPiece - 1) / kPiece, n_threads, [&](std::atomic<int64_t>& next) {
    for (int64_t begin; (begin = next++ * kPiece) < n;) each(begin, std::min(begin + kPiece, n));
  });
}

template <typename Value>
void square(const Value* __restrict x, Value* __restrict out, int64_t n, int64_t n_threads) {
  in_pieces(n, n_threads, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float positive = std::max(read(x[i]), 0.0f);
      write(out + i, positive * positive);
    }
  });
}

template <typename Value>
void backward(const Value* __restrict x, const Value* __restrict gradient, Value* __restrict of_x, int64_t n,
              int64_t n_threads) {
  in_pieces(n, n_threads, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write(of_x + i, 2 * std::max(read(x[i]), 0.0f) * read(gradient[i]));
  });
}

}  // namespace

extern "C" {

void square_float(const float* x, float* out, int64_t n, int64_t n_threads) { square(x, out, n, n_threads); }
void square_bfloat16(const BFloat16* x, BFloat16* out, int64_t n, int64_t n_threads) { square(x, out, n, n_threads); }
void square_backward_float(const float* x, const float* gradient, float* of_x, int64_t n, int64_t n_threads) {
  backward(x, gradient, of_x, n, n_threads);
}
void square_backward_bfloat16(const BFloat16* x, const BFloat16* gradient, BFloat16* of_x, int64_t n,
                              int64_t n_threads) {
  backward(x, gradient, of_x, n, n_threads);
}

}  // extern "C"
