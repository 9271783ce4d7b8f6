// The block transform for what every CPU of this architecture has: SSE2, NEON, or scalar code the compiler lowers to.
#include "simd.h"

#define MUOMNI_LEVEL base
#define MUOMNI_NAME "base"
#define MUOMNI_WIDTH 4
#include "transform.inc.h"
