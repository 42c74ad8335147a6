/* Modes that don't only weigh, value by value in floats or doubles. `modes.h` is compiled for each of them, plainly
   and for AVX2, together with the weighted sums, whose conversions these are. */

#include "kernel.c"

#include <math.h>

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
#define MIN(ONE, OTHER) ((ONE) < (OTHER) ? (ONE) : (OTHER))
#define MAX(ONE, OTHER) ((ONE) > (OTHER) ? (ONE) : (OTHER))

/* HEIGHT rows side by side for each rank; the last are filled up with zeros. What comes after them. */
INLINE double *lay_rows(long rows, long rank, const float *left, double *high) {
    const long heights = (rows + HEIGHT - 1) / HEIGHT;
    for (long i = 0; i < heights * HEIGHT; i++)
        for (long k = 0; k < rank; k++)
            high[(i / HEIGHT * rank + k) * HEIGHT + i % HEIGHT] = i < rows ? left[i * rank + k] : 0;
    return high + heights * HEIGHT * rank;
}

/* WIDTH columns side by side for each rank; of the last ones, so many are there. */
INLINE long lay_columns(long rank, long columns, long at, const float *right, double *wide) {
    const long width = MIN(WIDTH, columns - at);
    for (long k = 0; k < rank; k++)
        for (long j = 0; j < WIDTH; j++) wide[k * WIDTH + j] = j < width ? right[k * columns + at + j] : 0;
    return width;
}

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

/* smooth_add goes through some columns at a time, row after row: a row is what is at one place of the first axis, a
   column of the second, a plane of all others. A row lies plane by plane here, its columns side by side. */
#define TAPS 4 /* to each side, of the Gaussian */
#define SPAN 32 /* medians side by side */
#define LONGEST 81 /* list */
#define BLOCK_SIZE 4096 /* values of a row, or a few more: the last rows stay in the second-level cache */

struct smooth {
    int axes;
    const long *shape;
    long rows, wide, planes;
    long from; /* the first row that is given */
    long first, end, low, high; /* columns that are wanted, and of which medians are needed */
    const uint16_t *networks; /* two for each stage: how many pairs and results; pairs to compare, the lesser first;
                                 where the results are then */
    const double *weights; /* from the middle on */
    long room; /* for a row */
    double *sorted[3]; /* of the last rows the differences, each with its neighbours: `room` apart */
    double *medians[9], *row, *spare, *padded, *lists[2];
};

static const uint16_t *next_network(const uint16_t *network) { return network + 2 + 2 * network[0] + network[1]; }
static const uint16_t *next_stage(const uint16_t *network) { return next_network(next_network(network)); }
static int is_last(const uint16_t *network, int each) { return network[1] < 2 * each; }

/* The place where an axis that is mirrored at its ends, again and again, has what is `at` a place beyond them. */
static long mirrored(long at, long size) {
    long turn = at % (2 * size);
    if (turn < 0) turn += 2 * size;
    return turn < size ? turn : 2 * size - 1 - turn;
}

/* The plane that is so many further along an axis. */
static long beside(const struct smooth *own, long plane, int axis, int steps) {
    long each = 1;
    for (int k = axis + 1; k < own->axes; k++) each *= own->shape[k];
    const long at = plane / each % own->shape[axis];
    return plane + (mirrored(at + steps, own->shape[axis]) - at) * each;
}

/* By masks: of two comparisons GCC makes a branch. */
INLINE void compare_by_plainly(double *lesser, double *greater) {
    for (int i = 0; i < SPAN; i += LANES) {
        longs one, other;
        memcpy(&one, lesser + i, sizeof one);
        memcpy(&other, greater + i, sizeof other);
        longs less = (longs)((doubles)one < (doubles)other), least = (less & one) | (~less & other);
        other = (less & other) | (~less & one);
        memcpy(lesser + i, &least, sizeof least);
        memcpy(greater + i, &other, sizeof other);
    }
}

INLINE void decide_by_plainly(const double *one, const double *other, double *least) {
    double lesser[SPAN], greater[SPAN];
    memcpy(lesser, one, sizeof lesser);
    memcpy(greater, other, sizeof greater);
    compare_by_plainly(lesser, greater);
    compare_by_plainly(least, greater);
}

