// Mixed-radix complex FFT over LANES independent signals: Stockham autosort, factors 4, 2, 3, 5 and any prime.
// Data layout: real and imaginary parts apart, element n of lane l at [n * LANES + l].
#pragma once

#include <cmath>
#include <vector>

#include "lanes.h"

namespace muomni {

struct FftStage {
    int radix;
    int m;       // butterflies: n / radix of the remaining length
    int stride;  // product of the radices before
    std::vector<float> twiddle;  // (m, radix, 2): exp(-2 pi i j r / (radix * m))
    std::vector<float> root;     // (radix, radix, 2): exp(-2 pi i q r / radix)
};

inline void push_root(std::vector<float>& into, double numerator, double denominator) {
    const double angle = -2.0 * M_PI * numerator / denominator;
    into.push_back(static_cast<float>(std::cos(angle)));
    into.push_back(static_cast<float>(std::sin(angle)));
}

inline std::vector<FftStage> plan_fft(int n) {
    std::vector<FftStage> stages;
    int stride = 1;
    // Fours first, then every other factor in rising order.
    for (int radix = 4; n > 1; radix = radix == 4 ? 2 : radix == 2 ? 3 : radix + 2) {
        while (n % radix == 0) {
            FftStage stage{radix, n / radix, stride, {}, {}};
            for (int j = 0; j < stage.m; ++j)
                for (int r = 0; r < radix; ++r) push_root(stage.twiddle, static_cast<double>(j) * r, n);
            for (int q = 0; q < radix; ++q)
                for (int r = 0; r < radix; ++r) push_root(stage.root, (q * r) % radix, radix);
            stages.push_back(stage);
            n /= radix;
            stride *= radix;
        }
    }
    return stages;
}

// One stage: out[k + s (p j + r)] = twiddle[j][r] * sum_q in[k + s (j + m q)] * root[q][r].
template <int P>
MUOMNI_INLINE void fft_stage(const FftStage& stage, int radix, const float* in_re, const float* in_im,
                             float* out_re, float* out_im) {
    const int p = P ? P : radix, m = stage.m, s = stage.stride;
    for (int j = 0; j < m; ++j) {
        for (int k = 0; k < s; ++k) {
            for (int r = 0; r < p; ++r) {
                float re[LANES] = {}, im[LANES] = {};
                for (int q = 0; q < p; ++q) {
                    const float c = stage.root[2 * (q * p + r)], d = stage.root[2 * (q * p + r) + 1];
                    const float* a = in_re + static_cast<size_t>(k + s * (j + m * q)) * LANES;
                    const float* b = in_im + static_cast<size_t>(k + s * (j + m * q)) * LANES;
                    for (int l = 0; l < LANES; ++l) {
                        re[l] += a[l] * c - b[l] * d;
                        im[l] += a[l] * d + b[l] * c;
                    }
                }
                const float c = stage.twiddle[2 * (j * p + r)], d = stage.twiddle[2 * (j * p + r) + 1];
                float* x = out_re + static_cast<size_t>(k + s * (p * j + r)) * LANES;
                float* y = out_im + static_cast<size_t>(k + s * (p * j + r)) * LANES;
                for (int l = 0; l < LANES; ++l) {
                    x[l] = re[l] * c - im[l] * d;
                    y[l] = re[l] * d + im[l] * c;
                }
            }
        }
    }
}

// Transforms in place of buffer a; buffer b is scratch. Returns true when the result lies in b.
MUOMNI_INLINE bool fft(const std::vector<FftStage>& stages, float* a_re, float* a_im, float* b_re, float* b_im) {
    bool swapped = false;
    for (const FftStage& stage : stages) {
        const float* in_re = swapped ? b_re : a_re;
        const float* in_im = swapped ? b_im : a_im;
        float* out_re = swapped ? a_re : b_re;
        float* out_im = swapped ? a_im : b_im;
        switch (stage.radix) {
            case 2: fft_stage<2>(stage, 2, in_re, in_im, out_re, out_im); break;
            case 4: fft_stage<4>(stage, 4, in_re, in_im, out_re, out_im); break;
            case 5: fft_stage<5>(stage, 5, in_re, in_im, out_re, out_im); break;
            default: fft_stage<0>(stage, stage.radix, in_re, in_im, out_re, out_im);
        }
        swapped = !swapped;
    }
    return swapped;
}

}  // namespace muomni
