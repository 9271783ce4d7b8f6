// One block of LANES frames -> log-mel for one instruction set: window and transpose, real FFT as a complex one of
// half the length, power, mel bands by their non-zeros, logarithm, transpose back.
// Included by transform_<level>.cpp with MUOMNI_LEVEL (namespace) and MUOMNI_WIDTH (floats a vector register).

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace muomni {
namespace MUOMNI_LEVEL {
namespace {

constexpr int W = MUOMNI_WIDTH;
typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourIndices __attribute__((vector_size(16)));

ALWAYS_INLINE Vec load(const float* from) {
    Vec value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

ALWAYS_INLINE void store(float* into, Vec value) { __builtin_memcpy(into, &value, sizeof value); }

#include "fft.inc.h"

ALWAYS_INLINE Four load_four(const float* from) {
    Four value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

#if defined(__clang__)
#define MUOMNI_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define MUOMNI_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, FourIndices{i, j, k, l})
#endif

ALWAYS_INLINE void transpose_four(Four (&x)[4]) {
    const Four a = MUOMNI_SHUFFLE(x[0], x[1], 0, 4, 1, 5), b = MUOMNI_SHUFFLE(x[2], x[3], 0, 4, 1, 5);
    const Four c = MUOMNI_SHUFFLE(x[0], x[1], 2, 6, 3, 7), d = MUOMNI_SHUFFLE(x[2], x[3], 2, 6, 3, 7);
    x[0] = MUOMNI_SHUFFLE(a, b, 0, 1, 4, 5);
    x[1] = MUOMNI_SHUFFLE(a, b, 2, 3, 6, 7);
    x[2] = MUOMNI_SHUFFLE(c, d, 0, 1, 4, 5);
    x[3] = MUOMNI_SHUFFLE(c, d, 2, 3, 6, 7);
}

// Frames into lanes, windowed: even samples are the real, odd samples the imaginary part.
void load_frames(const TableView& tables, const float* const* rows, Buffer into) {
    const float* window = tables.window;
    int n = 0;
    for (; n + 4 <= tables.n_fft; n += 4) {
        const int64_t at = static_cast<int64_t>(n / 2) * LANES;
        for (int l = 0; l < LANES; l += 4) {
            Four x[4] = {load_four(rows[l] + n), load_four(rows[l + 1] + n), load_four(rows[l + 2] + n),
                         load_four(rows[l + 3] + n)};
            transpose_four(x);
            for (int i = 0; i < 4; ++i) {
                x[i] *= window[n + i];
                float* part = i % 2 ? into.im : into.re;
                __builtin_memcpy(part + at + i / 2 * LANES + l, &x[i], sizeof x[i]);
            }
        }
    }
    for (; n < tables.n_fft; ++n) {
        float* part = (n % 2 ? into.im : into.re) + static_cast<int64_t>(n / 2) * LANES;
        for (int l = 0; l < LANES; ++l) part[l] = rows[l][n] * window[n];
    }
}

// |X[k]|^2 of the real signal z holds: X[k] = E + w O, X[n/2 - k] = conj(E - w O), with w = exp(-2 pi i k / n),
// E = Z[k] + conj Z[-k], O = -i (Z[k] - conj Z[-k]); the halves are in the window.
void power_spectrum(const TableView& tables, Buffer z, float* power) {
    const int64_t half = tables.n_fft / 2;
    for (int64_t k = 0; k <= half / 2; ++k) {
        const float re = tables.unpack[2 * k], im = tables.unpack[2 * k + 1];
        for (int at = 0; at < LANES; at += W) {
            const Complex a = load_complex(z, k * LANES + at), b = load_complex(z, (half - k) % half * LANES + at);
            const Complex even = {a.re + b.re, a.im - b.im};
            const Complex odd = times({a.im + b.im, b.re - a.re}, re, im);
            const Complex x = even + odd, y = even - odd;
            store(power + k * LANES + at, x.re * x.re + x.im * x.im);
            store(power + (half - k) * LANES + at, y.re * y.re + y.im * y.im);
        }
    }
}

// ln(x) of normal positive x = m * 2^e, m in [sqrt(1/2), sqrt(2)): with f = m - 1, f - f^2 / 2 + f^3 P(f). P is a
// minimax fit of degree 6; the error of the whole is below 7e-9 before rounding.
ALWAYS_INLINE Vec natural_log(Vec x) {
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
    return exponent * 0.693359375f + (f + (f2 * (f * p - 0.5f) + exponent * -2.12194440e-4f));
}

ALWAYS_INLINE Vec choose(IntVec condition, Vec yes, Vec no) {
    return (Vec)((condition & (IntVec)yes) | (~condition & (IntVec)no));
}

// unit * ln(max(mel, floor)); a bit of the result for every lane that met a power that is not finite.
uint32_t log_bands(const TableView& tables, const float* power, float floor, float unit, float* mel) {
    uint32_t bad = 0;
    for (int at = 0; at < LANES; at += W) {
        IntVec finite = ~IntVec{};
        for (int band = 0; band < tables.n_mels; ++band) {
            const float* bin = power + static_cast<int64_t>(tables.band_begin[band]) * LANES + at;
            Vec sum = {};
            for (int w = tables.band_offset[band]; w < tables.band_offset[band + 1]; ++w, bin += LANES)
                sum += tables.weights[w] * load(bin);
            finite &= sum <= 3.4e38f;
            const Vec floored = choose(sum > floor, sum, Vec{} + floor);
            store(mel + static_cast<int64_t>(band) * LANES + at, unit * natural_log(floored));
        }
        for (int l = 0; l < W; ++l) bad |= finite[l] ? 0u : 1u << (at + l);
    }
    return bad;
}

void store_frames(const TableView& tables, const float* mel, float* const* out_rows) {
    int band = 0;
    for (; band + 4 <= tables.n_mels; band += 4) {
        for (int l = 0; l < LANES; l += 4) {
            Four x[4];
            for (int i = 0; i < 4; ++i) x[i] = load_four(mel + static_cast<int64_t>(band + i) * LANES + l);
            transpose_four(x);
            for (int i = 0; i < 4; ++i) __builtin_memcpy(out_rows[l + i] + band, &x[i], sizeof x[i]);
        }
    }
    for (; band < tables.n_mels; ++band)
        for (int l = 0; l < LANES; ++l) out_rows[l][band] = mel[static_cast<int64_t>(band) * LANES + l];
}

uint32_t run_block(const TableView& tables, float floor, float unit, const float* const* rows, float* const* out_rows,
                   Lane* scratch) {
    float* at = scratch->value;
    const int64_t half = static_cast<int64_t>(tables.n_fft / 2) * LANES;
    const Buffer a{at, at + half}, b{at + 2 * half, at + 3 * half};
    float* power = at + 4 * half;
    float* mel = power + half + LANES;
    load_frames(tables, rows, a);
    power_spectrum(tables, fft(tables, a, b), power);
    const uint32_t bad = log_bands(tables, power, floor, unit, mel);
    store_frames(tables, mel, out_rows);
    return bad;
}

}  // namespace

TransformBlock transform_block();
TransformBlock transform_block() { return run_block; }

}  // namespace MUOMNI_LEVEL
}  // namespace muomni
