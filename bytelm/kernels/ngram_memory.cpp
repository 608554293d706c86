// NGramMemory (bytelm/parts/memory.py) on the CPU: recall and mix, each in one pass over the positions. They compute the
// same as the class's operators, which take several times as long: they write lists of positions and entries, and
// tensors of (positions, predictions, symbols), to memory between two operators.

#include "common.h"

namespace {

constexpr int64_t kMultiplier = 0x5851F42D4C957F2D;  // those of ngram_counts.py
constexpr uint64_t kHashMask = (uint64_t(1) << 40) - 1;
constexpr float kFloor = 1e-8f;
constexpr int kAhead = 6;  // positions between two stages of a lookup, while memory is fetched
constexpr int kTotals = 24, kDistinct = 5;
constexpr int64_t kCode = -0x61C8864680B583EB, kMix = 0x3C79AC492BA7B653;
constexpr int64_t kClassSalt = 1000, kLast = 3;  // letters of an ending, as in word_classes.py

struct Kind {
  int64_t n, words, classes;     // as in ContextKind
  const int32_t* starts;         // null: in the row itself, or not counted yet
  const int16_t* keys;
  const uint8_t* tokens;
  const float* counts;
  int64_t bucket_shift, key_shift;
};

struct Memory {
  const Kind* kinds;
  int64_t n_kinds, n_cache;      // the last n_cache kinds are in the row itself
  const float* backoff;          // (n_kinds, kTotals * kDistinct)
  const int64_t* symbols;        // (256,)
  int64_t n_symbols;
  const int64_t* level;          // (n_kinds,): place among the predictions that are returned, or -1
  int64_t n_levels;
  const int64_t* folded;         // (256,): the token in word contexts
  const uint8_t* in_word;        // (256,)
  int64_t inverse;               // of kMultiplier
  const int64_t* class_keys;     // (n_keys,), ascending
  const uint8_t* class_of_key;
  int64_t n_keys;
};

int64_t times(int64_t a, int64_t b) { return int64_t(uint64_t(a) * uint64_t(b)); }
int64_t plus(int64_t a, int64_t b) { return int64_t(uint64_t(a) + uint64_t(b)); }

int64_t mixed(int64_t h) {
  h ^= h >> 31;
  h = times(h, kMix);
  return h ^ h >> 33;
}

// Sums of code(x_j) M^-j over the prefixes of a row.
struct PrefixSums {
  std::vector<int64_t> sums, powers;
  PrefixSums(int64_t n, int64_t inverse) : sums(n + 1), powers(n + 1), inverse_(inverse) {
    powers[0] = 1;
    for (int64_t i = 0; i < n; ++i) powers[i + 1] = times(powers[i], kMultiplier);
  }
  template <typename Token>
  void set(int64_t n, Token token) {
    int64_t power = 1;
    sums[0] = 0;
    for (int64_t i = 0; i < n; ++i, power = times(power, inverse_)) {
      int64_t code = times(token(i) + 1, kCode);
      code ^= code >> 29;
      sums[i + 1] = plus(sums[i], times(code, power));
    }
  }
  uint64_t hash(int64_t start, int64_t end, int64_t salt) const {  // of the substring from start to before end
    return uint64_t(span(start, end, salt)) & kHashMask;
  }
  int64_t span(int64_t start, int64_t end, int64_t salt) const {  // the same, all 64 bits
    return mixed(plus(times(plus(sums[end], -sums[start]), powers[start]), salt));
  }
  int64_t inverse_;
};

// Functions of small counts, which are most of them.
struct OfCounts {
  OfCounts() {
    for (int i = 0; i < kSmall; ++i) {
      logs[i] = std::log(float(i + 1));
      totals[i] = total_bucket(float(i));
      distincts[i] = distinct_bucket(float(i));
    }
  }
  static int total_bucket(float total) { return std::min(kTotals - 1, int(2 * std::log2(std::max(total, 1.0f)))); }
  static int distinct_bucket(float n) { return std::min(kDistinct - 1, int(std::log2(std::max(n, 1.0f)))); }
  float log(float count) const { return count < kSmall ? logs[int(count)] : std::log(count + 1); }
  int bucket(float total, float distinct) const {
    const int by_total = total < kSmall ? totals[int(total)] : total_bucket(total);
    return by_total * kDistinct + (distinct < kSmall ? distincts[int(distinct)] : distinct_bucket(distinct));
  }
  static constexpr int kSmall = 512;
  float logs[kSmall];
  int totals[kSmall], distincts[kSmall];
};
const OfCounts kOf;

class Rows {
 public:
  Rows(const Memory& memory, int64_t seq_len)
      : m_(memory), n_(seq_len), plain_(seq_len, memory.inverse), folded_(seq_len, memory.inverse),
        hashes_(seq_len * memory.n_kinds), known_(seq_len * memory.n_kinds), first_(seq_len * memory.n_kinds),
        last_(seq_len * memory.n_kinds), word_start_(seq_len), last_letter_(seq_len), class_(seq_len),
        before_(seq_len * memory.n_kinds, -1), symbols_(seq_len + 1), found_(seq_len + 1) {
    for (int v = 0; v < 256; ++v) symbol_[v] = uint8_t(m_.symbols[v]);
    int64_t n_slots = 1;
    while (n_slots < 2 * seq_len) n_slots *= 2;
    slots_.resize(n_slots);
  }

