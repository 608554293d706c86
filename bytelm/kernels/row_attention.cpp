// Causal attention over whole rows on the CPU, with rotated queries and keys (RoPE), forward and backward. Each pair of
// a row and a head is computed by one thread, in float32, from copies that fit into its core's cache. Only products
// below the diagonal are computed. The backward pass computes the weights again (Dao et al. 2022, arXiv:2205.14135).

#include "common.h"

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16, kRows = 8;
#else
constexpr int64_t kLanes = 8, kRows = 4;
#endif
constexpr int64_t kColumns = 2 * kLanes;  // that are computed together; kRows of them need most registers
constexpr int64_t kKeys = 64;             // whose weights the backward pass has in memory
constexpr int64_t kPad = 16;              // floats after a row of positions: the rows' addresses then differ in the cache
constexpr float kLeast = -80.0f;          // of exponents

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes), aligned(4)));

Vector load(const float* place) { return *reinterpret_cast<const Vector*>(place); }
void store(float* place, Vector value) { *reinterpret_cast<Vector*>(place) = value; }

// c = a b, or c += a b: a (m, k) has the strides ai and ak; b (k, n) and c (m, n) have rows of n adjacent numbers, with
// the strides bk and ci. m is a multiple of kRows, and n of kColumns.
template <bool kAdd>
void product(const float* a, int64_t ai, int64_t ak, const float* b, int64_t bk, float* c, int64_t ci, int64_t m,
             int64_t n, int64_t k) {
  for (int64_t j = 0; j < n; j += kColumns)
    for (int64_t i = 0; i < m; i += kRows) {
      Vector sums[kRows][2];
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector{};
      const float* left = a + i * ai;
      const float* right = b + j;
      for (int64_t l = 0; l < k; ++l, left += ak, right += bk) {
        const Vector one = load(right), two = load(right + kLanes);
#pragma GCC unroll 8
        for (int64_t r = 0; r < kRows; ++r) {
          sums[r][0] += left[r * ai] * one;
          sums[r][1] += left[r * ai] * two;
        }
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; ++r) {
        float* own = c + (i + r) * ci + j;
        store(own, kAdd ? load(own) + sums[r][0] : sums[r][0]);
        store(own + kLanes, kAdd ? load(own + kLanes) + sums[r][1] : sums[r][1]);
      }
    }
}

Vector exponential(Vector x) {  // of numbers up to 0, with a relative error of 1e-7
  x = x < kLeast ? Vector{} + kLeast : x;
  const Integers n = __builtin_convertvector(x * 1.44269504f - 0.5f, Integers);  // the nearest
  const Vector whole = __builtin_convertvector(n, Vector);
  const Vector r = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  Vector p = r * 1.38888889e-3f + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Integers power = (n + 127) << 23;
  return p * (Vector)power;  // the same bits
}

struct Attention {
  int64_t n_rows, seq_len, n_heads, head_dim, n_threads;
  const float *cos, *sin;  // (seq_len, head_dim / 2)
  float scale;             // of scores
};

// Memory of one thread.
struct Scratch {
  explicit Scratch(const Attention& a)
      : n(a.seq_len * a.head_dim), across((a.seq_len + kPad) * a.head_dim), q(n), k(n), v(n), out(n), of_q(n), of_k(n),
        of_v(n), k_across(across), v_across(across), weights(a.seq_len * (std::max(a.seq_len, kKeys) + kPad)),
        of_weights(a.seq_len * (kKeys + kPad)) {}
  int64_t n, across;
  std::vector<float> q, k, v, out, of_q, of_k, of_v, k_across, v_across, weights, of_weights;
};

