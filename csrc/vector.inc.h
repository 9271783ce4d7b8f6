// Vectors of MUOMNI_WIDTH floats for one instruction set: loads, transposing, the natural logarithm.
// Part of one instruction set's namespace; included by transform.inc.h.

constexpr int W = MUOMNI_WIDTH;
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));
typedef uint32_t BitVec __attribute__((vector_size(4 * W)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * W)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourIndices __attribute__((vector_size(16)));

// Arrays of vectors stay in registers only when every index is a constant.
#define UNROLL _Pragma("GCC unroll 20")

ALWAYS_INLINE Vec load(const float* from) {
    Vec value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

ALWAYS_INLINE void store(float* into, Vec value) { __builtin_memcpy(into, &value, sizeof value); }

// Past the cache: the line need not be read first, and nobody waits for it. `into` is aligned to the vector.
ALWAYS_INLINE void store_past_cache(float* into, Vec value) {
#if MUOMNI_WIDTH == 16
    _mm512_stream_ps(into, (__m512)value);
#elif MUOMNI_WIDTH == 8
    _mm256_stream_ps(into, (__m256)value);
#else
    store(into, value);
#endif
}

ALWAYS_INLINE void store_past_cache(uint16_t* into, HalfVec value) {
#if MUOMNI_WIDTH == 16
    _mm256_stream_si256((__m256i*)into, (__m256i)value);
#elif MUOMNI_WIDTH == 8
    _mm_stream_si128((__m128i*)into, (__m128i)value);
#else
    __builtin_memcpy(into, &value, sizeof value);
#endif
}

ALWAYS_INLINE void end_streams() {
#if MUOMNI_WIDTH > 4
    _mm_sfence();
#endif
}

ALWAYS_INLINE Four load_four(const float* from) {
    Four value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

ALWAYS_INLINE void store_four(float* into, Four value) { __builtin_memcpy(into, &value, sizeof value); }

#if defined(__clang__)
#define MUOMNI_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define MUOMNI_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, FourIndices{i, j, k, l})
#endif

// Transposes 4 x 4.
ALWAYS_INLINE void transpose_four(Four (&x)[4]) {
    const Four a = MUOMNI_SHUFFLE(x[0], x[1], 0, 4, 1, 5), b = MUOMNI_SHUFFLE(x[2], x[3], 0, 4, 1, 5);
    const Four c = MUOMNI_SHUFFLE(x[0], x[1], 2, 6, 3, 7), d = MUOMNI_SHUFFLE(x[2], x[3], 2, 6, 3, 7);
    x[0] = MUOMNI_SHUFFLE(a, b, 0, 1, 4, 5);
    x[1] = MUOMNI_SHUFFLE(a, b, 2, 3, 6, 7);
    x[2] = MUOMNI_SHUFFLE(c, d, 0, 1, 4, 5);
    x[3] = MUOMNI_SHUFFLE(c, d, 2, 3, 6, 7);
}

// x[i][l] = rows[l][n + i]: four columns of W rows. Putting quarters together while loading leaves the one port
// that shuffles only the 4 x 4 transposes.
#if MUOMNI_WIDTH == 16
ALWAYS_INLINE Vec quarters(const float* const* rows, int64_t n) {
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + n));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(rows[4] + n), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(rows[8] + n), 2);
    return (Vec)_mm512_insertf32x4(x, _mm_loadu_ps(rows[12] + n), 3);
}

ALWAYS_INLINE void columns(const float* const* rows, int64_t n, Vec (&x)[4]) {
    const __m512 p = (__m512)quarters(rows, n), q = (__m512)quarters(rows + 1, n);
    const __m512 r = (__m512)quarters(rows + 2, n), s = (__m512)quarters(rows + 3, n);
    const __m512 a = _mm512_unpacklo_ps(p, q), b = _mm512_unpacklo_ps(r, s);
    const __m512 c = _mm512_unpackhi_ps(p, q), d = _mm512_unpackhi_ps(r, s);
    x[0] = (Vec)_mm512_shuffle_ps(a, b, 0x44);
    x[1] = (Vec)_mm512_shuffle_ps(a, b, 0xee);
    x[2] = (Vec)_mm512_shuffle_ps(c, d, 0x44);
    x[3] = (Vec)_mm512_shuffle_ps(c, d, 0xee);
}
#elif MUOMNI_WIDTH == 8
ALWAYS_INLINE __m256 halves(const float* const* rows, int64_t n) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[0] + n)), _mm_loadu_ps(rows[4] + n), 1);
}

