// How an element of an array is stored and what number it is: float32, bfloat16 and float16, without a compiler's own
// half types and without subnormal float arithmetic, which a process may have turned off.
#pragma once

#include <cstdint>
#include <cstring>

namespace muomni {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// By bits and not by a branch: a compiler makes vector code of it.
inline uint32_t either(bool condition, uint32_t yes, uint32_t no) {
    const uint32_t mask = 0u - static_cast<uint32_t>(condition);
    return (yes & mask) | (no & ~mask);
}

struct Float32 {
    using Stored = float;
    static float wide(float x) { return x; }
    static float narrow(float x) { return x; }
};

// The upper half of a float.
struct Bfloat16 {
    using Stored = uint16_t;
    static float wide(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

    // Half a unit, less one where the kept part is even, rounds to nearest even.
    static uint16_t narrow_number(float x) {
        const uint32_t bits = bits_of(x);
        return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }

    // The same, but a NaN does not carry into infinity.
    static uint16_t narrow(float x) {
        const uint32_t bits = bits_of(x);
        const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
        return static_cast<uint16_t>(either(is_nan, bits >> 16 | 0x40u, narrow_number(x)));
    }
};

// Five bits of exponent, ten of mantissa. After Fabian Giesen's public-domain half-float conversions.
struct Float16 {
    using Stored = uint16_t;
    static float wide(uint16_t x) {
        constexpr uint32_t REBIAS = (127 - 15) << 23, EXPONENT = 0x7c00u << 13;
        const uint32_t shifted = (x & 0x7fffu) << 13, exponent = shifted & EXPONENT;
        // A subnormal is what its mantissa adds to the smallest normal number.
        const uint32_t small = bits_of(float_of(shifted + REBIAS + (1u << 23)) - float_of(REBIAS + (1u << 23)));
        const uint32_t large = shifted + REBIAS + either(exponent == EXPONENT, REBIAS, 0u);
        return float_of(either(exponent == 0, small, large) | (x & 0x8000u) << 16);
    }

    static uint16_t narrow(float x) {
        constexpr uint32_t INFINITE = 255u << 23, TOO_LARGE = (127u + 16u) << 23, NORMAL = (127u - 14u) << 23;
        constexpr uint32_t UNIT = (127u - 15u + 13u + 1u) << 23;  // a float whose last bit is the smallest subnormal
        const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu;
        const uint32_t subnormal = bits_of(float_of(either(size < NORMAL, size, 0u)) + float_of(UNIT)) - UNIT;
        const uint32_t normal = (size - ((127u - 15u) << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
        const uint32_t special = either(size > INFINITE, 0x7e00u, 0x7c00u);
        const uint32_t found = either(size >= TOO_LARGE, special, either(size < NORMAL, subnormal, normal));
        return static_cast<uint16_t>(found | (bits >> 16 & 0x8000u));
    }
};

}  // namespace muomni
