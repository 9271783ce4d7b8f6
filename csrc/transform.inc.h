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

// unit * ln(max(mel, floor)) of one band for all lanes; `wrong` collects what is not a number from powers that are
// not finite.
ALWAYS_INLINE void log_band(const TableView& tables, int band, const float* power, const Logarithm& ln, float floor,
                            float unit, Vec* wrong, float* into) {
    const float* bin = power + static_cast<int64_t>(tables.band_begin[band]) * LANES;
    const float *first = tables.weights + tables.band_offset[band], *last = tables.weights + tables.band_offset[band + 1];
    for (int at = 0; at < LANES; at += W) {
        Vec sum = {};
        const float* from = bin + at;
        for (const float* weight = first; weight < last; ++weight, from += LANES) sum += *weight * load(from);
        wrong[at / W] += sum * 0.0f;
        store(into + at, unit * ln(larger(sum, floor)));
    }
}

// W rows of a tile at [row][lane] to W columns of every lane's row.
ALWAYS_INLINE void store_tile(const float* tile, int band, bool stream, float* const* out_rows) {
    const float* rows[W];
    UNROLL for (int i = 0; i < W; ++i) rows[i] = tile + i * LANES;
    for (int l = 0; l < LANES; l += 4) {
        Vec x[4];
        columns(rows, l, x);
        UNROLL for (int i = 0; i < 4; ++i) {
#if MUOMNI_WIDTH == 16
            // A whole line goes past the cache: it need not be read first, and nobody waits for it.
            if (stream) {
                _mm512_stream_ps(out_rows[l + i] + band, (__m512)x[i]);
                continue;
            }
#endif
            store(out_rows[l + i] + band, x[i]);
        }
    }
    (void)stream;
}

// Returns a bit for every lane that met a power that is not finite.
uint32_t log_bands(const TableView& tables, const float* power, float floor, float unit, const Block& block,
                   float* tile) {
    const Logarithm ln(tables.logarithm);
    Vec wrong[LANES / W] = {};
    int band = 0;
    for (; band + W <= tables.n_mels; band += W) {
        for (int i = 0; i < W; ++i) log_band(tables, band + i, power, ln, floor, unit, wrong, tile + i * LANES);
        store_tile(tile, band, block.stream, block.out_rows);
    }
    for (; band < tables.n_mels; ++band) {
        log_band(tables, band, power, ln, floor, unit, wrong, tile);
        for (int l = 0; l < LANES; ++l) block.out_rows[l][band] = tile[l];
    }
    uint32_t bad = 0;
    for (int l = 0; l < LANES; ++l) bad |= wrong[l / W][l % W] == 0.0f ? 0u : 1u << l;
    return bad;
}

uint32_t run_block(const TableView& tables, float floor, float unit, const Block& block, Lane* scratch) {
    float* tile = scratch->value;
    float* power = tile + W * LANES;
    float* rest = power + (tables.n_fft / 2 + 1) * LANES;
    if (tables.n_fft == 400)
        power_spectrum_400(tables, block, rest, power);
    else
        power_spectrum_any(tables, block, rest, power);
    return log_bands(tables, power, floor, unit, block, tile);
}

void widen(const int16_t* from, int64_t n, float* into) {
    for (int64_t i = 0; i < n; ++i) into[i] = static_cast<float>(from[i]) * (1.0f / 32768.0f);
}

float largest(const float* x, int64_t n) {
    Vec best = Vec{} - 3.4e38f;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const Vec next = load(x + i);
        const IntVec above = next > best;
        best = (Vec)((above & (IntVec)next) | (~above & (IntVec)best));
    }
    float found = i < n ? x[i] : best[0];
    for (; i < n; ++i) found = x[i] > found ? x[i] : found;
    for (int l = 0; l < W; ++l) found = best[l] > found ? best[l] : found;
    return found;
}

void clamp_whisper(float lowest, int64_t n, float* x) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(x + i, (larger(load(x + i), lowest) + 4.0f) * 0.25f);
    for (; i < n; ++i) x[i] = ((x[i] > lowest ? x[i] : lowest) + 4.0f) * 0.25f;
}

void end_streams() {
#if MUOMNI_WIDTH == 16
    _mm_sfence();
#endif
}

}  // namespace

SimdLevel level();
SimdLevel level() { return {MUOMNI_NAME, run_block, widen, largest, clamp_whisper, end_streams}; }

}  // namespace MUOMNI_LEVEL
}  // namespace muomni
