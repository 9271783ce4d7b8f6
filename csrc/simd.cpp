// Which compiled instruction sets this CPU has.
#include "simd.h"

#include <stdexcept>

namespace muomni {

#if defined(MUOMNI_X86_LEVELS)
namespace avx512 {
SimdLevel level();
}
namespace avx2 {
SimdLevel level();
}
#endif
namespace base {
SimdLevel level();
}

const std::vector<SimdLevel>& simd_levels() {
    // Never destroyed: a thread may be inside a call when the process ends.
    static const std::vector<SimdLevel>& levels = *[] {
        auto* levels_found = new std::vector<SimdLevel>;
        std::vector<SimdLevel>& found = *levels_found;
#if defined(MUOMNI_X86_LEVELS)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f")) found.push_back(avx512::level());
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(avx2::level());
#endif
        found.push_back(base::level());
        return levels_found;
    }();
    return levels;
}

const SimdLevel& level_named(const std::string& name) {
    for (const SimdLevel& level : simd_levels())
        if (name.empty() || level.name == name) return level;
    throw std::invalid_argument("simd: this CPU has no level " + name + ".");
}

}  // namespace muomni
