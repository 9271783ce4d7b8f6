// The fuzz driver's log-mel cases: settings, clips and samples, and what docs/audio.md says of them: which samples a
// frame sees, how many frames a clip has, which clip is not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "fuzz_random.h"
#include "log_mel.h"

namespace fuzz {

using muomni::Log;
using muomni::Padding;
using muomni::Ragged;

// Log-mel values from which results of whole cache lines go past the cache (csrc/blocks.h).
constexpr int64_t HUGE_VALUES = (16 << 20) / sizeof(float);

struct Case {
    int n_fft, hop, n_mels;
    Padding padding;
    float floor;
    std::vector<float> window, filters;
    std::vector<int64_t> cu_samples{0}, cu_frames{0};
    int64_t n_clips() const { return static_cast<int64_t>(cu_samples.size()) - 1; }
    Ragged ragged() const { return {cu_samples.data(), cu_frames.data(), n_clips()}; }
};

inline int random_n_fft(Random& random) {
    if (random.one_in(2)) return random.one_in(3) ? 512 : 400;
    const int64_t most = random.pick({6, 16, 64, 64, 130, 130, 260, 600});
    return static_cast<int>(random.one_in(100) ? 2 * random.between(2, 512) : 2 * random.between(2, most / 2));
}

inline void make_window(Random& random, Case& c) {
    c.window.resize(static_cast<size_t>(c.n_fft));
    const int64_t kind = random.below(3), margin = random.one_in(4) ? random.below(c.n_fft / 2) : 0;
    for (int n = 0; n < c.n_fft; ++n)
        c.window[static_cast<size_t>(n)] =
            n < margin || n >= c.n_fft - margin ? 0.0f
            : kind == 0 ? static_cast<float>(0.5 - 0.5 * std::cos(2.0 * PI * n / c.n_fft))
            : kind == 1 ? 1.0f
                        : static_cast<float>(random.real(0.05, 1.0));
}

// Overlapping triangles as of a mel scale, narrow ones between two bins empty.
inline void make_triangles(Random& random, Case& c) {
    const int64_t bins = c.n_fft / 2 + 1;
    std::vector<double> edges;
    for (int i = 0; i < c.n_mels + 2; ++i) edges.push_back(random.real(0.0, static_cast<double>(bins)));
    std::sort(edges.begin(), edges.end());
    for (int band = 0; band < c.n_mels; ++band) {
        const double *edge = edges.data() + band, height = random.real(0.01, 1.0);
        for (int64_t k = 0; k < bins; ++k) {
            const double x = static_cast<double>(k), up = (x - edge[0]) / (edge[1] - edge[0]);
            const double weight = height * std::min(up, (edge[2] - x) / (edge[2] - edge[1]));
            if (weight > 1e-6) c.filters[static_cast<size_t>(band * bins + k)] = static_cast<float>(weight);
        }
    }
}

// Bands of a few neighbouring bins anywhere, holes in some; in a few cases of all bins.
inline void make_bands(Random& random, Case& c) {
    const int64_t bins = c.n_fft / 2 + 1;
    const bool dense = random.one_in(20);
    for (int band = 0; band < c.n_mels; ++band) {
        if (random.one_in(8)) continue;
        const int64_t first = dense ? 0 : random.below(bins);
        const int64_t last = dense ? bins : std::min(bins, first + random.between(1, 12));
        for (int64_t k = first; k < last; ++k)
            if (k == first || !random.one_in(10))
                c.filters[static_cast<size_t>(band * bins + k)] = static_cast<float>(random.real(1e-4, 1.0));
    }
}

inline void make_filters(Random& random, Case& c) {
    c.filters.assign(static_cast<size_t>(c.n_mels * (c.n_fft / 2 + 1)), 0.0f);
    if (random.one_in(2))
        make_triangles(random, c);
    else
        make_bands(random, c);
    // Were every band empty, no power could tell that a sample is not finite.
    if (*std::max_element(c.filters.begin(), c.filters.end()) == 0.0f) c.filters[0] = 1.0f;
}

// By the documented length rule.
inline int64_t frames_of(const Case& c, int64_t n_samples) {
    return (n_samples + (c.padding == Padding::causal ? c.hop - 1 : 0)) / c.hop;
}

// Mostly a few frames; `many`: enough to be shared among threads; `huge`: more than are kept in the cache.
inline void make_clips(Random& random, Case& c, bool many, bool huge) {
    const int64_t n_clips = huge                ? random.between(1, 3)
                            : random.one_in(40) ? 0
                            : random.one_in(60) ? 40
                                                : random.between(1, 5);
    for (int64_t clip = 0; clip < n_clips; ++clip) {
        const int64_t most = huge ? 0 : many ? 300 : 20, least = huge ? HUGE_VALUES / c.n_mels / n_clips : 0;
        const int64_t near = c.hop * random.between(least + 1, std::max(most, least + 40)) + random.between(-1, 1);
        const int64_t n = huge ? near
                               : random.pick<int64_t>({0, 1, near, random.below(c.hop + 1), random.below(3 * c.hop),
                                                       c.hop * random.below(many ? 300 : 12)});
        const bool too_short = c.padding == Padding::reflect && n >= c.hop && n <= c.n_fft / 2;
        const int64_t n_samples = too_short ? c.n_fft / 2 + 1 : n;
        c.cu_samples.push_back(c.cu_samples.back() + n_samples);
        c.cu_frames.push_back(c.cu_frames.back() + frames_of(c, n_samples));
    }
}

inline Case make_case(Random& random) {
    Case c;
    const bool huge = random.one_in(20'000), many = random.one_in(100);
    c.n_fft = huge ? static_cast<int>(2 * random.between(2, 16)) : random_n_fft(random);
    c.hop = static_cast<int>(random.one_in(3)    ? std::max(1, c.n_fft * 2 / 5)
                             : random.one_in(10) ? c.n_fft
                                                 : random.between(1, c.n_fft));
    // Short hops would make thousands of frames of the reflected clips, which are at least half a window long.
    c.padding = random.one_in(3) && c.hop * 8 >= c.n_fft ? Padding::reflect : Padding::causal;
    c.n_mels = static_cast<int>(huge                ? random.pick({64, 128})
                                : random.one_in(12) ? random.pick({80, 128})
                                                    : random.between(1, 24));
    c.floor = static_cast<float>(random.one_in(2) ? 1e-10 : random.pick({1.17549435e-38, 1e-20, 1e-7, 1.0, 3.4e38}));
    make_window(random, c);
    make_filters(random, c);
    make_clips(random, c, many, huge);
    return c;
}

// Amplitudes up to 1e14 keep every power below the largest float.
inline float random_sample(Random& random, int64_t kind, double size, int64_t n) {
    const double noise = random.real(-1.0, 1.0);
    const double value = kind == 0   ? 0.0
                         : kind == 1 ? 1.0
                         : kind == 2 ? std::sin(0.3 * static_cast<double>(n))
                         : kind == 3 ? (random.one_in(50) ? noise : 0.0)
                         : kind == 4 ? noise * std::pow(10.0, 12.0 * random.real(-1.0, 0.0))
                                     : noise;
    return static_cast<float>(size * value);
}

template <typename Sample>
Exact<Sample> make_waveform(Random& random, const Case& c) {
    const int64_t n = c.cu_samples.back(), kind = random.below(8);
    Exact<Sample> wave(n, random.one_in(2) ? 0 : random.below(16));
    const double size = std::is_same_v<Sample, int16_t> ? random.pick({2.0, 8'000.0, 32'767.0})
                        : random.one_in(4)              ? random.pick({1e-40, 1e-30, 1e-5, 1e14})
                                                        : 1.0;
    for (int64_t i = 0; i < n; ++i) wave.data[i] = static_cast<Sample>(random_sample(random, kind, size, i));
    if constexpr (std::is_same_v<Sample, int16_t>) {
        if (n > 0 && random.one_in(2)) wave.data[random.below(n)] = -32'768;
    } else {
        const double infinity = HUGE_VAL;
        if (n > 0 && random.one_in(10))
            for (int64_t left = random.between(1, 3); left > 0; --left) {
                const double bad = random.pick({std::nan(""), infinity, -infinity, 3e38, -3e38});
                wave.data[random.below(n)] = static_cast<float>(bad);
            }
    }
    return wave;
}

inline double wide(float x) { return x; }
inline double wide(int16_t x) { return x / 32'768.0; }

// Sample n of a frame of a clip, by the definition of the padding.
template <typename Sample>
double sample_at(const Case& c, const Exact<Sample>& wave, int64_t clip, int64_t frame, int64_t n) {
    const int64_t n_samples = c.cu_samples[clip + 1] - c.cu_samples[clip];
    int64_t at = frame * c.hop + n - (c.padding == Padding::causal ? c.n_fft - c.hop : c.n_fft / 2);
    if (c.padding == Padding::reflect) {
        if (at < 0) at = -at;
        if (at >= n_samples) at = 2 * (n_samples - 1) - at;
    }
    return at < 0 || at >= n_samples ? 0.0 : wide(wave.data[c.cu_samples[clip] + at]);
}

template <typename Sample>
int64_t expected_bad_clip(const Case& c, const Exact<Sample>& wave) {
    if (std::is_same_v<Sample, int16_t> ||
        std::none_of(wave.data, wave.data + wave.size, [](Sample x) { return !(std::abs(wide(x)) < 1e30); }))
        return -1;
    for (int64_t clip = 0; clip < c.n_clips(); ++clip)
        for (int64_t frame = 0; frame < c.cu_frames[clip + 1] - c.cu_frames[clip]; ++frame)
            for (int n = 0; n < c.n_fft; ++n) {
                const double x = sample_at(c, wave, clip, frame, n);
                if (!std::isfinite(x) || (std::abs(x) > 1e30 && c.window[static_cast<size_t>(n)] != 0.0f)) return clip;
            }
    return -1;
}

}  // namespace fuzz