#if defined(__x86_64__)
AVX2 INLINE void decide_by_avx2(const double *one, const double *other, double *least) {
    for (int i = 0; i < SPAN; i += 4) {
        __m256d greater = _mm256_max_pd(_mm256_loadu_pd(other + i), _mm256_loadu_pd(one + i));
        _mm256_storeu_pd(least + i, _mm256_min_pd(_mm256_loadu_pd(least + i), greater));
    }
}

AVX2 INLINE void compare_by_avx2(double *lesser, double *greater) {
    for (int i = 0; i < SPAN; i += 4) {
        __m256d one = _mm256_loadu_pd(lesser + i), other = _mm256_loadu_pd(greater + i);
        _mm256_storeu_pd(lesser + i, _mm256_min_pd(one, other));
        _mm256_storeu_pd(greater + i, _mm256_max_pd(other, one));
    }
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
    void aid_add_squares_##WORKING(long rows, long inputs, long each, const REAL *values, const float *delta, \
                                   double scale, double *squares, int plainly) { \
        CHOSEN(add_squares_##WORKING, rows, inputs, each, values, delta, scale, squares); \
    } \
    void aid_add_decomposed_##WORKING(long rows, long inputs, long each, REAL *values, const float *delta, double scale, \
                                      double strength, const float *magnitude, const double *norms, int plainly) { \
        CHOSEN(add_decomposed_##WORKING, rows, inputs, each, values, delta, scale, strength, magnitude, norms); \
    } \
    int aid_add_product_##WORKING(long rows, long rank, long columns, const float *left, const float *right, \
                                  double scale, REAL *out, int plainly) { \
        double *room = malloc((rows + HEIGHT + WIDTH) * rank * sizeof *room); \
        if (!room) return -2; \
        CHOSEN(add_product_##WORKING, rows, rank, columns, left, right, scale, out, room); \
        free(room); \
        return 0; \
    } \
    int aid_add_multiplied_##WORKING(long rows, long rank, long columns, const float *const *left, \
                                     const float *const *right, double scale, double strength, REAL *out, \
                                     int plainly) { \
        double *room = malloc(2 * (rows + HEIGHT + WIDTH) * rank * sizeof *room); \
        if (!room) return -2; \
        CHOSEN(add_multiplied_##WORKING, rows, rank, columns, left, right, scale, strength, out, room); \
        free(room); \
        return 0; \
    }

CALLED(F32, float)
CALLED(F64, double)

/* `count` rows of A + alpha S(B - C) from `first` on; given are all rows that they hang on, TAPS + 1 more to both sides
   as far as there are any. `shape` has `axes` sizes; from the third on, two at most aren't 1. */
int aid_smooth(int axes, const long *shape, long first, long count, const struct term *term, const uint16_t *networks,
               const double *weights, double alpha, double *out, int plainly) {
    struct smooth own = {axes, shape, axes ? shape[0] : 1, axes > 1 ? shape[1] : 1, 1, MAX(0, first - TAPS - 1)};
    for (int axis = 2; axis < axes; axis++) own.planes *= shape[axis];
    own.networks = networks, own.weights = weights;
    const long columns = MIN(own.wide, MAX(SPAN, BLOCK_SIZE / own.planes));
    own.room = own.planes * (columns + 2 * TAPS + 2) + SPAN;
    const long lists = own.planes * LONGEST / 3 * SPAN;
    double *room = calloc(21 * own.room + 2 * lists, sizeof *room), *at = room;
    if (!room) return -2;
    for (int k = 0; k < 3; k++, at += 3 * own.room) own.sorted[k] = at;
    for (int k = 0; k < 9; k++, at += own.room) own.medians[k] = at;
    own.row = at, own.spare = at + own.room, own.padded = at + 2 * own.room, at += 3 * own.room;
    own.lists[0] = at, own.lists[1] = at + lists;
    for (own.first = 0; own.first < own.wide; own.first = own.end) {
        own.end = MIN(own.wide, own.first + columns);
        own.low = MAX(0, own.first - TAPS), own.high = MIN(own.wide, own.end + TAPS);
        CHOSEN(smooth_by, &own, first, count, term, alpha, out);
    }
    free(room);
    return 0;
}
