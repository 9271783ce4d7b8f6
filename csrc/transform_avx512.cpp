// The block transform for avx512. The pragma stands after every standard header: an inline function of theirs that was
// compiled for this instruction set could be the copy the linker keeps for all.
#include "simd.h"

#if defined(MUOMNI_X86_LEVELS)
// GCC 12 takes the undefined operand of its own intrinsics for a mistake of ours (bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx2,fma")
#define MUOMNI_LEVEL avx512
#define MUOMNI_NAME "avx512"
#define MUOMNI_WIDTH 16
#include "transform.inc.h"
#endif