  // Evidence of one row from `start` on, (n, width): for each position its log-probabilities, (n_levels, n_symbols),
  // and its counts, (n_kinds, 2).
  template <typename Value>
  void recall(const int64_t* tokens, int64_t start, Value* evidence) {
    const int64_t of_counts = m_.n_levels * m_.n_symbols, width = of_counts + 2 * m_.n_kinds;
    hash(tokens);
    const int64_t n_kinds = m_.n_kinds, n_symbols = m_.n_symbols;
    float p[256];
    for (int64_t t = start; t < std::min(start + 2 * kAhead, n_); ++t) fetch_bucket(t);
    for (int64_t t = start; t < std::min(start + kAhead, n_); ++t) fetch_entries(t);
    for (int64_t t = start; t < n_; ++t) {
      if (t + 2 * kAhead < n_) fetch_bucket(t + 2 * kAhead);
      if (t + kAhead < n_) fetch_entries(t + kAhead);
      std::fill(p, p + n_symbols, 1.0f / n_symbols);
      Value* own = evidence + (t - start) * width;
      for (int64_t k = 0; k < n_kinds; ++k) {
        float total = 0, distinct = 0;
        follow(tokens, t, k, &total, &distinct);
        if (total > 0) {
          const float backoff = m_.backoff[k * kTotals * kDistinct + kOf.bucket(total, distinct)];
          const float weight = (1 - backoff) / total;
          for (int64_t s = 0; s < n_symbols; ++s) p[s] *= backoff;
          for (int64_t i = 0; i < n_found_; ++i) p[symbols_[i]] += weight * found_[i];
        }
        if (m_.level[k] >= 0) {
          Value* out = own + m_.level[k] * n_symbols;
          for (int64_t s = 0; s < n_symbols; ++s) write(out + s, std::log(std::max(p[s], kFloor)));
        }
        write(own + of_counts + 2 * k, kOf.log(total));
        write(own + of_counts + 2 * k + 1, kOf.log(distinct));
      }
    }
  }

  // Of each position of rows and each kind: the target's share of what followed its context, how often the context was
  // seen, and how many different tokens followed; each (n_kinds, n_all), of which this row is from `first` on.
  void shares(const int64_t* tokens, const int64_t* targets, int64_t n_all, int64_t first, float* share, float* totals,
              float* distincts) {
    hash(tokens);
    for (int64_t t = 0; t < std::min<int64_t>(2 * kAhead, n_); ++t) fetch_bucket(t);
    for (int64_t t = 0; t < std::min<int64_t>(kAhead, n_); ++t) fetch_entries(t);
    for (int64_t t = 0; t < n_; ++t) {
      if (t + 2 * kAhead < n_) fetch_bucket(t + 2 * kAhead);
      if (t + kAhead < n_) fetch_entries(t + kAhead);
      const int64_t target = m_.symbols[targets[t]];
      for (int64_t k = 0; k < m_.n_kinds; ++k) {
        float total = 0, distinct = 0, own = 0;
        follow(tokens, t, k, &total, &distinct);
        for (int64_t i = 0; i < n_found_; ++i) own += symbols_[i] == target ? found_[i] : 0;
        const int64_t place = k * n_all + first + t;
        share[place] = own / std::max(total, 1.0f);
        totals[place] = total;
        distincts[place] = distinct;
      }
    }
  }

