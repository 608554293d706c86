// Causal attention over whole rows on the CPU, with rotated queries and keys (RoPE), forward and backward. Each pair of
// a row and a head is computed by one thread, from copies that fit into its core's cache. Only products below the
// diagonal are computed. The backward pass computes the weights again (Dao et al. 2022, arXiv:2205.14135).
//
// Sums and exponentials are in float32, and so are products of float32. Where the processor multiplies pairs of bfloat16
// (AVX512-BF16), the factors of products are rounded to bfloat16 if the inputs have this type: twice as many are
// computed at once.

#include "common.h"

#ifdef __AVX512F__
#include <immintrin.h>
#ifdef __AVX512BF16__
#define HAS_PAIRS
#endif
#endif

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

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes), aligned(4)));

struct Pair { uint32_t bits; };  // two bfloat16 that are adjacent along the sum of a product

// What a product multiplies at once, for inputs of a type: a factor of a sum, or kGroup of them.
template <typename Value>
struct Factors {
  typedef float Group;
  static constexpr int64_t kGroup = 1;
};
#ifdef HAS_PAIRS
template <>
struct Factors<BFloat16> {
  typedef Pair Group;
  static constexpr int64_t kGroup = 2;
};
#endif

Vector load(const void* place) { return *reinterpret_cast<const Vector*>(place); }
void store(float* place, Vector value) { *reinterpret_cast<Vector*>(place) = value; }

Vector multiply_add(Vector sum, float left, Vector right) { return sum + left * right; }
#ifdef HAS_PAIRS
Vector multiply_add(Vector sum, Pair left, Vector right) {
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(left.bits), (__m512bh)right);
}
#endif

// Groups along rows of n numbers altogether, for the left factor of a product.
const float* along_rows(const float* from, int64_t, std::vector<float>&) { return from; }
// Groups across rows of n numbers each, for the right factor of a product.
const float* across_rows(const float* from, int64_t, int64_t, std::vector<float>&) { return from; }
Vector load_as_floats(const float* from) { return load(from); }
Vector load_as_floats(const BFloat16* from) {
#ifdef __AVX512F__
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  return (Vector)_mm512_slli_epi32(bits, 16);
#else
  Vector result;
  for (int64_t i = 0; i < kLanes; ++i) result[i] = read(from[i]);
  return result;
#endif
}
void store_as(float* to, Vector value) { store(to, value); }
void store_as(BFloat16* to, Vector value) {
#ifdef HAS_PAIRS
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
  for (int64_t i = 0; i < kLanes; ++i) write(to + i, value[i]);
#endif
}

#ifdef HAS_PAIRS
__m256i rounded(const float* from) { return (__m256i)_mm512_cvtneps_pbh((__m512)load(from)); }

const Pair* along_rows(const float* from, int64_t n, std::vector<Pair>& own) {
  for (int64_t i = 0; i < n; i += kLanes) _mm256_storeu_si256((__m256i*)&own[i / 2], rounded(from + i));
  return own.data();
}