ALWAYS_INLINE void columns(const float* const* rows, int64_t n, Vec (&x)[4]) {
    const __m256 p = halves(rows, n), q = halves(rows + 1, n), r = halves(rows + 2, n), s = halves(rows + 3, n);
    const __m256 a = _mm256_unpacklo_ps(p, q), b = _mm256_unpacklo_ps(r, s);
    const __m256 c = _mm256_unpackhi_ps(p, q), d = _mm256_unpackhi_ps(r, s);
    x[0] = (Vec)_mm256_shuffle_ps(a, b, 0x44);
    x[1] = (Vec)_mm256_shuffle_ps(a, b, 0xee);
    x[2] = (Vec)_mm256_shuffle_ps(c, d, 0x44);
    x[3] = (Vec)_mm256_shuffle_ps(c, d, 0xee);
}
#else
ALWAYS_INLINE void columns(const float* const* rows, int64_t n, Vec (&x)[4]) {
    for (int i = 0; i < 4; ++i) x[i] = load_four(rows[i] + n);
    transpose_four(x);
}
#endif

ALWAYS_INLINE Vec larger(Vec x, float floor) {
#if MUOMNI_WIDTH == 16
    return (Vec)_mm512_max_ps((__m512)x, _mm512_set1_ps(floor));
#else
    const IntVec above = x > floor;
    return (Vec)((above & (IntVec)x) | (~above & (IntVec)(Vec{} + floor)));
#endif
}

#if MUOMNI_WIDTH == 16
// unit * ln of normal positive x = m * 2^e, 1 <= m < 2: a table of 1 / c and ln c for the 32 intervals of m, and with
// r = m / c - 1, below 1/64, r - r^2 / 2 + r^3 / 3. The error of the whole is below 2e-8 before rounding.
struct Logarithm {
    __m512 inverse[2], log[2];

    float unit;

    ALWAYS_INLINE Logarithm(const float* table, float unit) : unit(unit) {
        UNROLL for (int i = 0; i < 2; ++i) {
            inverse[i] = _mm512_loadu_ps(table + 16 * i);
            log[i] = (__m512)(unit * (Vec)_mm512_loadu_ps(table + 32 + 16 * i));
        }
    }

    ALWAYS_INLINE Vec operator()(Vec x) const {
        const __m512i bits = (__m512i)x, interval = _mm512_srli_epi32(bits, 18);
        constexpr int A_AND_B_OR_C = 0xea;
        const Vec mantissa = (Vec)_mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(0x007fffff),
                                                            _mm512_set1_epi32(0x3f800000), A_AND_B_OR_C);
        const Vec inv = (Vec)_mm512_permutex2var_ps(inverse[0], interval, inverse[1]);
        const Vec ln_c = (Vec)_mm512_permutex2var_ps(log[0], interval, log[1]);
        const Vec exponent = (Vec)_mm512_getexp_ps((__m512)x), r = mantissa * inv - 1.0f;
        const Vec series = (r * (0.333333333f * unit) - 0.5f * unit) * r + unit;
        return r * series + (exponent * (0.693147180559945f * unit) + ln_c);
    }
};
#else
// unit * ln of normal positive x = m * 2^e, m in [sqrt(1/2), sqrt(2)): with f = m - 1, f - f^2 / 2 + f^3 P(f). P is a
// minimax fit of degree 6; the error of the whole is below 7e-9 before rounding.
struct Logarithm {
    float unit;

    Logarithm(const float*, float unit) : unit(unit) {}

    ALWAYS_INLINE Vec operator()(Vec x) const {
        constexpr int32_t SQRT_HALF = 0x3f3504f3;
        const IntVec shifted = (IntVec)x - SQRT_HALF;
        const Vec exponent = __builtin_convertvector(shifted >> 23, Vec);
        const Vec f = (Vec)((shifted & 0x007fffff) + SQRT_HALF) - 1.0f;
        Vec p = f * 0.0867217558f - 0.143790115f;
        p = p * f + 0.149779975f;
        p = p * f - 0.16564425f;
        p = p * f + 0.199548753f;
        p = p * f - 0.250016988f;
        p = p * f + 0.333341659f;
        const Vec f2 = f * f;
        // ln 2 in two parts, the first exact times any exponent.
        return unit * (exponent * 0.693359375f + (f + (f2 * (f * p - 0.5f) + exponent * -2.12194440e-4f)));
    }
};
#endif