  // Calls each(t, hash) for each position of a row that has a context of the only kind.
  template <typename Each>
  void contexts(const int64_t* tokens, Each each) {
    hash(tokens);
    for (int64_t t = 0; t < n_; ++t)
      if (known_[t]) each(t, hashes_[t]);
  }

 private:
  void hash(const int64_t* tokens) {
    plain_.set(n_, [&](int64_t i) { return tokens[i]; });
    folded_.set(n_, [&](int64_t i) { return m_.folded[tokens[i]]; });
    for (int64_t t = 0, begin = 0, letter = -1; t < n_; ++t) {
      if (m_.in_word[tokens[t]]) letter = t; else begin = t + 1;
      word_start_[t] = begin;
      last_letter_[t] = letter;
    }
    if (m_.n_keys)
      for (int64_t t = 0; t + 1 < n_; ++t)
        if (m_.in_word[tokens[t]] && !m_.in_word[tokens[t + 1]]) class_[t] = word_class(word_start_[t], t + 1);
    for (int64_t k = 0; k < m_.n_kinds; ++k) {
      const Kind& kind = m_.kinds[k];
      for (int64_t t = 0; t < n_; ++t) {
        int64_t begin = t - kind.n + 1;
        if (kind.classes) {
          hash_classes(t, k);
          continue;
        }
        if (kind.words) {
          begin = word_start_[t];
          for (int64_t i = 1; i < kind.n; ++i) {
            const int64_t before = last_letter_[std::max<int64_t>(begin - 1, 0)];
            begin = before > 0 ? word_start_[before] : 0;
          }
        }
        const int64_t i = t * m_.n_kinds + k;
        known_[i] = kind.words ? begin > 1 : begin > 0;
        if (known_[i]) hashes_[i] = (kind.words ? folded_ : plain_).hash(begin, t + 1, kind.words ? -kind.n : kind.n);
      }
      if (!in_text(k)) link(k);
    }
  }

  // Finds the last position before each one that has the same context.
  void link(int64_t k) {
    std::fill(slots_.begin(), slots_.end(), -1);
    for (int64_t t = 0, i = k; t < n_; ++t, i += m_.n_kinds) {
      if (!known_[i]) continue;
      size_t slot = hashes_[i] & (slots_.size() - 1);
      while (slots_[slot] >= 0 && hashes_[slots_[slot]] != hashes_[i]) slot = (slot + 1) & (slots_.size() - 1);
      before_[i] = slots_[slot];
      slots_[slot] = i;
    }
  }

  // A context of classes. `last` is the last letter of a word before the current one; at 0 there is the marker.
  void hash_classes(int64_t t, int64_t k) {
    int64_t start = word_start_[t], h = 0;
    for (int64_t i = 1; i < m_.kinds[k].n; ++i) {
      const int64_t last = std::max<int64_t>(last_letter_[std::max<int64_t>(start - 1, 0)], 0);
      start = last > 0 ? word_start_[last] : 0;
      if (i == 1) h = int64_t(folded_.hash(last + 1, t + 1, kClassSalt + m_.kinds[k].n));
      h = mixed(plus(times(h, kCode), times(class_[last], kMix)));
    }
    known_[t * m_.n_kinds + k] = start > 1;
    hashes_[t * m_.n_kinds + k] = uint64_t(h) & kHashMask;
  }

  int64_t word_class(int64_t begin, int64_t end) const {  // of the word, or of its ending
    const int64_t own = class_of(folded_.span(begin, end, 0));
    return own ? own : class_of(folded_.span(std::max(begin, end - kLast), end, -1));
  }

