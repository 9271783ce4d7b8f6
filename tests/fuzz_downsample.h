// Fuzz cases of downsample and its gradient in every element type, against sums in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "downsample.h"
#include "element.h"
#include "fuzz_random.h"

namespace fuzz {

using muomni::bits_of;
using muomni::Bfloat16;
using muomni::Float16;
using muomni::Float32;
using muomni::Groups;
using muomni::Pool;

inline std::vector<int64_t> row_offsets(const std::vector<int64_t>& cu_frames, int64_t factor) {
    std::vector<int64_t> cu_rows{0};
    for (size_t i = 1; i < cu_frames.size(); ++i)
        cu_rows.push_back(cu_rows.back() + (cu_frames[i] - cu_frames[i - 1] + factor - 1) / factor);
    return cu_rows;
}

// The value of an element from its sign, exponent and mantissa.
inline double value_of(uint32_t bits, int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    const double sign = bits >> (exponent_bits + mantissa_bits) & 1u ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? std::nan("") : sign * HUGE_VAL;
    const double size = exponent == 0 ? mantissa : mantissa + static_cast<double>(1u << mantissa_bits);
    return sign * std::ldexp(size, std::max(exponent, 1) - bias - mantissa_bits);
}

template <typename Element>
struct Format;
template <>
struct Format<Float32> {
    static constexpr int MANTISSA = 23;
    static double value(float x) { return value_of(bits_of(x), 8, 23); }
};
template <>
struct Format<Bfloat16> {
    static constexpr int MANTISSA = 7;
    static double value(uint16_t x) { return value_of(x, 8, 7); }
};
template <>
struct Format<Float16> {
    static constexpr int MANTISSA = 10;
    static double value(uint16_t x) { return value_of(x, 5, 10); }
};

// The nearest value of the element, of two the even one.
template <typename Element>
double nearest(double x) {
    int exponent;
    std::frexp(x, &exponent);
    constexpr int SMALLEST = std::is_same_v<Element, Float16> ? -13 : -125;  // of a normal number, in frexp's way
    const double unit = std::ldexp(1.0, std::max(exponent, SMALLEST) - Format<Element>::MANTISSA - 1);
    return std::nearbyint(x / unit) * unit;
}

// Rounding to the element, and the float arithmetic before it on numbers of the size of `scale`.
template <typename Element>
bool is_close(typename Element::Stored found, double expected, double scale, double n_terms) {
    using F = Format<Element>;
    const double x = F::value(found);
    if (std::isnan(expected)) return std::isnan(x);
    if (std::isinf(expected)) return x == expected;
    // No float before it was rounded.
    if (n_terms <= 2.0 && static_cast<float>(expected) == expected) return x == nearest<Element>(expected);
    const double rounding = std::abs(expected) * std::ldexp(1.0, -F::MANTISSA - 1) * 1.01;
    const double subnormal = std::is_same_v<Element, Float16> ? std::ldexp(1.0, -25) : 1e-40;
    return std::abs(x - expected) <= rounding + scale * n_terms * EPSILON + subnormal;
}

template <typename Element>
Exact<typename Element::Stored> random_elements(Random& random, int64_t n) {
    using Stored = typename Element::Stored;
    Exact<Stored> x(n, random.below(8));
    const bool wild = random.one_in(3), ties = random.one_in(3);
    for (int64_t i = 0; i < n; ++i) {
        if (wild && !std::is_same_v<Element, Float32>) {
            // Any bits but those of the fill, quiet or not.
            const uint16_t bits = static_cast<uint16_t>(random.next());
            x.data[i] = static_cast<Stored>((bits | 0x40) == 0xffee ? 0 : bits);
        } else {
            const double special = random.pick({0.0, -0.0, 1e30, -1e30, 1e-40, HUGE_VAL, -HUGE_VAL, std::nan("")});
            const double plain = ties ? static_cast<double>(random.between(-2, 2)) : random.real(-60.0, 60.0);
            x.data[i] = Element::narrow(static_cast<float>(wild && random.one_in(20) ? special : plain));
        }
    }
    return x;
}

template <typename Element>
void check_group(const Groups& g, Pool pool, const Exact<typename Element::Stored>& x,
                 const Exact<typename Element::Stored>& y, const Exact<typename Element::Stored>& dy,
                 const Exact<typename Element::Stored>& dx, int64_t frame, int64_t count, int64_t row) {
    using F = Format<Element>;
    for (int64_t c = 0; c < g.width; ++c) {
        const auto at = [&](int64_t f) { return (frame + f) * g.width + c; };
        if (pool == Pool::stack) {
            for (int64_t f = 0; f < g.factor; ++f) {
                const int64_t to = (row * g.factor + f) * g.width + c;
                const typename Element::Stored expected = f < count ? x.data[at(f)] : typename Element::Stored{};
                if (std::memcmp(y.data + to, &expected, sizeof expected) != 0) fail("downsample: stack is off");
                if (f < count && std::memcmp(dx.data + at(f), dy.data + to, sizeof expected) != 0)
                    fail("downsample_backward: stack is off");
            }
            continue;
        }
        double sum = 0.0, size = 0.0, finite = 0.0;
        int64_t best = 0;
        for (int64_t f = 0; f < count; ++f) {
            const double value = F::value(x.data[at(f)]), most = F::value(x.data[at(best)]);
            sum += value;
            size += std::abs(value);
            finite += std::isfinite(value) ? std::abs(value) : 0.0;
            if (value > most || (std::isnan(value) && !std::isnan(most))) best = f;
        }
        const double n = static_cast<double>(count), gradient = F::value(dy.data[row * g.width + c]);
        const typename Element::Stored found = y.data[row * g.width + c];
        // A sum of floats that passes their largest becomes infinite: nothing is promised there.
        if (pool == Pool::max ? !is_close<Element>(found, F::value(x.data[at(best)]), 0.0, 0.0)
                              : finite < 3e38 && !is_close<Element>(found, sum / n, size / n, n))
            fail("downsample: a row is off");
        for (int64_t f = 0; f < count; ++f) {
            const double expected = pool == Pool::mean ? gradient / n : f == best ? gradient : 0.0;
            if (!is_close<Element>(dx.data[at(f)], expected, std::abs(expected), 1.0))
                fail("downsample_backward: a frame is off");
        }
    }
}

template <typename Element>
void check_element(Random& random) {
    using Stored = typename Element::Stored;
    std::vector<int64_t> cu_frames{0};
    const int64_t n_clips = random.below(5), width = random.one_in(10) ? 128 : random.between(1, 20);
    const int64_t factor = random.one_in(10) ? random.between(17, 1'000) : random.between(1, 16);
    for (int64_t i = 0; i < n_clips; ++i)
        cu_frames.push_back(cu_frames.back() + random.pick<int64_t>({0, 1, random.below(20), 2 * factor % 64}));
    const std::vector<int64_t> cu_rows = row_offsets(cu_frames, factor);
    const Groups g{cu_frames.data(), cu_rows.data(), n_clips, width, factor};
    const Pool pool = random.pick({Pool::mean, Pool::max, Pool::stack});
    describe("downsample, %d mantissa bits, mode %d, clips %d, frames %d, width %d, factor %d",
             Format<Element>::MANTISSA, static_cast<int>(pool), static_cast<int>(n_clips),
             static_cast<int>(cu_frames.back()), static_cast<int>(width), static_cast<int>(factor));
    const int64_t columns = width * (pool == Pool::stack ? factor : 1);
    const Exact<Stored> x = random_elements<Element>(random, cu_frames.back() * width);
    const Exact<Stored> dy = random_elements<Element>(random, cu_rows.back() * columns);
    Exact<Stored> y(dy.size, random.below(8)), dx(x.size, random.below(8)), nothing(0);
    muomni::downsample<Element>(x.data, g, pool, y.data);
    // Only max may read the frames.
    muomni::downsample_backward<Element>(dy.data, pool == Pool::max ? x.data : nothing.data, g, pool, dx.data);
    for (const Exact<Stored>* written : {&y, &dx})
        for (int64_t i = 0; i < written->size; ++i)
            if (written->is_filled(i)) fail("downsample: an element is not written");
    for (size_t clip = 0; clip + 1 < cu_frames.size(); ++clip)
        for (int64_t row = cu_rows[clip], frame = cu_frames[clip]; row < cu_rows[clip + 1]; ++row, frame += factor)
            check_group<Element>(g, pool, x, y, dy, dx, frame, std::min(factor, cu_frames[clip + 1] - frame), row);
}

inline void check_downsample(Random& random) {
    switch (random.below(3)) {
        case 0: return check_element<Float32>(random);
        case 1: return check_element<Bfloat16>(random);
        default: return check_element<Float16>(random);
    }
}

}  // namespace fuzz
