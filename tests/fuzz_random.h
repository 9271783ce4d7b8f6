// What the fuzz driver's cases are made of: seeded choices, buffers without a spare byte, failures that name the case.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>

namespace fuzz {

constexpr double PI = 3.14159265358979323846, EPSILON = 5.9604644775390625e-8;  // half a unit of a float

// SplitMix64: the same cases on every machine, which the distributions of <random> do not promise.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
    int64_t between(int64_t least, int64_t most) { return least + below(most - least + 1); }
    double real(double least, double most) {
        return least + (most - least) * 0x1p-53 * static_cast<double>(next() >> 11);
    }
    bool one_in(int64_t n) { return below(n) == 0; }
    template <typename T>
    T pick(std::initializer_list<T> from) {
        return from.begin()[below(static_cast<int64_t>(from.size()))];
    }

private:
    uint64_t state_;
};

// n elements up to the last byte of a heap block, so that AddressSanitizer sees every overrun; `skew` elements before
// them move the address from the start of a cache line. Filled with a NaN of every type, which no case's input holds:
// an element not written shows.
template <typename T>
struct Exact {
    explicit Exact(int64_t n, int64_t skew = 0)
        : size(n), memory_(static_cast<T*>(operator new(sizeof(T) * static_cast<size_t>(n + skew), LINE))),
          data(memory_.get() + skew) {
        for (int64_t i = 0; i < n; ++i) std::memcpy(data + i, fill(), sizeof(T));
    }
    static const char* fill() { return "\xee\xee\xee\xff" + 4 - sizeof(T); }

    bool is_filled(int64_t i) const { return std::memcmp(data + i, fill(), sizeof(T)) == 0; }
    int64_t size;

private:
    static constexpr std::align_val_t LINE{64};
    struct Free {
        void operator()(T* memory) const { operator delete(memory, LINE); }
    };
    std::unique_ptr<T, Free> memory_;

public:
    T* data;
};

inline struct {
    int64_t seed, number;
    char text[200];
} current_case;

inline void print_case() {
    const long long seed = current_case.seed, number = current_case.number;
    std::fprintf(stderr, "fuzz_mel: case %lld of seed %lld: %s\nfuzz_mel: again with: fuzz_mel 1 %lld %lld\n", number,
                 seed, current_case.text, seed, number);
}

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "fuzz_mel: %s\n", what);
    print_case();
    std::_Exit(1);
}

template <typename... Values>
void describe(const char* format, Values... values) {
    std::snprintf(current_case.text, sizeof current_case.text, format, values...);
}

inline Random begin_case(int64_t seed, int64_t number) {
    current_case.seed = seed;
    current_case.number = number;
    return Random(Random(static_cast<uint64_t>(seed) * 0xd1342543de82ef95u + static_cast<uint64_t>(number)).next());
}

}  // namespace fuzz