  int64_t class_of(int64_t hash) const {
    const int64_t* end = m_.class_keys + m_.n_keys;
    const int64_t* place = std::lower_bound(m_.class_keys, end, hash);
    return place < end && *place == hash ? m_.class_of_key[place - m_.class_keys] : 0;
  }

  bool in_text(int64_t k) const { return k < m_.n_kinds - m_.n_cache; }

  void fetch_bucket(int64_t t) const {
    for (int64_t k = 0, i = t * m_.n_kinds; in_text(k); ++k, ++i)
      if (known_[i] && m_.kinds[k].starts) __builtin_prefetch(m_.kinds[k].starts + (hashes_[i] >> m_.kinds[k].bucket_shift));
  }

  void fetch_entries(int64_t t) {
    for (int64_t k = 0, i = t * m_.n_kinds; in_text(k); ++k, ++i) {
      const Kind& kind = m_.kinds[k];
      first_[i] = last_[i] = 0;
      if (!known_[i] || !kind.starts) continue;
      const uint64_t bucket = hashes_[i] >> kind.bucket_shift;
      first_[i] = kind.starts[bucket];
      last_[i] = kind.starts[bucket + 1];
      __builtin_prefetch(kind.keys + first_[i]);
      __builtin_prefetch(kind.tokens + first_[i]);
      __builtin_prefetch(kind.counts + first_[i]);
    }
  }

  // Finds the symbols that followed a context, and their counts.
  void follow(const int64_t* tokens, int64_t t, int64_t k, float* total, float* distinct) {
    n_found_ = 0;
    const Kind& kind = m_.kinds[k];
    const int64_t i = t * m_.n_kinds + k;
    float sum = 0;
    if (in_text(k)) {
      const int64_t most = last_[i] - first_[i];
      if (int64_t(found_.size()) <= most) found_.resize(most + 1), symbols_.resize(most + 1);
      const int16_t key = int16_t(hashes_[i] >> kind.key_shift);
      for (int64_t entry = first_[i]; entry < last_[i]; ++entry) {  // without a branch, which would be hard to predict
        const float count = kind.keys[entry] == key ? kind.counts[entry] : 0.0f;
        symbols_[n_found_] = symbol_[kind.tokens[entry]];
        found_[n_found_] = count;
        sum += count;
        n_found_ += count > 0;
      }
      *distinct = n_found_;
    } else if (known_[i]) {
      bool occurred[256] = {};
      for (int64_t j = before_[i]; j >= 0; j = before_[j]) {
        const uint8_t symbol = symbol_[tokens[j / m_.n_kinds + 1]];
        symbols_[n_found_] = symbol;
        found_[n_found_++] = 1;
        sum += 1;
        *distinct += !occurred[symbol];
        occurred[symbol] = true;
      }
    }
    *total = sum;
  }

  const Memory& m_;
  const int64_t n_;
  PrefixSums plain_, folded_;
  std::vector<uint64_t> hashes_;  // (n, n_kinds)
  std::vector<uint8_t> known_;
  std::vector<int64_t> first_, last_, word_start_, last_letter_, class_;
  std::vector<int64_t> before_;  // (n, n_kinds): of contexts in the row, the place of the same one before; -1: none
  std::vector<int64_t> slots_;   // of the hash table that finds it
  uint8_t symbol_[256];          // of each token
  std::vector<uint8_t> symbols_;  // that followed a context: the first n_found_
  std::vector<float> found_;
  int64_t n_found_ = 0;
};

template <typename Value>
void recall(const Memory& memory, const int64_t* tokens, int64_t n_rows, int64_t seq_len, int64_t start,
            int64_t n_threads, Value* evidence) {
  const int64_t size = (seq_len - start) * (memory.n_levels * memory.n_symbols + 2 * memory.n_kinds);
  on_threads(n_rows, n_threads, [&](std::atomic<int64_t>& next) {
    Rows rows(memory, seq_len);
    for (int64_t row; (row = next++) < n_rows;) rows.recall(tokens + row * seq_len, start, evidence + row * size);
  });
}

// Counts of the tokens that follow the contexts of one kind, as NGramCounts (ngram_counts.py) makes them: triples of
// context, token and fold, sorted range by range. Sorting is by radix, with what a range has in a core's cache.
class Counts {
 public:
  static constexpr int64_t kFolds = 16, kMostStep = 255;

