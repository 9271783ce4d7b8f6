// Vector helpers: LANES frames side by side, so every inner loop is contiguous and has no shuffle.
#pragma once

#include <cstdint>
#include <cstring>

#define MUOMNI_INLINE inline __attribute__((always_inline))

// One binary for every x86-64: the hot functions are compiled three times and chosen at load time.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(MUOMNI_SANITIZE)
#define MUOMNI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MUOMNI_CLONES
#endif

namespace muomni {

constexpr int LANES = 16;

// ln(x) for normal positive x: x = m * 2^e with m in [sqrt(1/2), sqrt(2)), ln(m) = 2 atanh((m - 1) / (m + 1)).
// The series stops where the next term is below 3e-9.
MUOMNI_INLINE float natural_log(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t shifted = bits - 0x3f3504f3u;
    const int exponent = static_cast<int32_t>(shifted) >> 23;
    const uint32_t mantissa = (shifted & 0x007fffffu) + 0x3f3504f3u;
    float m;
    std::memcpy(&m, &mantissa, sizeof m);
    const float t = (m - 1.0f) / (m + 1.0f);
    const float t2 = t * t;
    const float series = 1.0f + t2 * (1.0f / 3 + t2 * (1.0f / 5 + t2 * (1.0f / 7 + t2 * (1.0f / 9))));
    return static_cast<float>(exponent) * 0.693147180559945f + 2.0f * t * series;
}

}  // namespace muomni
