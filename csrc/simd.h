// One block of frames -> log-mel, the row-wise ops and decoding, compiled once for each instruction set and chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "decode.h"
#include "rows.h"
#include "tables.h"

// Clang has no target pragma for a region; there, and on other CPUs, the base level alone is built.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MUOMNI_X86_LEVELS
#include <immintrin.h>
#endif

namespace muomni {

// LANES frames and where their log-mel goes.
struct Block {
    const float* rows[LANES];  // n_fft samples each
    float* out_rows[LANES];    // n_mels each
    float* largest;            // (LANES,) of each frame's values, or null
    static constexpr int FETCHED = 2560;
    const float* next;         // FETCHED samples for the block after this one, or null
    bool spaced;               // rows lie 160 samples apart, and n_fft is 400
    bool stream;               // out_rows are whole cache lines that nobody reads soon
};

// A name and plain function pointers.
struct SimdLevel {
    const char* name;
    // scratch: scratch_lanes() lanes. Returns a bit for every lane whose mel power is not finite.
    uint32_t (*transform)(const TableView& tables, float floor, float unit, const Block& block, Lane* scratch);
    // The mean of ln over each half of the lanes, into out_rows[0] and [8]; the first n lanes count, and a half without
    // any is not written. n_mels is a multiple of 8. Null where the plain way is as good.
    uint32_t (*pooled)(const TableView& tables, float floor, const Block& block, int n, Lane* scratch);
    void (*widen)(const int16_t* from, int64_t n, float* into);  // divides by 32,768
    // (max(x, lowest) + 4) / 4; stream as in Block. x may be `into`.
    void (*clamp_whisper)(float lowest, const float* x, int64_t n, bool stream, float* into);
    // Of numbers, to nearest even; stream: `into` is whole cache lines that nobody reads soon.
    void (*to_bfloat16)(const float* from, int64_t n, bool stream, uint16_t* into);
    void (*mean_rows)(const float* rows, int64_t count, int64_t width, float* into);
    void (*add)(const float* x, int64_t n, float* into);
    void (*end_streams)();                                       // before another thread reads what was streamed
    RowLevel rows;
    DecodeLevel decode;
};

// What this CPU can run, the fastest first: of avx512, avx2 and base on x86-64, of neon on AArch64, elsewhere base. The
// last is what every CPU of the architecture runs.
const std::vector<SimdLevel>& simd_levels();

// One of them; "" is the fastest. Throws std::invalid_argument for a name this CPU has not.
const SimdLevel& level_named(const std::string& name);

}  // namespace muomni
