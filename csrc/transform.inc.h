// One block of LANES frames -> log-mel for one instruction set: window and transpose, power spectrum, mel bands by
// their non-zeros, logarithm, transpose back.
// Included by transform_<level>.cpp with MUOMNI_LEVEL (namespace) and MUOMNI_WIDTH (floats a vector register).

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace muomni {
namespace MUOMNI_LEVEL {
namespace {

#include "vector.inc.h"
//
#include "fft.inc.h"
//
#include "dft400.inc.h"
//
#include "rows.inc.h"
//
#include "decode.inc.h"

// Frames into lanes, windowed: even samples are the real, odd samples the imaginary part.
void load_frames(const TableView& tables, const float* const* rows, Buffer into) {
    const float* window = tables.window;
    int n = 0;
    for (; n + 4 <= tables.n_fft; n += 4) {
        for (int at = 0; at < LANES; at += W) {
            Vec x[4];
            columns(rows + at, n, x);
            for (int i = 0; i < 4; ++i) {
                float* part = i % 2 ? into.im : into.re;
                store(part + static_cast<int64_t>(n / 2 + i / 2) * LANES + at, x[i] * window[n + i]);
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
void split_spectrum(const TableView& tables, Buffer z, float* power) {
    const int64_t half = tables.n_fft / 2;
    for (int64_t k = 0; k <= half / 2; ++k) {
        const float re = tables.twiddle[2 * k], im = tables.twiddle[2 * k + 1];
        for (int at = 0; at < LANES; at += W) {
            const Complex a = load_complex(z, k * LANES + at), b = load_complex(z, (half - k) % half * LANES + at);
            const Complex even = {a.re + b.re, a.im - b.im};
            const Complex odd = times({a.im + b.im, b.re - a.re}, re, im);
            store(power + k * LANES + at, power_of(even + odd));
            store(power + (half - k) * LANES + at, power_of(even - odd));
        }
    }
}

void power_spectrum_any(const TableView& tables, const Block& block, float* scratch, float* power) {
    const int64_t half = static_cast<int64_t>(tables.n_fft / 2) * LANES;
    const Buffer a{scratch, scratch + half}, b{scratch + 2 * half, scratch + 3 * half};
    load_frames(tables, block.rows, a);
    split_spectrum(tables, fft(tables, a, b), power);
}

void power_spectrum(const TableView& tables, const Block& block, float* scratch, float* power) {
    if (tables.n_fft == 400)
        power_spectrum_400(tables, block, scratch, power);
    else
        power_spectrum_any(tables, block, scratch, power);
}

// Eight bands of a part of the lanes.
ALWAYS_INLINE void band_powers(const TableView& tables, int eight, const float* weights, const float* power,
                               Vec (&sums)[8]) {
    const float* bins[8];
    UNROLL for (int i = 0; i < 8; ++i) {
        bins[i] = power + static_cast<int64_t>(tables.band_begin[8 * eight + i]) * LANES;
        sums[i] = Vec{};
    }
    const int64_t n = tables.eight_bins[eight];
    for (int64_t bin = 0; bin < n; ++bin, weights += 8)
        UNROLL for (int i = 0; i < 8; ++i) sums[i] += weights[i] * load(bins[i] + bin * LANES);
}

// `wrong` becomes not a number where x is not finite.
ALWAYS_INLINE void check_finite(Vec x, Vec& wrong) { wrong += x * 0.0f; }

// A bit for every lane that met a power that is not finite.
ALWAYS_INLINE uint32_t wrong_lanes(const Vec* wrong) {
    uint32_t bad = 0;
    for (int l = 0; l < LANES; ++l) bad |= wrong[l / W][l % W] == 0.0f ? 0u : 1u << l;
    return bad;
}

// Bands of a tile, a cache line of every row.
constexpr int TILE = 16;

// A tile at [band][lane] to TILE columns of every lane's row.
ALWAYS_INLINE void store_tile(const float* tile, int band, bool stream, float* const* out_rows) {
    const float* rows[TILE];
    UNROLL for (int i = 0; i < TILE; ++i) rows[i] = tile + i * LANES;
    for (int l = 0; l < LANES; l += 4) {
        Vec x[TILE / W][4];
        UNROLL for (int part = 0; part < TILE / W; ++part) columns(rows + part * W, l, x[part]);
        UNROLL for (int i = 0; i < 4; ++i) {
            float* into = out_rows[l + i] + band;
            UNROLL for (int part = 0; part < TILE / W; ++part) {
                if (stream)
                    store_past_cache(into + part * W, x[part][i]);
                else
                    store(into + part * W, x[part][i]);
            }
        }
    }
}

// unit * ln(max(mel, floor)) of every frame.
uint32_t log_bands(const TableView& tables, const float* power, float floor, float unit, const Block& block,
                   float* tile) {
    const Logarithm ln(tables.logarithm, unit);
    const float* weights = tables.weights;
    Vec wrong[LANES / W] = {}, largest[LANES / W];
    for (Vec& each : largest) each = Vec{} - 3.4e38f;
    for (int eight = 0; 8 * eight < tables.n_mels; weights += 8 * tables.eight_bins[eight], ++eight) {
        float* into = tile + eight % 2 * 8 * LANES;
        for (int at = 0; at < LANES; at += W) {
            Vec sums[8];
            band_powers(tables, eight, weights, power + at, sums);
            UNROLL for (int i = 0; i < 8; ++i) {
                check_finite(sums[i], wrong[at / W]);
                sums[i] = ln(larger(sums[i], floor));
                store(into + i * LANES + at, sums[i]);
            }
            // The last eight may hold bands that are not there.
            if (block.largest != nullptr)
                for (int i = 0; i < 8 && 8 * eight + i < tables.n_mels; ++i)
                    largest[at / W] = larger(sums[i], largest[at / W]);
        }
        const int band = 8 * eight;
        if (eight % 2 == 1 && band + 8 <= tables.n_mels) {
            store_tile(tile, band - 8, block.stream, block.out_rows);
        } else if (band + 8 >= tables.n_mels) {
            const int first = eight % 2 == 1 ? band - 8 : band;
            for (int i = 0; first + i < tables.n_mels; ++i)
                for (int l = 0; l < LANES; ++l) block.out_rows[l][first + i] = tile[i * LANES + l];
        }
    }
    if (block.largest != nullptr)
        for (int at = 0; at < LANES; at += W) store(block.largest + at, largest[at / W]);
    return wrong_lanes(wrong);
}

// Scratch: TILE lanes of a tile, the power, and the transform's own.
uint32_t run_block(const TableView& tables, float floor, float unit, const Block& block, Lane* scratch) {
    float* tile = scratch->value;
    float* power = tile + TILE * LANES;
    power_spectrum(tables, block, power + (tables.n_fft / 2 + 1) * LANES, power);
    return log_bands(tables, power, floor, unit, block, tile);
}

#if MUOMNI_WIDTH > 4
#include "pooled.inc.h"
#else
constexpr auto run_pooled = nullptr;
#endif

void widen(const int16_t* from, int64_t n, float* into) {
    for (int64_t i = 0; i < n; ++i) into[i] = static_cast<float>(from[i]) * (1.0f / 32768.0f);
}

void clamp_whisper(float lowest, const float* x, int64_t n, bool stream, float* into) {
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const Vec scaled = larger(load(x + i), lowest) * 0.25f + 1.0f;
        if (stream)
            store_past_cache(into + i, scaled);
        else
            store(into + i, scaled);
    }
    for (; i < n; ++i) into[i] = (x[i] > lowest ? x[i] : lowest) * 0.25f + 1.0f;
}

// Bits of bfloat16, rounded to nearest even; there is no NaN here: a clip that is not finite is an error.
void to_bfloat16(const float* from, int64_t n, bool stream, uint16_t* into) {
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const BitVec bits = (BitVec)load(from + i);
        const HalfVec upper = __builtin_convertvector((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16, HalfVec);
        if (stream)
            store_past_cache(into + i, upper);
        else
            __builtin_memcpy(into + i, &upper, sizeof upper);
    }
    for (; i < n; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, from + i, sizeof bits);
        into[i] = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

// The mean of `count` rows, added in their order; a row's memory is read once, from its first column to its last.
void mean_rows(const float* rows, int64_t count, int64_t width, float* into) {
    constexpr int64_t AT_ONCE = 8;
    const float divisor = static_cast<float>(count);
    int64_t c = 0;
    for (; c + AT_ONCE * W <= width; c += AT_ONCE * W) {
        Vec sums[AT_ONCE];
        UNROLL for (int i = 0; i < AT_ONCE; ++i) sums[i] = load(rows + c + i * W);
        for (int64_t row = 1; row < count; ++row)
            UNROLL for (int i = 0; i < AT_ONCE; ++i) sums[i] += load(rows + row * width + c + i * W);
        UNROLL for (int i = 0; i < AT_ONCE; ++i) store(into + c + i * W, sums[i] / divisor);
    }
    for (; c < width; ++c) {
        float sum = rows[c];
        for (int64_t row = 1; row < count; ++row) sum += rows[row * width + c];
        into[c] = sum / divisor;
    }
}

void add(const float* x, int64_t n, float* into) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(into + i, load(into + i) + load(x + i));
    for (; i < n; ++i) into[i] += x[i];
}

}  // namespace

SimdLevel level();
SimdLevel level() {
    return {MUOMNI_NAME, run_block, run_pooled, widen, clamp_whisper, to_bfloat16, mean_rows, add,
            end_streams, row_level(), {{product_float, product_int8}, attend}};
}

}  // namespace MUOMNI_LEVEL
}  // namespace muomni