// Queries, keys and values of one head of one row: `from` is the first number of them, in (seq_len, 3, n_heads, head_dim).
template <typename Value>
void read_head(const Attention& a, const Value* from, Scratch& s) {
  const int64_t half = a.head_dim / 2, width = a.n_heads * a.head_dim, stride = a.seq_len + kPad;
  for (int64_t t = 0; t < a.seq_len; ++t, from += 3 * width) {
    const float *cos = a.cos + t * half, *sin = a.sin + t * half;
    float *q = &s.q[t * a.head_dim], *k = &s.k[t * a.head_dim], *v = &s.v[t * a.head_dim];
    for (int64_t i = 0; i < half; ++i) {
      const float q0 = read(from[i]), q1 = read(from[i + half]);
      q[i] = (q0 * cos[i] - q1 * sin[i]) * a.scale;
      q[i + half] = (q1 * cos[i] + q0 * sin[i]) * a.scale;
    }
    for (int64_t i = 0; i < half; ++i) {
      const float k0 = read(from[width + i]), k1 = read(from[width + i + half]);
      k[i] = k0 * cos[i] - k1 * sin[i];
      k[i + half] = k1 * cos[i] + k0 * sin[i];
    }
    for (int64_t i = 0; i < a.head_dim; ++i) v[i] = read(from[2 * width + i]);
  }
  for (int64_t i = 0; i < a.head_dim; ++i)
    for (int64_t t = 0; t < a.seq_len; ++t) s.k_across[i * stride + t] = s.k[t * a.head_dim + i];
}

template <typename Value>
void forward(const Attention& a, const Value* qkv, Value* out, float* log_sums, Scratch& s) {
  const int64_t d = a.head_dim, width = a.n_heads * d, stride = a.seq_len + kPad;
  read_head(a, qkv, s);
  float* w = s.weights.data();
  for (int64_t begin = 0; begin < a.seq_len; begin += kRows) {
    const int64_t n = (begin + kRows + kColumns - 1) / kColumns * kColumns;
    product<false>(&s.q[begin * d], d, 1, s.k_across.data(), stride, w, stride, kRows, n, d);
    for (int64_t r = 0; r < kRows; ++r) {
      float* own = w + r * stride;
      const int64_t n_seen = begin + r + 1;
      float most = own[0];
      for (int64_t j = 1; j < n_seen; ++j) most = std::max(most, own[j]);
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vector x = load(own + j) - most;
        store(own + j, exponential(x > 0.0f ? Vector{} : x));  // greater ones lie behind the diagonal
      }
      std::fill(own + n_seen, own + n, 0.0f);
      float sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += own[j];
      const float inverse = 1 / sum;
      for (int64_t j = 0; j < n; ++j) own[j] *= inverse;
      log_sums[begin + r] = most + std::log(sum);
    }
    product<false>(w, stride, 1, s.v.data(), d, s.out.data(), d, kRows, d, begin + kRows);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t i = 0; i < d; ++i) write(out + (begin + r) * width + i, s.out[r * d + i]);
  }
}

// Writes the gradient of what read_head rotated.
template <typename Value>
void write_rotated(const Attention& a, const float* gradient, float scale, int64_t t, Value* to) {
  const int64_t half = a.head_dim / 2;
  const float *cos = a.cos + t * half, *sin = a.sin + t * half;
  for (int64_t i = 0; i < half; ++i) {
    const float g0 = gradient[i] * scale, g1 = gradient[i + half] * scale;
    write(to + i, g0 * cos[i] + g1 * sin[i]);
    write(to + i + half, g1 * cos[i] - g0 * sin[i]);
  }
}

