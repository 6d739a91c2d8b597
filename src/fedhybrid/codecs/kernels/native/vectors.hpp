// Vectors of LANES numbers, loads and stores of every element type, and random numbers. Included once for each level.
//
// Written with the compilers' vector types: loops that look scalar are often not vectorised. Sixteen lanes are the
// logical width everywhere, so that every level writes the same bytes; narrower processors take several vectors.

#define INLINE inline __attribute__((always_inline))

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t H __attribute__((vector_size(2 * LANES)));

constexpr int kParts = 16 / LANES;  // vectors that make up sixteen lanes
constexpr float kInfinity = __builtin_inff();
constexpr float kLargest = 3.40282346638528859812e38f;

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

template <class To, class From>
INLINE To as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
template <class V>
INLINE V read(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}
template <class V>
INLINE void write(void* to, V v) {
    __builtin_memcpy(to, &v, sizeof v);
}

alignas(64) static const int32_t kLaneNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

INLINE F all(float x) { return x - F{}; }
// a < b ? a : b and a > b ? a : b, as one instruction where compilers do not see it themselves.
#if defined(__x86_64__) && LANES == 16
INLINE F smaller(F a, F b) { return (F)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
INLINE F larger(F a, F b) { return (F)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
#elif defined(__x86_64__) && LANES == 8
INLINE F smaller(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE F larger(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
#elif defined(__x86_64__)
INLINE F smaller(F a, F b) { return (F)_mm_min_ps((__m128)a, (__m128)b); }
INLINE F larger(F a, F b) { return (F)_mm_max_ps((__m128)a, (__m128)b); }
#else
INLINE F smaller(F a, F b) { return a < b ? a : b; }
INLINE F larger(F a, F b) { return a > b ? a : b; }
#endif

// ---- element types; FLOAT and WORD are F and U, or float and uint32_t

template <class WORD>
INLINE WORD choose(WORD mask, WORD yes, WORD no) {
    return (mask & yes) | (~mask & no);
}
INLINE U mask_of(I comparison) { return (U)comparison; }
INLINE uint32_t mask_of(bool comparison) { return comparison ? ~0u : 0u; }

template <class FLOAT, class WORD>
INLINE FLOAT from_half(WORD h) {
    WORD sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
    WORD tiny = as<WORD>(as<FLOAT>(magnitude + (113u << 23)) - 0x1p-14f);
    WORD plain = magnitude + (112u << 23), special = magnitude + (224u << 23);
    WORD found = choose(mask_of(magnitude < (1u << 23)), tiny, plain);
    return as<FLOAT>(choose(mask_of(magnitude >= (31u << 23)), special, found) | sign);
}
template <class FLOAT, class WORD>
INLINE WORD to_half(FLOAT x) {
    WORD bits = as<WORD>(x), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    WORD tiny = as<WORD>(as<FLOAT>(magnitude) + 0.5f) - (126u << 23);
    WORD plain = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    WORD found = choose(mask_of(magnitude < (113u << 23)), tiny, plain);
    WORD infinite = (magnitude & 0u) | 0x7c00u;
    return choose(mask_of(magnitude >= 0x477ff000u), infinite, found) | (sign >> 16);
}
template <class WORD>
INLINE WORD to_bfloat(WORD bits) {
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

INLINE F load(const float* p) { return read<F>(p); }
INLINE F load(const BFloat16* p) { return as<F>(__builtin_convertvector(read<H>(p), U) << 16); }
#if defined(__x86_64__) && LANES == 16
INLINE F load(const Float16* p) { return (F)_mm512_maskz_cvtph_ps(0xffff, read<__m256i>(p)); }
#elif defined(__x86_64__) && LANES == 8
INLINE F load(const Float16* p) { return (F)_mm256_cvtph_ps(read<__m128i>(p)); }
#else
INLINE F load(const Float16* p) { return from_half<F>(__builtin_convertvector(read<H>(p), U)); }
#endif
INLINE float load_one(const float* p) { return *p; }
INLINE float load_one(const BFloat16* p) { return as<float>((uint32_t)p->bits << 16); }
INLINE float load_one(const Float16* p) { return from_half<float>((uint32_t)p->bits); }

INLINE void store(float* p, F x) { write(p, x); }
INLINE void store(BFloat16* p, F x) { write(p, __builtin_convertvector(to_bfloat(as<U>(x)), H)); }
#if defined(__x86_64__) && LANES == 16
INLINE void store(Float16* p, F x) { write(p, _mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__x86_64__) && LANES == 8
INLINE void store(Float16* p, F x) { write(p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT)); }
#else
INLINE void store(Float16* p, F x) { write(p, __builtin_convertvector(to_half<F, U>(x), H)); }
#endif
INLINE void store_one(float* p, float x) { *p = x; }
INLINE void store_one(BFloat16* p, float x) { p->bits = (uint16_t)to_bfloat(as<uint32_t>(x)); }
INLINE void store_one(Float16* p, float x) { p->bits = (uint16_t)to_half<float, uint32_t>(x); }

template <class From, class To>
INLINE void copy(const From* from, To* to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
    for (; i < count; ++i) store_one(to + i, load_one(from + i));
}

template <class From, class To>
INLINE void copy_tile(const From* from, To* to) {
    for (int i = 0; i < kTile; i += LANES) store(to + i, load(from + i));
}

// The elements of one tile as 32-bit floats: where they lie, or as a copy in `buffer`.
INLINE const float* tile_of(const float* p, float*) { return p; }
template <class T>
INLINE const float* tile_of(const T* p, float* buffer) {
    copy_tile(p, buffer);
    return buffer;
}
// And back: where they shall lie, or a buffer that `put_tile` copies from.
INLINE float* place_of(float* p, float*) { return p; }
template <class T>
INLINE float* place_of(T*, float* buffer) {
    return buffer;
}
INLINE void put_tile(const float*, float*) {}
template <class T>
INLINE void put_tile(const float* buffer, T* p) {
    copy_tile(buffer, p);
}

// ---- lanes that change places; every list of lanes is a constant

#define FOUR_LANES(f, l) f(l), f(l + 1), f(l + 2), f(l + 3)
#if LANES == 16
#define EACH_LANE(f) FOUR_LANES(f, 0), FOUR_LANES(f, 4), FOUR_LANES(f, 8), FOUR_LANES(f, 12)
#elif LANES == 8
#define EACH_LANE(f) FOUR_LANES(f, 0), FOUR_LANES(f, 4)
#else
#define EACH_LANE(f) FOUR_LANES(f, 0)
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, f) __builtin_shufflevector(a, b, EACH_LANE(f))
#else
#define SHUFFLE(a, b, f) __builtin_shuffle(a, b, (I){EACH_LANE(f)})
#endif

#define PARTNER(l) ((l) ^ SIDE)
template <int SIDE>
INLINE F partners(F v) {
    return SHUFFLE(v, v, PARTNER);
}

INLINE float smallest(F v) {
    if (LANES > 8) v = smaller(v, partners<(LANES > 8 ? 8 : 0)>(v));
    if (LANES > 4) v = smaller(v, partners<(LANES > 4 ? 4 : 0)>(v));
    v = smaller(v, partners<2>(v));
    return smaller(v, partners<1>(v))[0];
}
INLINE float largest(F v) {
    if (LANES > 8) v = larger(v, partners<(LANES > 8 ? 8 : 0)>(v));
    if (LANES > 4) v = larger(v, partners<(LANES > 4 ? 4 : 0)>(v));
    v = larger(v, partners<2>(v));
    return larger(v, partners<1>(v))[0];
}
INLINE float total(F v) {
    if (LANES > 8) v += partners<(LANES > 8 ? 8 : 0)>(v);
    if (LANES > 4) v += partners<(LANES > 4 ? 4 : 0)>(v);
    v += partners<2>(v);
    return (v + partners<1>(v))[0];
}

// A square of LANES by LANES numbers, rows and columns exchanged.
#define UPPER(l) (((l) & SIDE) ? LANES + (l) - SIDE : (l))
#define LOWER(l) (((l) & SIDE) ? LANES + (l) : (l) + SIDE)
template <int SIDE>
INLINE void exchange(F (&rows)[LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        if (i & SIDE) continue;
        F a = rows[i], b = rows[i + SIDE];
        rows[i] = SHUFFLE(a, b, UPPER), rows[i + SIDE] = SHUFFLE(a, b, LOWER);
    }
}
INLINE void transpose(F (&rows)[LANES]) {
    if (LANES > 8) exchange<(LANES > 8 ? 8 : 1)>(rows);
    if (LANES > 4) exchange<(LANES > 4 ? 4 : 1)>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}

// ---- random numbers: sixteen xorshift generators, seeded by (seed, item), whatever thread works on the item

INLINE uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

struct Random {
    U state[kParts];
    uint64_t key;  // of the draws for single elements
};

alignas(64) static const uint32_t kLaneSeeds[16] = {
    0x00000000u, 0x9e3779b9u, 0x3c6ef372u, 0xdaa66d2bu, 0x78dde6e4u, 0x1715609du, 0xb54cda56u, 0x5384540fu,
    0xf1bbcdc8u, 0x8ff34781u, 0x2e2ac13au, 0xcc623af3u, 0x6a99b4acu, 0x08d12e65u, 0xa708a81eu, 0x454021d7u};

INLINE Random random_of(uint64_t seed, int64_t item) {
    Random random;
    random.key = mix(seed + (uint64_t)item * 0x9e3779b97f4a7c15u);
    for (int part = 0; part < kParts; ++part) {
        U h = read<U>(kLaneSeeds + part * LANES) + (uint32_t)random.key;
        h = (h ^ (h >> 16)) * 0x85ebca6bu;
        h = (h ^ (h >> 13)) * 0xc2b2ae35u;
        h ^= h >> 16;
        random.state[part] = h == 0u ? U{} + 0x6d2b79f5u : h;  // zeros would stay zeros
    }
    return random;
}
INLINE U next(U& state) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}
// Four numbers of 16 bits: both halves of the next draw, and the upper halves of two products with it.
INLINE U quarter_of(U& state, U& draw, int k) {
    if (k == 0) draw = next(state);
    return k == 0 ? draw & 0xffffu : (k == 1 ? draw : k == 2 ? draw * 0x9e3779b1u : draw * 0x85ebca77u) >> 16;
}
INLINE int32_t draw_one(uint64_t key, int64_t index) { return (int32_t)(mix(key + (uint64_t)index) >> 48); }  // 16 bits

// ---- smallest and largest of some elements

// With gates, only what lies between them counts: an element on the low gate is no candidate for the smallest, one on
// the high gate none for the largest. Where nothing lies between them the range comes out empty.
template <int GATES>
struct Extremes {
    static constexpr int kWays = 2;  // two chains of operations that do not wait for each other
    F lows[kWays], highs[kWays], sums[kWays];
    float gate_low, gate_high;

    INLINE Extremes(float below, float above) : gate_low(below), gate_high(above) {
        for (int way = 0; way < kWays; ++way) lows[way] = all(kInfinity), highs[way] = all(-kInfinity), sums[way] = F{};
    }
    INLINE void see(F v, int way) {
        sums[way] += v;
        if (GATES == kClampedLow || GATES == kClamped)
            lows[way] = v > gate_low ? smaller(v, lows[way]) : lows[way];
        else
            lows[way] = smaller(v, lows[way]);
        if (GATES == kClamped)
            highs[way] = v < gate_high ? larger(v, highs[way]) : highs[way];
        else
            highs[way] = larger(v, highs[way]);
    }
    template <class T>
    INLINE void look(const T* x, int64_t count) {
        int64_t i = 0;
        for (; i + kWays * LANES <= count; i += kWays * LANES)
            for (int way = 0; way < kWays; ++way) see(load(x + i + way * LANES), way);
        for (; i + LANES <= count; i += LANES) see(load(x + i), 0);
        for (; i < count; ++i) see(all(load_one(x + i)), 1);
    }
    INLINE void finish(float& low, float& high) const {
        low = smallest(smaller(lows[0], lows[1])) + 0.0f;  // of zeros the positive one, whichever came first
        high = largest(larger(highs[0], highs[1])) + 0.0f;
    }
    // Sums are not finite if an element is not, and where large ones add up to too much: then look again.
    INLINE bool suspicious() const { return total((sums[0] + sums[1]) * 0.0f) != 0.0f; }
};

template <class T>
INLINE bool all_finite(const T* x, int64_t count) {
    bool finite = true;
    for (int64_t i = 0; i < count; ++i) finite &= load_one(x + i) * 0.0f == 0.0f;
    return finite;
}
