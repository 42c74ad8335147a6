/* Products of rows with weights in single precision, and their gradients: linear layers, and convolutions with
   the channels last. Such a one is a sum of linear layers, one for each place of its window, a `tap`, and each of
   them reads other rows: `source` says which, so nothing is copied. The gradient of what comes in is such a sum
   as well, over the rows of the other gradient that `target` says.

   For ACROSS columns at a time, weights are laid out as they are used, in the nearest memory, while the next are
   fetched from the farthest. Each number is added up by one thread, in one order. */

#include "../kernel/kernel.h"

#define DEPTH 256 /* numbers of a row that are multiplied at a time */
#define MOST 256  /* rows of a piece, or outs */

struct product {
    const float *x, *grad, *weight, *bias;   /* [x_rows, width], [rows, outs], [outs, taps, width], [outs] */
    const int32_t *source, *target;          /* [taps, rows], [taps, x_rows]: rows of x, of grad; below 0 is none.
                                                NULL: each row is its own */
    float *out, *of_x, *of_weight, *of_bias; /* what is asked for; NULL: nothing */
    int64_t rows, x_rows, taps, width, outs;
};

struct work {
    const struct product *all;
    long threads, next; /* piece that no thread has taken */
};

#if defined(__x86_64__)
static const float NOTHING[DEPTH];

INLINE long least(long one, long other) { return one < other ? one : other; }
INLINE long parts(long whole, long part) { return (whole + part - 1) / part; }

/* Rows of a piece, so that threads have one each with `beside` pieces of the same rows. No sum goes by it. */
INLINE long share(long rows, long high, long beside, long threads) {
    return least(parts(parts(rows, parts(threads, beside)), high) * high, MOST);
}

#if defined(__clang__)
#define SHUFFLED(ONE, OTHER, ...) __builtin_shufflevector(ONE, OTHER, __VA_ARGS__)
#else
#define SHUFFLED(ONE, OTHER, ...) __builtin_shuffle(ONE, OTHER, (words){__VA_ARGS__})
#endif

#define KIND avx2
#define TARGET AVX2
#define LANES 8
#define LOW_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#include "product_both.h"
#undef KIND
#undef TARGET
#undef LANES
#undef LOW_HALVES
#undef HIGH_HALVES

#define KIND avx512
#define TARGET AVX512
#define LANES 16
#define LOW_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#include "product_both.h"

static void share_out(const struct product *all, int threads, void (*function)(void *)) {
    struct work work = {all, threads, 0};
    GOMP_parallel(function, &work, threads, 0);
}

void aid_multiply(const struct product *all, int lanes, int threads) {
    share_out(all, threads, lanes == 16 ? multiply_avx512 : multiply_avx2);
}

void aid_multiply_back(const struct product *all, int lanes, int threads) {
    if (all->of_x) share_out(all, threads, lanes == 16 ? input_back_avx512 : input_back_avx2);
    if (all->of_weight || all->of_bias) share_out(all, threads, lanes == 16 ? weight_back_avx512 : weight_back_avx2);
}
#endif

int aid_usable(int size) { return usable_lanes(size == sizeof(struct product)); }
