/* Modes that don't only weigh, value by value in floats or doubles. `modes.h` is compiled for each of them, plainly
   and for AVX2, together with the weighted sums, whose conversions these are. */

#include "kernel.c"

/* numpy's PCG64 (O'Neill 2014), and its two floats a draw. */
typedef unsigned __int128 state;

INLINE uint64_t drawn(state *now, state more) {
    *now = *now * ((state)0x2360ed051fc65da4 << 64 | 0x4385df649fccf645) + more;
    uint64_t mixed = (uint64_t)(*now >> 64) ^ (uint64_t)*now;
    int turn = (int)(*now >> 122);
    return mixed >> turn | mixed << (-turn & 63);
}

INLINE float lower(uint64_t pair) { return ((uint32_t)pair >> 8) * 0x1p-24f; }
INLINE float upper(uint64_t pair) { return (pair >> 40) * 0x1p-24f; }

#define JOINED(NAME, WORKING, KIND) NAME##_##WORKING##_##KIND
#define JOIN(NAME, WORKING, KIND) JOINED(NAME, WORKING, KIND)
#define OF(NAME) JOIN(NAME, WORKING, KIND)

/* So much of a matrix product stays in registers: HEIGHT rows of WIDTH columns. */
#define HEIGHT 4
#define WIDTH 8

/* high [rank][HEIGHT] and wide [rank][WIDTH] multiplied. */
static void tile_of_plainly(long rank, const double *high, const double *wide, double sums[HEIGHT][WIDTH]) {
    memset(sums, 0, HEIGHT * WIDTH * sizeof(double));
    for (long k = 0; k < rank; k++, high += HEIGHT, wide += WIDTH)
        for (int i = 0; i < HEIGHT; i++)
            for (int j = 0; j < WIDTH; j++) sums[i][j] += high[i] * wide[j];
}

#if defined(__x86_64__)
#define ROW(I) __m256d left##I = {0}, right##I = {0}
#define ADD_ROW(I) \
    row = _mm256_broadcast_sd(high + I); \
    left##I = _mm256_fmadd_pd(row, left, left##I), right##I = _mm256_fmadd_pd(row, right, right##I)
#define KEEP_ROW(I) _mm256_storeu_pd(sums[I], left##I), _mm256_storeu_pd(sums[I] + 4, right##I)

AVX2 static void tile_of_avx2(long rank, const double *high, const double *wide, double sums[HEIGHT][WIDTH]) {
    ROW(0);
    ROW(1);
    ROW(2);
    ROW(3);
    for (long k = 0; k < rank; k++, high += HEIGHT, wide += WIDTH) {
        __m256d left = _mm256_loadu_pd(wide), right = _mm256_loadu_pd(wide + 4), row;
        ADD_ROW(0);
        ADD_ROW(1);
        ADD_ROW(2);
        ADD_ROW(3);
    }
    KEEP_ROW(0), KEEP_ROW(1), KEEP_ROW(2), KEEP_ROW(3);
}
#endif

#define KIND plainly
#define TARGET
#include "modes_both.h"
#undef KIND
#undef TARGET

#if defined(__x86_64__)
#define KIND avx2
#define TARGET AVX2
#include "modes_both.h"
#endif

/* In which bin the value is that has *place others before it, and in *place how many of these are in that bin; `bins`
   if in none. */
long aid_bin(const uint32_t *counts, long bins, long *place) {
    long bin = 0;
    while (bin < bins && *place >= counts[bin]) *place -= counts[bin++];
    return bin;
}

/* What can be called, for floats or doubles. In all of them a term's values are in memory, and the first is A. */
#define CALLED(WORKING, REAL) \
    long aid_count_sizes_##WORKING(long count, const struct term *term, uint64_t lowest, int shift, \
                                   uint32_t *counts, long bins, int plainly) { \
        return CHOSEN(count_sizes_##WORKING, count, term, lowest, shift, counts, bins); \
    } \
    void aid_agree_##WORKING(long count, int terms, const struct term *term, const double *least, double alpha, \
                             int by_mass, REAL *out, int plainly) { \
        CHOSEN(agree_##WORKING, count, terms, term, least, alpha, by_mass, out); \
    } \
    void aid_train_##WORKING(long count, const struct term *term, double scale, REAL *out, int plainly) { \
        CHOSEN(train_##WORKING, count, term, scale, out); \
    } \
    void aid_drop_##WORKING(long count, int terms, const struct term *term, const uint64_t *states, \
                            double share, double scale, REAL *out, int plainly) { \
        CHOSEN(drop_##WORKING, count, terms, term, states, share, scale, out); \
    } \
    void aid_products_##WORKING(long count, const struct term *term, double *sums, int plainly) { \
        CHOSEN(products_##WORKING, count, term, sums); \
    } \
    int aid_add_product_##WORKING(long rows, long rank, long columns, const float *left, const float *right, \
                                  double scale, REAL *out, int plainly) { \
        double *room = malloc(((rows + HEIGHT - 1) / HEIGHT * HEIGHT + WIDTH) * rank * sizeof *room); \
        if (!room) return -2; \
        CHOSEN(add_product_##WORKING, rows, rank, columns, left, right, scale, out, room); \
        free(room); \
        return 0; \
    }

CALLED(F32, float)
CALLED(F64, double)
