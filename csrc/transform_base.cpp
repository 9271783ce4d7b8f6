// The block transform for what every CPU of this architecture has: SSE2, NEON, or scalar code the compiler lowers to.
#include "simd.h"

#define MUOMNI_LEVEL base
#if defined(__aarch64__)
#define MUOMNI_NAME "neon"
#else
#define MUOMNI_NAME "base"
#endif
#define MUOMNI_WIDTH 4
#include "transform.inc.h"
