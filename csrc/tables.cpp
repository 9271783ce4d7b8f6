// Builds the tables of one log-mel definition; angles in double precision.
#include "tables.h"

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

MelTables::MelTables(int n_fft, const float* window, const float* filters, int n_mels) {
    plan_fft(n_fft / 2);
    std::vector<float> halved(window, window + n_fft), unpack, weights;
    for (float& value : halved) value *= 0.5f;
    for (int k = 0; k <= n_fft / 4; ++k) push_root(unpack, k, n_fft);
    const int bins = n_fft / 2 + 1;
    band_offset_.push_back(0);
    for (int band = 0; band < n_mels; ++band) {
        const float* row = filters + static_cast<int64_t>(band) * bins;
        int first = 0, last = bins;
        while (first < bins && row[first] == 0.0f) ++first;
        while (last > first && row[last - 1] == 0.0f) --last;
        band_begin_.push_back(first < bins ? first : 0);
        weights.insert(weights.end(), row + first, row + last);
        band_offset_.push_back(static_cast<int>(weights.size()));
    }
    view = {n_fft, n_mels, static_cast<int>(passes_.size()), passes_.data(), keep(std::move(halved)),
            keep(std::move(unpack)), band_begin_.data(), band_offset_.data(), keep(std::move(weights))};
}

}  // namespace muomni
