// One block of frames -> log-mel, compiled once for each instruction set and chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tables.h"

// Clang has no target pragma for a region; there, and on other CPUs, the base level alone is built.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MUOMNI_X86_LEVELS
#endif

namespace muomni {

// rows: LANES frames of n_fft samples; out_rows: LANES rows of n_mels; scratch: scratch_lanes() lanes.
// Returns a bit for every lane whose mel power is not finite.
using TransformBlock = uint32_t (*)(const TableView& tables, float floor, float unit, const float* const* rows,
                                    float* const* out_rows, Lane* scratch);

struct SimdLevel {
    std::string name;
    TransformBlock transform;
};

// What this CPU can run, the fastest first: of avx512, avx2 and base on x86-64, of neon on AArch64, elsewhere base. The
// last is what every CPU of the architecture runs.
const std::vector<SimdLevel>& simd_levels();

}  // namespace muomni
