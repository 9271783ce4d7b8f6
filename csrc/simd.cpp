// Which compiled instruction sets this CPU has.
#include "simd.h"

namespace muomni {

#if defined(MUOMNI_X86_LEVELS)
namespace avx512 {
TransformBlock transform_block();
}
namespace avx2 {
TransformBlock transform_block();
}
#endif
namespace base {
TransformBlock transform_block();
}

// What the compiler makes of the base level's vectors on an architecture that always has them.
#if defined(__aarch64__)
constexpr const char* BASE_NAME = "neon";
#else
constexpr const char* BASE_NAME = "base";
#endif

const std::vector<SimdLevel>& simd_levels() {
    static const std::vector<SimdLevel> levels = [] {
        std::vector<SimdLevel> found;
#if defined(MUOMNI_X86_LEVELS)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f")) found.push_back({"avx512", avx512::transform_block()});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            found.push_back({"avx2", avx2::transform_block()});
#endif
        found.push_back({BASE_NAME, base::transform_block()});
        return found;
    }();
    return levels;
}

}  // namespace muomni
