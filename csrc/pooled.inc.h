// The mean of logarithms over eight frames with one logarithm: the sum of ln(m 2^e) is ln of the product of the m and
// ln 2 times the sum of the e. Lanes are multiplied and added across by a tree that transposes on the way.
// Part of one instruction set's namespace; W is 16 or 8.

#if MUOMNI_WIDTH == 16
#define MUOMNI_PAIR(a, b, select) (Vec) _mm512_shuffle_ps((__m512)(a), (__m512)(b), select)
#define MUOMNI_LOW_QUARTERS(a, b) (Vec) _mm512_shuffle_f32x4((__m512)(a), (__m512)(b), 0x88)
#define MUOMNI_HIGH_QUARTERS(a, b) (Vec) _mm512_shuffle_f32x4((__m512)(a), (__m512)(b), 0xdd)
#else
#define MUOMNI_PAIR(a, b, select) (Vec) _mm256_shuffle_ps((__m256)(a), (__m256)(b), select)
#define MUOMNI_LOW_QUARTERS(a, b) (Vec) _mm256_permute2f128_ps((__m256)(a), (__m256)(b), 0x20)
#define MUOMNI_HIGH_QUARTERS(a, b) (Vec) _mm256_permute2f128_ps((__m256)(a), (__m256)(b), 0x31)
#endif

struct Product {
    static ALWAYS_INLINE Vec join(Vec a, Vec b) { return a * b; }
};
struct Sum {
    static ALWAYS_INLINE Vec join(Vec a, Vec b) { return a + b; }
};

// Eight bands of W lanes -> for each group of eight lanes the eight joined bands.
template <typename How>
ALWAYS_INLINE Vec join_eight(const Vec* x) {
    Vec pairs[4], fours[2];
    UNROLL for (int i = 0; i < 4; ++i)
        pairs[i] = How::join(MUOMNI_PAIR(x[2 * i], x[2 * i + 1], 0x88), MUOMNI_PAIR(x[2 * i], x[2 * i + 1], 0xdd));
    UNROLL for (int i = 0; i < 2; ++i)
        fours[i] = How::join(MUOMNI_PAIR(pairs[2 * i], pairs[2 * i + 1], 0x88),
                             MUOMNI_PAIR(pairs[2 * i], pairs[2 * i + 1], 0xdd));
    const Vec low = MUOMNI_LOW_QUARTERS(fours[0], fours[1]), high = MUOMNI_HIGH_QUARTERS(fours[0], fours[1]);
#if MUOMNI_WIDTH == 16
    // [group 0 of bands 0-3, group 1 of the same, group 0 of bands 4-7, group 1]: put the groups together.
    const __m512 y = (__m512)How::join(low, high);
    return (Vec)_mm512_shuffle_f32x4(y, y, 0xd8);
#else
    return How::join(low, high);
#endif
}

// m and e of x = m 2^e, 1 <= m < 2.
ALWAYS_INLINE Vec mantissa_of(Vec x) { return (Vec)(((IntVec)x & 0x007fffff) | 0x3f800000); }
ALWAYS_INLINE Vec exponent_of(Vec x) {
#if MUOMNI_WIDTH == 16
    return (Vec)_mm512_getexp_ps((__m512)x);
#else
    return __builtin_convertvector(((IntVec)x >> 23) - 127, Vec);
#endif
}

uint32_t run_pooled(const TableView& tables, float floor, const Block& block, int n, Lane* scratch) {
    float* power = scratch->value;
    power_spectrum(tables, block, power + (tables.n_fft / 2 + 1) * LANES, power);
    constexpr float LN_2 = 0.693147180559945f;
    const Logarithm ln(tables.logarithm, 1.0f);
    Vec wrong[LANES / W] = {};
    float valid[LANES], share[LANES];  // a lane without a frame gets the power 1, of mantissa 1 and exponent 0
    for (int l = 0; l < LANES; ++l) {
        const int count = n - l / 8 * 8;
        valid[l] = l < n ? 1.0f : 0.0f;
        share[l] = 1.0f / static_cast<float>(count < 1 ? 1 : count < 8 ? count : 8);
    }
    const float* weights = tables.weights;
    for (int eight = 0; 8 * eight < tables.n_mels; weights += 8 * tables.eight_bins[eight], ++eight) {
        for (int at = 0; at < LANES; at += W) {
            Vec sums[8], mantissas[8], exponents[8];
            band_powers(tables, eight, weights, power + at, sums);
            UNROLL for (int i = 0; i < 8; ++i) {
                check_finite(sums[i], wrong[at / W]);
                Vec x = larger(sums[i], floor);
                if (n < LANES) {
                    const IntVec there = load(valid + at) > 0.0f;
                    x = (Vec)((there & (IntVec)x) | (~there & (IntVec)(Vec{} + 1.0f)));
                }
                mantissas[i] = mantissa_of(x);
                exponents[i] = exponent_of(x);
            }
            const Vec sum = ln(join_eight<Product>(mantissas)) + LN_2 * join_eight<Sum>(exponents);
            const Vec mean = sum * load(share + at);
            for (int group = 0; group < W / 8; ++group) {
                const int first = at + 8 * group;
                if (first < n) __builtin_memcpy(block.out_rows[first] + 8 * eight, (const float*)&mean + 8 * group, 32);
            }
        }
    }
    return wrong_lanes(wrong);
}