const Pair* across_rows(const float* from, int64_t n_rows, int64_t n, std::vector<Pair>& own) {
  for (int64_t r = 0; r < n_rows; r += 2, from += 2 * n)
    for (int64_t i = 0; i < n; i += kLanes) {
      const __m512i low = _mm512_cvtepu16_epi32(rounded(from + i));
      const __m512i high = _mm512_cvtepu16_epi32(rounded(from + n + i));
      _mm512_storeu_si512(&own[r / 2 * n + i], _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  return own.data();
}
#endif

// c = a b, or c += a b: a (m, k) has the strides ai and ak; b (k, n) and c (m, n) have rows of n adjacent numbers, with
// the strides bk and ci. m is a multiple of kRows, and n of kColumns. k counts groups.
template <bool kAdd, typename Group>
void product(const Group* a, int64_t ai, int64_t ak, const Group* b, int64_t bk, float* c, int64_t ci, int64_t m,
             int64_t n, int64_t k) {
  for (int64_t j = 0; j < n; j += kColumns)
    for (int64_t i = 0; i < m; i += kRows) {
      Vector sums[kRows][2];
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = Vector{};
      const Group* left = a + i * ai;
      const Group* right = b + j;
      for (int64_t l = 0; l < k; ++l, left += ak, right += bk) {
        const Vector one = load(right), two = load(right + kLanes);
#pragma GCC unroll 8
        for (int64_t r = 0; r < kRows; ++r) {
          sums[r][0] = multiply_add(sums[r][0], left[r * ai], one);
          sums[r][1] = multiply_add(sums[r][1], left[r * ai], two);
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

// Memory of one thread. What is `across` has the groups of a row in a column.
template <typename Group, int64_t kGroup>
struct Scratch {
  explicit Scratch(const Attention& a)
      : n(a.seq_len * a.head_dim), across((a.seq_len + kPad) * a.head_dim / kGroup),
        of_block(a.seq_len * (kKeys + kPad)), q(n), k(n), v(n), out(n), of_q(n), of_k(n), of_v(n),
        weights(a.seq_len * (std::max(a.seq_len, kKeys) + kPad)), of_weights(of_block), k_across(across),
        v_across(across) {
    if (kGroup == 1) return;  // groups are the numbers themselves
    for (auto* each : {&rows_q, &rows_k, &rows_v, &rows_g, &by_q, &by_k, &by_v, &by_g}) each->resize(n / kGroup);
    for (auto* each : {&rows_of_weights, &by_weights, &by_of_weights}) each->resize(of_block / kGroup);
    rows_weights.resize(kRows * (a.seq_len + kPad) / kGroup);
  }
  int64_t n, across, of_block;
  std::vector<float> q, k, v, out, of_q, of_k, of_v, weights, of_weights;
  std::vector<Group> k_across, v_across, rows_q, rows_k, rows_v, rows_g, rows_weights, rows_of_weights;  // along rows
  std::vector<Group> by_q, by_k, by_v, by_g, by_weights, by_of_weights;                                // across rows
};

template <typename Value>
using ScratchOf = Scratch<typename Factors<Value>::Group, Factors<Value>::kGroup>;

template <typename Group>
void transpose(const Group* from, int64_t n_rows, int64_t n, int64_t stride, std::vector<Group>& to) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t t = 0; t < n_rows; ++t) to[i * stride + t] = from[t * n + i];
}

// Queries, keys and values of one head of one row: `from` is the first number of them, in (seq_len, 3, n_heads, head_dim).
template <typename Value>
void read_head(const Attention& a, const Value* from, ScratchOf<Value>& s) {
  const int64_t half = a.head_dim / 2, width = a.n_heads * a.head_dim;
  for (int64_t t = 0; t < a.seq_len; ++t, from += 3 * width) {
    const float *cos = a.cos + t * half, *sin = a.sin + t * half;
    float *q = &s.q[t * a.head_dim], *k = &s.k[t * a.head_dim], *v = &s.v[t * a.head_dim];
    for (int64_t i = 0; i < half; i += kLanes) {
      const Vector c = load(cos + i), s = load(sin + i);
      const Vector q0 = load_as_floats(from + i), q1 = load_as_floats(from + i + half);
      store(q + i, (q0 * c - q1 * s) * a.scale);
      store(q + i + half, (q1 * c + q0 * s) * a.scale);
      const Vector k0 = load_as_floats(from + width + i), k1 = load_as_floats(from + width + i + half);
      store(k + i, k0 * c - k1 * s);
      store(k + i + half, k1 * c + k0 * s);
    }
    for (int64_t i = 0; i < a.head_dim; i += kLanes) store(v + i, load_as_floats(from + 2 * width + i));
  }
  const auto* k = along_rows(s.k.data(), s.n, s.rows_k);
  transpose(k, a.seq_len, a.head_dim / Factors<Value>::kGroup, a.seq_len + kPad, s.k_across);
}

template <typename Value>
void forward(const Attention& a, const Value* qkv, Value* out, float* log_sums, ScratchOf<Value>& s) {
  constexpr int64_t kGroup = Factors<Value>::kGroup;
  const int64_t d = a.head_dim, width = a.n_heads * d, stride = a.seq_len + kPad;
  read_head(a, qkv, s);
  const auto* q = along_rows(s.q.data(), s.n, s.rows_q);
  const auto* v = across_rows(s.v.data(), a.seq_len, d, s.by_v);
  float* w = s.weights.data();
  for (int64_t begin = 0; begin < a.seq_len; begin += kRows) {
    const int64_t n = (begin + kRows + kColumns - 1) / kColumns * kColumns;
    product<false>(q + begin * d / kGroup, d / kGroup, 1, s.k_across.data(), stride, w, stride, kRows, n, d / kGroup);
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
    const auto* left = along_rows(w, kRows * stride, s.rows_weights);
    product<false>(left, stride / kGroup, 1, v, d, s.out.data(), d, kRows, d, (begin + kRows) / kGroup);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t i = 0; i < d; i += kLanes) store_as(out + (begin + r) * width + i, load(&s.out[r * d + i]));
  }
}

// Writes the gradient of what read_head rotated.
template <typename Value>
void write_rotated(const Attention& a, const float* gradient, float scale, int64_t t, Value* to) {
  const int64_t half = a.head_dim / 2;
  const float *cos = a.cos + t * half, *sin = a.sin + t * half;
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vector c = load(cos + i), s = load(sin + i);
    const Vector g0 = load(gradient + i) * scale, g1 = load(gradient + i + half) * scale;
    store_as(to + i, g0 * c + g1 * s);
    store_as(to + i + half, g1 * c - g0 * s);
  }
}

template <typename Value>
void backward(const Attention& a, const Value* qkv, const Value* out, const float* log_sums, const Value* gradient,
              Value* of_qkv, ScratchOf<Value>& s) {
  constexpr int64_t kGroup = Factors<Value>::kGroup;
  const int64_t d = a.head_dim, width = a.n_heads * d, across = a.seq_len + kPad, stride = kKeys + kPad;
  read_head(a, qkv, s);
  transpose(along_rows(s.v.data(), s.n, s.rows_v), a.seq_len, d / kGroup, across, s.v_across);
  std::vector<float> shift(a.seq_len);
  float* g = s.out.data();
  for (int64_t t = 0; t < a.seq_len; ++t) {
    Vector sums{};
    for (int64_t i = 0; i < d; i += kLanes) {
      const Vector own = load_as_floats(gradient + t * width + i);
      store(g + t * d + i, own);
      sums += own * load_as_floats(out + t * width + i);
    }
    float sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += sums[i];
    shift[t] = sum;
  }
  const auto *q = along_rows(s.q.data(), s.n, s.rows_q), *rows_g = along_rows(g, s.n, s.rows_g);
  const auto* by_q = across_rows(s.q.data(), a.seq_len, d, s.by_q);
  const auto* by_k = across_rows(s.k.data(), a.seq_len, d, s.by_k);
  const auto* by_g = across_rows(g, a.seq_len, d, s.by_g);
  std::fill(s.of_q.begin(), s.of_q.end(), 0.0f);
  float *w = s.weights.data(), *of_w = s.of_weights.data();
  for (int64_t first = 0; first < a.seq_len; first += kKeys) {
    const int64_t n = std::min(kKeys, a.seq_len - first), m = a.seq_len - first;  // keys, and queries that see them
    const int64_t before = first * d / kGroup, depth = d / kGroup;
    product<false>(q + before, depth, 1, &s.k_across[first], across, w, stride, m, n, depth);
    product<false>(rows_g + before, depth, 1, &s.v_across[first], across, of_w, stride, m, n, depth);
    for (int64_t t = 0; t < m; ++t) {
      float *own = w + t * stride, *of_own = of_w + t * stride;
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vector x = load(own + j) - log_sums[first + t];
        store(own + j, exponential(x > 0.0f ? Vector{} : x));
      }
      if (t + 1 < n) std::fill(own + t + 1, own + n, 0.0f);
      for (int64_t j = 0; j < n; ++j) of_own[j] = own[j] * (of_own[j] - shift[first + t]);
    }
    const auto* left = along_rows(of_w, m * stride, s.rows_of_weights);
    const auto* by_of_w = across_rows(of_w, m, stride, s.by_of_weights);
    const auto* by_w = across_rows(w, m, stride, s.by_weights);
    product<true>(left, stride / kGroup, 1, by_k + before, d, &s.of_q[first * d], d, m, d, n / kGroup);
    product<false>(by_of_w, 1, stride, by_q + before, d, &s.of_k[first * d], d, n, d, m / kGroup);
    product<false>(by_w, 1, stride, by_g + before, d, &s.of_v[first * d], d, n, d, m / kGroup);
  }
  for (int64_t t = 0; t < a.seq_len; ++t, of_qkv += 3 * width) {
    write_rotated(a, &s.of_q[t * d], a.scale, t, of_qkv);
    write_rotated(a, &s.of_k[t * d], 1.0f, t, of_qkv + width);  // the queries have the scale
    for (int64_t i = 0; i < d; i += kLanes) store_as(of_qkv + 2 * width + i, load(&s.of_v[t * d + i]));
  }
}

template <typename Value>
void attend(const Attention& a, const Value* qkv, Value* out, float* log_sums) {
  const int64_t width = a.n_heads * a.head_dim;
  on_threads(a.n_rows * a.n_heads, a.n_threads, [&](std::atomic<int64_t>& next) {
    ScratchOf<Value> scratch(a);
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
    ScratchOf<Value> scratch(a);
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
