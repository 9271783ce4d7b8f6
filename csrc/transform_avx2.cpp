// The block transform for avx2. The pragma stands after every standard header: an inline function of theirs that was
// compiled for this instruction set could be the copy the linker keeps for all.
#include "simd.h"

#if defined(MUOMNI_X86_LEVELS)
#pragma GCC target("avx2,fma")
#define MUOMNI_LEVEL avx2
#define MUOMNI_NAME "avx2"
#define MUOMNI_WIDTH 8
#include "transform.inc.h"
#endif