  Counts(const Memory& memory, const uint8_t* text, const uint8_t* folds, int64_t n, int64_t piece, int64_t range,
         int64_t most_pairs) {
    const int64_t n_ranges = 1 + n / range;
    const uint64_t width = ((uint64_t(1) << 40) + n_ranges - 1) / n_ranges;
    std::vector<int64_t> places(n_ranges + 1);
    each_context(memory, text, n, piece, [&](int64_t, uint64_t hash) { ++places[hash / width + 1]; });
    for (int64_t i = 0; i < n_ranges; ++i) places[i + 1] += places[i];
    ends_.assign(places.begin() + 1, places.end());
    triples_.resize(places[n_ranges]);
    each_context(memory, text, n, piece, [&](int64_t i, uint64_t hash) {
      triples_[places[hash / width]++] = hash << 12 | uint64_t(text[i]) << 4 | folds[i];
    });
    int64_t begin = 0;
    for (int64_t i = 0; i < n_ranges && (i == 0 || n_entries < most_pairs); begin = ends_[i++]) {
      sort(triples_.data() + begin, ends_[i] - begin);
      each_entry(begin, ends_[i], [&](uint64_t, int64_t) { ++n_entries; },
                 [&](int64_t fold, int64_t step, int64_t count) { n_stops[fold] += stops(step, count); });
      if (i == 0)
        for (int64_t n_all = std::max<int64_t>(1, n_entries) * n_ranges; n_all >> (bits + 1);) ++bits;
      counted_ = ends_[i];
    }
    bits = std::min<int64_t>(bits, 24);
  }

  // Writes the index: what NGramCounts keeps of it, of the sizes that are known now.
  void write(int32_t* starts, int16_t* keys, uint8_t* tokens, float* counts, uint8_t* steps, uint8_t* in_fold) {
    int64_t place[kFolds], before = 0, entry = -1;
    for (int64_t f = 0; f < kFolds; before += n_stops[f++]) place[f] = before;
    std::fill(last_, last_ + kFolds, 0);
    next_entry_ = 0;
    each_entry(
        0, counted_,
        [&](uint64_t pair, int64_t count) {
          const uint64_t hash = pair >> 8;
          ++starts[(hash >> (40 - bits)) + 1];
          keys[++entry] = int16_t(hash >> (24 - bits));
          tokens[entry] = uint8_t(pair);
          counts[entry] = float(count);
        },
        [&](int64_t fold, int64_t step, int64_t count) {
          int64_t& i = place[fold];
          for (; step >= kMostStep; step -= kMostStep) steps[i] = kMostStep, in_fold[i++] = 0;
          steps[i] = step;
          in_fold[i++] = (count - 1) % kMostStep + 1;
          for (int64_t more = (count - 1) / kMostStep; more; --more) steps[i] = 0, in_fold[i++] = kMostStep;
        });
    for (int64_t b = 0; b < int64_t(1) << bits; ++b) starts[b + 1] += starts[b];
  }

  int64_t n_entries = 0, bits = 0, n_stops[kFolds] = {};

 private:
  // Hashes pieces of the text, as contexts do not cross their edges.
  template <typename Each>
  static void each_context(const Memory& memory, const uint8_t* text, int64_t n, int64_t piece, Each each) {
    std::vector<int64_t> tokens(std::min(piece, n));
    for (int64_t begin = 0; begin < n; begin += piece) {
      const int64_t size = std::min(piece, n - begin);
      tokens[0] = text[begin + size - 1];
      for (int64_t i = 1; i < size; ++i) tokens[i] = text[begin + i - 1];
      Rows(memory, size).contexts(tokens.data(), [&](int64_t t, uint64_t hash) { each(begin + t, hash); });
    }
  }