template <typename Value>
void backward(const Attention& a, const Value* qkv, const Value* out, const float* log_sums, const Value* gradient,
              Value* of_qkv, Scratch& s) {
  const int64_t d = a.head_dim, width = a.n_heads * d, across = a.seq_len + kPad, stride = kKeys + kPad;
  read_head(a, qkv, s);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t t = 0; t < a.seq_len; ++t) s.v_across[i * across + t] = s.v[t * d + i];
  std::vector<float> shift(a.seq_len);
  float* g = s.out.data();
  for (int64_t t = 0; t < a.seq_len; ++t) {
    float sum = 0;
    for (int64_t i = 0; i < d; ++i) {
      g[t * d + i] = read(gradient[t * width + i]);
      sum += g[t * d + i] * read(out[t * width + i]);
    }
    shift[t] = sum;
  }
  std::fill(s.of_q.begin(), s.of_q.end(), 0.0f);
  float *w = s.weights.data(), *of_w = s.of_weights.data();
  for (int64_t first = 0; first < a.seq_len; first += kKeys) {
    const int64_t n = std::min(kKeys, a.seq_len - first), m = a.seq_len - first;  // keys, and queries that see them
    product<false>(&s.q[first * d], d, 1, &s.k_across[first], across, w, stride, m, n, d);
    product<false>(g + first * d, d, 1, &s.v_across[first], across, of_w, stride, m, n, d);
    for (int64_t t = 0; t < m; ++t) {
      float *own = w + t * stride, *of_own = of_w + t * stride;
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vector x = load(own + j) - log_sums[first + t];
        store(own + j, exponential(x > 0.0f ? Vector{} : x));
      }
      if (t + 1 < n) std::fill(own + t + 1, own + n, 0.0f);
      for (int64_t j = 0; j < n; ++j) of_own[j] = own[j] * (of_own[j] - shift[first + t]);
    }
    product<true>(of_w, stride, 1, &s.k[first * d], d, &s.of_q[first * d], d, m, d, n);
    product<false>(of_w, 1, stride, &s.q[first * d], d, &s.of_k[first * d], d, n, d, m);
    product<false>(w, 1, stride, g + first * d, d, &s.of_v[first * d], d, n, d, m);
  }
  for (int64_t t = 0; t < a.seq_len; ++t, of_qkv += 3 * width) {
    write_rotated(a, &s.of_q[t * d], a.scale, t, of_qkv);
    write_rotated(a, &s.of_k[t * d], 1.0f, t, of_qkv + width);  // the queries have the scale
    for (int64_t i = 0; i < d; ++i) write(of_qkv + 2 * width + i, s.of_v[t * d + i]);
  }
}

template <typename Value>
void attend(const Attention& a, const Value* qkv, Value* out, float* log_sums) {
  const int64_t width = a.n_heads * a.head_dim;
  on_threads(a.n_rows * a.n_heads, a.n_threads, [&](std::atomic<int64_t>& next) {
    Scratch scratch(a);
    for (int64_t i; (i = next++) < a.n_rows * a.n_heads;) {
      const int64_t first = i / a.n_heads * a.seq_len, head = i % a.n_heads * a.head_dim;
      forward(a, qkv + first * 3 * width + head, out + first * width + head, log_sums + i * a.seq_len, scratch);
    }
  });
}

template <typename Value>
void attend_backward(const Attention& a, const Value* qkv, const Value* out, const float* log_sums,
                     const Value* gradient, Value* of_qkv) {
  const int64_t width = a.n_heads * a.head_dim;
  on_threads(a.n_rows * a.n_heads, a.n_threads, [&](std::atomic<int64_t>& next) {
    Scratch scratch(a);
    for (int64_t i; (i = next++) < a.n_rows * a.n_heads;) {
      const int64_t first = i / a.n_heads * a.seq_len, head = i % a.n_heads * a.head_dim;
      backward(a, qkv + first * 3 * width + head, out + first * width + head, log_sums + i * a.seq_len,
               gradient + first * width + head, of_qkv + first * 3 * width + head, scratch);
    }
  });
}

}  // namespace

extern "C" {

void attend_float(const Attention* a, const float* qkv, float* out, float* log_sums) { attend(*a, qkv, out, log_sums); }
void attend_bfloat16(const Attention* a, const BFloat16* qkv, BFloat16* out, float* log_sums) {
  attend(*a, qkv, out, log_sums);
}
void attend_backward_float(const Attention* a, const float* qkv, const float* out, const float* log_sums,
                           const float* gradient, float* of_qkv) {
  attend_backward(*a, qkv, out, log_sums, gradient, of_qkv);
}
void attend_backward_bfloat16(const Attention* a, const BFloat16* qkv, const BFloat16* out, const float* log_sums,
                              const BFloat16* gradient, BFloat16* of_qkv) {
  attend_backward(*a, qkv, out, log_sums, gradient, of_qkv);
}

}  // extern "C"
