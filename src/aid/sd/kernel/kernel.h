/* What kernels share: threads, and code that is compiled for two kinds of processor, with vectors of 8 and 16
   floats. Such code is in a file of its own, included once for each KIND with TARGET and LANES. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#define INLINE static inline __attribute__((always_inline))
#define JOINED(NAME, KIND) NAME##_##KIND
#define JOIN(NAME, KIND) JOINED(NAME, KIND)
#define OF(NAME) JOIN(NAME, KIND)
#define floats OF(floats)
#define words OF(words)

#define AVX2 __attribute__((target("avx2,fma")))
#if defined(__clang__)
#define AVX512 __attribute__((target("avx512f")))
#else
#define AVX512 __attribute__((target("avx512f,prefer-vector-width=512")))
#endif

/* The threads that torch has at hand: its own library of them. Others would wait for those to stop spinning. */
__attribute__((weak)) void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

/* Floats of the widest vectors that there is a use for; 0: this machine or this torch has none, or who asks
   knows another struct. */
static int usable_lanes(int known) {
    if (!GOMP_parallel || !known) return 0;
    if (__builtin_cpu_supports("avx512f")) return 16;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 8 : 0;
}
#else
static int usable_lanes(int known) { return 0 * known; }
#endif