  void sort(uint64_t* from, int64_t n) {
    constexpr int kBits = 9, kPasses = 6;  // 52 bits
    std::vector<std::vector<uint32_t>> places(kPasses, std::vector<uint32_t>(1 << kBits));
    other_.resize(n);
    for (int64_t i = 0; i < n; ++i)
      for (int p = 0; p < kPasses; ++p) ++places[p][from[i] >> (p * kBits) & ((1 << kBits) - 1)];
    uint64_t* to = other_.data();
    for (int p = 0; p < kPasses; ++p, std::swap(from, to)) {
      uint32_t begin = 0;
      for (auto& place : places[p]) begin += std::exchange(place, begin);
      for (int64_t i = 0; i < n; ++i) to[places[p][from[i] >> (p * kBits) & ((1 << kBits) - 1)]++] = from[i];
    }
  }

  // Calls each(pair, count) for each pair of context and token, and of_fold(fold, step, count) for each of its folds.
  template <typename Each, typename OfFold>
  void each_entry(int64_t begin, int64_t end, Each each, OfFold of_fold) {
    for (int64_t i = begin; i < end; ++next_entry_) {
      const uint64_t pair = triples_[i] >> 4;
      const int64_t first = i;
      while (i < end && triples_[i] >> 4 == pair) {
        const uint64_t triple = triples_[i];
        const int64_t same = i;
        while (i < end && triples_[i] == triple) ++i;
        const int64_t fold = triple & 15;
        of_fold(fold, next_entry_ - last_[fold], i - same);
        last_[fold] = next_entry_;
      }
      each(pair, i - first);
    }
  }

  static int64_t stops(int64_t step, int64_t count) { return 1 + step / kMostStep + (count - 1) / kMostStep; }

  std::vector<uint64_t> triples_, other_;
  std::vector<int64_t> ends_;  // of the ranges
  int64_t counted_ = 0, next_entry_ = 0, last_[kFolds] = {};
};

constexpr int64_t kPiece = 64;  // positions that a thread takes at once

struct Mixing {
  int64_t n, n_threads, n_levels, n_symbols, width, n_tokens;  // width: from one position's evidence to the next one's
  const int64_t* symbols;                                       // (n_tokens,)
};

// Tokens that have a symbol for themselves, and the symbol of all others.
struct Symbols {
  explicit Symbols(const Mixing& m) {
    std::vector<int64_t> n(m.n_symbols), token(m.n_symbols);
    for (int64_t v = 0; v < m.n_tokens; ++v) ++n[m.symbols[v]], token[m.symbols[v]] = v;
    for (int64_t s = 0; s < m.n_symbols; ++s)
      if (n[s] == 1) symbols.push_back(s), tokens.push_back(token[s]);
      else if (n[s] > 1) shared = s;
  }
  std::vector<int64_t> symbols, tokens;
  int64_t shared = 0;
};

template <typename Logit, typename Value>
void mix(const Mixing& m, const Logit* logits, const float* gates, const Value* evidence, float* mixed) {
  const Symbols own(m);
  on_threads((m.n + kPiece - 1) / kPiece, m.n_threads, [&](std::atomic<int64_t>& next) {
    float sums[256];
    for (int64_t begin; (begin = next++ * kPiece) < m.n;)
      for (int64_t i = begin; i < std::min(begin + kPiece, m.n); ++i) {
        std::fill(sums, sums + m.n_symbols, 0.0f);
        for (int64_t level = 0; level < m.n_levels; ++level) {
          const float gate = gates[i * m.n_levels + level];
          const Value* values = evidence + i * m.width + level * m.n_symbols;
          for (int64_t s = 0; s < m.n_symbols; ++s) sums[s] += gate * read(values[s]);
        }
        const Logit* from = logits + i * m.n_tokens;
        float *to = mixed + i * m.n_tokens, shared = sums[own.shared];
        for (int64_t v = 0; v < m.n_tokens; ++v) to[v] = read(from[v]) + shared;
        for (size_t j = 0; j < own.tokens.size(); ++j)
          to[own.tokens[j]] = read(from[own.tokens[j]]) + sums[own.symbols[j]];
      }
  });
}

template <typename Logit, typename Value>
void mix_backward(const Mixing& m, const float* gradient, const Value* evidence, Logit* of_logits, float* of_gates) {
  const Symbols of(m);
  on_threads((m.n + kPiece - 1) / kPiece, m.n_threads, [&](std::atomic<int64_t>& next) {
    float of_symbols[256];
    for (int64_t begin; (begin = next++ * kPiece) < m.n;)
      for (int64_t i = begin; i < std::min(begin + kPiece, m.n); ++i) {
        std::fill(of_symbols, of_symbols + m.n_symbols, 0.0f);
        const float* own = gradient + i * m.n_tokens;
        for (int64_t v = 0; v < m.n_tokens; ++v) write(of_logits + i * m.n_tokens + v, own[v]);
        float all = 0, single = 0;
        for (int64_t v = 0; v < m.n_tokens; ++v) all += own[v];
        for (size_t j = 0; j < of.tokens.size(); ++j) single += of_symbols[of.symbols[j]] = own[of.tokens[j]];
        if (of.tokens.size() < size_t(m.n_symbols)) of_symbols[of.shared] = all - single;
        for (int64_t level = 0; level < m.n_levels; ++level) {
          const Value* values = evidence + i * m.width + level * m.n_symbols;
          float sum = 0;
          for (int64_t s = 0; s < m.n_symbols; ++s) sum += of_symbols[s] * read(values[s]);
          of_gates[i * m.n_levels + level] = sum;
        }
      }
  });
}

}  // namespace

