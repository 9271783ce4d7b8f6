// Builds the tables of one log-mel definition; angles in double precision.
#include "tables.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace muomni {

namespace {

constexpr double PI = 3.14159265358979323846;

void push_root(std::vector<float>& into, double numerator, double denominator) {
    const double angle = -2.0 * PI * numerator / denominator;
    into.push_back(static_cast<float>(std::cos(angle)));
    into.push_back(static_cast<float>(std::sin(angle)));
}

// Large radices first: fewer passes over the data. What 8, 5, 4, 3 and 2 do not divide goes by its primes.
int next_radix(int n) {
    for (int radix : {8, 5, 4, 3, 2})
        if (n % radix == 0) return radix;
    int prime = 7;
    while (n % prime != 0) prime += 2;
    return prime;
}

}  // namespace

const float* MelTables::keep(std::vector<float> values) {
    floats_.push_back(std::move(values));
    return floats_.back().data();
}

void MelTables::plan_fft(int n) {
    for (int stride = 1; n > 1;) {
        const int radix = next_radix(n), m = n / radix;
        std::vector<float> twiddle, root;
        for (int j = 0; j < m; ++j)
            for (int r = 0; r < radix; ++r) push_root(twiddle, static_cast<double>(j) * r, n);
        for (int q = 0; q < radix; ++q) push_root(root, q, radix);
        passes_.push_back({radix, m, stride, keep(std::move(twiddle)), keep(std::move(root))});
        n = m;
        stride *= radix;
    }
}

// The reciprocals are rounded first: the logarithms are those of what the vector code multiplies by.
const float* MelTables::log_table() {
    std::vector<float> table(64);
    for (size_t i = 0; i < 32; ++i) {
        table[i] = static_cast<float>(1.0 / (1.0 + (static_cast<double>(i) + 0.5) / 32.0));
        table[32 + i] = static_cast<float>(-std::log(static_cast<double>(table[i])));
    }
    return keep(std::move(table));
}

const float* MelTables::plan_bands(const float* filters, int n_mels, int bins) {
    std::vector<float> weights;
    for (int eight = 0; eight < n_mels; eight += 8) {
        int begin[8] = {}, widest = 0;
        for (int band = eight; band < std::min(eight + 8, n_mels); ++band) {
            const float* row = filters + static_cast<int64_t>(band) * bins;
            int first = 0, last = bins;
            while (first < bins && row[first] == 0.0f) ++first;
            while (last > first && row[last - 1] == 0.0f) --last;
            begin[band - eight] = first;
            widest = std::max(widest, last - first);
        }
        // A band that would run over the last bin begins earlier, with weights of zero.
        for (int& first : begin) {
            first = std::min(first, bins - widest);
            band_begin_.push_back(first);
        }
        for (int bin = 0; bin < widest; ++bin)
            for (int i = 0; i < 8; ++i)
                weights.push_back(eight + i < n_mels ? filters[static_cast<int64_t>(eight + i) * bins + begin[i] + bin] : 0.0f);
        eight_bins_.push_back(widest);
    }
    return keep(std::move(weights));
}

MelTables::MelTables(int n_fft, const float* window, const float* filters, int n_mels) {
    std::vector<float> scaled(window, window + n_fft), twiddle;
    if (n_fft == 400) {
        for (int b = 0; b < 20; ++b)
            for (int c = 1; c <= 10; ++c) push_root(twiddle, b * c, 400);
    } else {
        plan_fft(n_fft / 2);
        for (float& value : scaled) value *= 0.5f;
        for (int k = 0; k <= n_fft / 4; ++k) push_root(twiddle, k, n_fft);
    }
    view = {n_fft, n_mels, static_cast<int>(passes_.size()), passes_.data(), keep(std::move(scaled)),
            keep(std::move(twiddle)), log_table(), nullptr, nullptr, plan_bands(filters, n_mels, n_fft / 2 + 1)};
    view.band_begin = band_begin_.data();
    view.eight_bins = eight_bins_.data();
}

}  // namespace muomni