extern "C" {

// Counts a text. `sizes` gets the number of entries, the bits of a bucket's number, and the stops of each fold. The
// result is for count_end_float, which deletes it.
void count_begin_float(const Memory* memory, const uint8_t* text, const uint8_t* folds, int64_t n, int64_t piece,
                       int64_t range, int64_t most_pairs, int64_t* sizes, Counts** made) {
  const Counts& counts = *(*made = new Counts(*memory, text, folds, n, piece, range, most_pairs));
  sizes[0] = counts.n_entries;
  sizes[1] = counts.bits;
  std::copy(counts.n_stops, counts.n_stops + Counts::kFolds, sizes + 2);
}
void count_end_float(Counts* const* made, int32_t* starts, int16_t* keys, uint8_t* tokens, float* counts,
                     uint8_t* steps, uint8_t* in_fold) {
  (*made)->write(starts, keys, tokens, counts, steps, in_fold);
  delete *made;
}

void shares_float(const Memory* memory, const int64_t* tokens, const int64_t* targets, int64_t n_rows, int64_t seq_len,
                  int64_t n_threads, float* share, float* totals, float* distincts) {
  on_threads(n_rows, n_threads, [&](std::atomic<int64_t>& next) {
    Rows rows(*memory, seq_len);
    for (int64_t row; (row = next++) < n_rows;) {
      const int64_t first = row * seq_len;
      rows.shares(tokens + first, targets + first, n_rows * seq_len, first, share, totals, distincts);
    }
  });
}

void recall_float(const Memory* memory, const int64_t* tokens, int64_t n_rows, int64_t seq_len, int64_t start,
                  int64_t n_threads, float* evidence) {
  recall(*memory, tokens, n_rows, seq_len, start, n_threads, evidence);
}
void recall_bfloat16(const Memory* memory, const int64_t* tokens, int64_t n_rows, int64_t seq_len, int64_t start,
                     int64_t n_threads, BFloat16* evidence) {
  recall(*memory, tokens, n_rows, seq_len, start, n_threads, evidence);
}
void mix_float(const Mixing* m, const float* logits, const float* gates, const float* evidence, float* mixed) {
  mix(*m, logits, gates, evidence, mixed);
}
void mix_bfloat16(const Mixing* m, const BFloat16* logits, const float* gates, const BFloat16* evidence, float* mixed) {
  mix(*m, logits, gates, evidence, mixed);
}
void mix_backward_float(const Mixing* m, const float* gradient, const float* evidence, float* of_logits,
                        float* of_gates) {
  mix_backward(*m, gradient, evidence, of_logits, of_gates);
}
void mix_backward_bfloat16(const Mixing* m, const float* gradient, const BFloat16* evidence, BFloat16* of_logits,
                           float* of_gates) {
  mix_backward(*m, gradient, evidence, of_logits, of_gates);
}

}  // extern "C"
