/* Weighted sums of tensors of any floating format: each value is computed in double precision and rounded once.

   Built without contraction (no fused multiply-add), so that every machine and the torch path give the same
   bytes. Eight values at a time stay in registers from the parents' formats to the result's. The loops are
   compiled twice, plainly and for AVX2; which run is found out when they are called. */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LANES 8
#define STEP (32 << 10) /* values at a time: what is read of some models stays in the second-level cache */
#define ROOM (2 << 20) /* bytes that are read at a time: memory doesn't grow with the number of models */
#define BLOCK 1024 /* values whose squares are added up together */

enum format { F64, F32, F16, BF16 };
static const int ITEM_BYTES[] = {8, 4, 2, 2};
#define WIDEST 8

typedef double doubles __attribute__((vector_size(LANES * 8)));
typedef uint64_t longs __attribute__((vector_size(LANES * 8)));
typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t signs __attribute__((vector_size(LANES * 4))); /* compared in one instruction, as words aren't */
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

#define INLINE static inline __attribute__((always_inline))
#define AS(TYPE, VALUE) __builtin_convertvector(VALUE, TYPE)

INLINE words chosen(words mask, words one, words other) { return (mask & one) | (~mask & other); }

/* Half precision by shifts: the exponents are rebiased by a multiplication, which is exact. */
INLINE floats widen_half_plainly(halves from) {
    words half = AS(words, from), magnitude = (half & 0x7fff) << 13;
    words value = (words)((floats)magnitude * 0x1p112f);
    value = chosen((words)((signs)magnitude >= 0x0f800000), magnitude | 0x7f800000, value); /* infinity, NaN */
    return (floats)(value | (half & 0x8000) << 16);
}

INLINE halves narrow_half_plainly(floats from) {
    words bits = (words)from, magnitude = bits & 0x7fffffff;
    words half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    words subnormal = (words)((floats)magnitude + 0.5f) - 0x3f000000;
    half = chosen((words)((signs)magnitude < 0x38800000), subnormal, half);
    half = chosen((words)((signs)magnitude >= 0x477ff000), (words){0} + 0x7c00, half); /* 65520 and more */
    half = chosen((words)((signs)magnitude > 0x7f800000), (words){0} + 0x7e00, half);
    return AS(halves, half | (bits >> 16 & 0x8000));
}

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,f16c,fma")))

AVX2 INLINE floats widen_half_avx2(halves from) { return (floats)_mm256_cvtph_ps((__m128i)from); }
AVX2 INLINE halves narrow_half_avx2(floats from) { return (halves)_mm256_cvtps_ph((__m256)from, 0); }
#endif

/* How a kind of processor goes between half precision and floats. */
typedef floats widen_half(halves from);
typedef halves narrow_half(floats from);

INLINE floats widened(int format, const char *from, widen_half *half) {
    doubles exact;
    floats single;
    halves short_ones;
    memcpy(&short_ones, from, sizeof short_ones);
    if (format == F16) return half(short_ones);
    if (format == BF16) return (floats)(AS(words, short_ones) << 16);
    memcpy(&single, from, sizeof single);
    if (format == F32) return single;
    memcpy(&exact, from, sizeof exact);
    return AS(floats, exact);
}

INLINE doubles doubled(int format, const char *from, widen_half *half) {
    doubles exact;
    if (format != F64) return AS(doubles, widened(format, from, half));
    memcpy(&exact, from, sizeof exact);
    return exact;
}

/* To 24 bits, the last of which is set if anything was cut off: rounding this to fewer bits is then as if the
   double itself had been rounded ("round to odd"; Boldo and Melquiond 2008). */
INLINE floats to_odd(doubles value) {
    const uint64_t cut = 0x1fffffff;
    longs bits = (longs)value;
    bits = (bits | ((bits & cut) + cut)) & ~cut;
    return AS(floats, (doubles)bits);
}

INLINE halves narrow_brain(floats value) {
    words bits = (words)value, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return AS(halves, chosen((words)((signs)(bits & 0x7fffffff) > 0x7f800000), (words){0} + 0x7fc0, rounded));
}

/* Where NaN or infinity was seen: the exponent is all ones. */
struct seen {
    longs exact;
    words single;
    halves short_ones;
};

INLINE void narrow(int format, doubles value, char *to, struct seen *seen, narrow_half *half) {
    const uint64_t exponent = 0x7ff0000000000000;
    if (format == F64) {
        seen->exact |= (longs)(((longs)value & exponent) == exponent);
        memcpy(to, &value, sizeof value);
    } else if (format == F32) {
        floats single = AS(floats, value);
        seen->single |= (words)(((words)single & 0x7f800000) == 0x7f800000);
        memcpy(to, &single, sizeof single);
    } else {
        const uint16_t ones = format == F16 ? 0x7c00 : 0x7f80;
        halves short_ones = format == F16 ? half(to_odd(value)) : narrow_brain(to_odd(value));
        seen->short_ones |= (halves)((short_ones & ones) == ones);
        memcpy(to, &short_ones, sizeof short_ones);
    }
}

INLINE int is_set(const struct seen *seen) {
    int found = 0;
    for (int i = 0; i < LANES; i++) found |= seen->exact[i] || seen->single[i] || seen->short_ones[i];
    return found;
}

/* One term of a sum: values in memory, or in an open file from byte `at` on where `values` is NULL. */
struct term {
    const char *values;
    int64_t at;
    double weight;
    int32_t file;
    int32_t format;
};

#define ANY -1 /* each term's own format, but for F64 */

INLINE floats widened_any(struct term own, long at, widen_half *half) {
    const char *from = own.values + at * ITEM_BYTES[own.format];
    if (own.format == F16) return widened(F16, from, half);
    if (own.format == BF16) return widened(BF16, from, half);
    return widened(F32, from, half);
}

INLINE doubles weighed(struct term own, int format, long at, widen_half *half) {
    if (format == ANY) return own.weight * AS(doubles, widened_any(own, at, half));
    return own.weight * doubled(format, own.values + at * ITEM_BYTES[format], half);
}

/* The sum of the rows, `count` values of each, a multiple of LANES; whether it holds NaN or infinity. The number
   of terms and the formats are known to the compiler, so that nothing but the sum is left of the loop; where it
   is ANY format, each term's is asked for again and again, which is foreseen by the processor. */
INLINE int sum_rows(int terms, const struct term *term, const char *const *rows, int from, int to, long count,
                    char *out, widen_half *widen, narrow_half *half) {
    struct seen seen = {{0}, {0}, {0}};
    struct term own[terms]; /* which no writing to `out` can change, for all that the compiler knows */
    for (int k = 0; k < terms; k++) own[k] = term[k], own[k].values = rows[k];
    for (long i = 0; i < count; i += LANES) {
        doubles sum = weighed(own[0], from, i, widen);
        for (int k = 1; k < terms; k++) sum += weighed(own[k], from, i, widen);
        narrow(to, sum, out + i * ITEM_BYTES[to], &seen, half);
    }
    return is_set(&seen);
}

INLINE void add_row(struct term own, int format, int first, long count, double *sum, widen_half *widen) {
    for (long i = 0; i < count; i += LANES) {
        doubles part = weighed(own, format, i, widen), so_far;
        memcpy(&so_far, sum + i, sizeof so_far);
        if (!first) part += so_far; /* zeros aren't added: there is a negative one */
        memcpy(sum + i, &part, sizeof part);
    }
}

INLINE void add_any(struct term own, int first, long count, double *sum, widen_half *widen) {
    if (own.format == F16) add_row(own, F16, first, count, sum, widen);
    else if (own.format == BF16) add_row(own, BF16, first, count, sum, widen);
    else if (own.format == F32) add_row(own, F32, first, count, sum, widen);
    else add_row(own, F64, first, count, sum, widen);
}

INLINE void narrow_row(int format, const double *sum, long count, char *out, struct seen *seen,
                       narrow_half *half) {
    for (long i = 0; i < count; i += LANES) {
        doubles value;
        memcpy(&value, sum + i, sizeof value);
        narrow(format, value, out + i * ITEM_BYTES[format], seen, half);
    }
}

/* The same of any number of terms in any formats, term by term. */
INLINE int sum_mixed(int terms, const struct term *term, const char *const *rows, int format, long count,
                     char *out, widen_half *widen, narrow_half *half) {
    struct seen seen = {{0}, {0}, {0}};
    double sum[BLOCK];
    for (long at = 0; at < count; at += BLOCK) {
        long here = count - at < BLOCK ? count - at : BLOCK;
        char *to = out + at * ITEM_BYTES[format];
        for (int k = 0; k < terms; k++) {
            struct term own = term[k];
            own.values = rows[k] + at * ITEM_BYTES[own.format];
            if (k) add_any(own, 0, here, sum, widen);
            else add_any(own, 1, here, sum, widen);
        }
        if (format == F16) narrow_row(F16, sum, here, to, &seen, half);
        else if (format == BF16) narrow_row(BF16, sum, here, to, &seen, half);
        else if (format == F32) narrow_row(F32, sum, here, to, &seen, half);
        else narrow_row(F64, sum, here, to, &seen, half);
    }
    return is_set(&seen);
}

INLINE int sum_few(int terms, const struct term *term, const char *const *rows, int from, int to, long count,
                   char *out, widen_half *widen, narrow_half *half) {
    if (terms == 1) return sum_rows(1, term, rows, from, to, count, out, widen, half);
    if (terms == 2) return sum_rows(2, term, rows, from, to, count, out, widen, half);
    if (terms == 3) return sum_rows(3, term, rows, from, to, count, out, widen, half);
    return sum_rows(4, term, rows, from, to, count, out, widen, half);
}

/* The format of all terms and of the result; ANY if they differ. */
INLINE int one_format(int terms, const struct term *term, int format) {
    for (int k = 0; k < terms; k++)
        if (term[k].format != format) return ANY;
    return format;
}

/* Whether the terms are so few, and all so narrow, that they needn't go by memory. */
INLINE int in_registers(int terms, const struct term *term, int format) {
    if (terms > 4 || format == F64) return 0;
    for (int k = 0; k < terms; k++)
        if (term[k].format == F64) return 0;
    return 1;
}

INLINE int sum_any(int terms, const struct term *term, const char *const *rows, int format, long count,
                   char *out, widen_half *widen, narrow_half *half) {
    if (!in_registers(terms, term, format))
        return sum_mixed(terms, term, rows, format, count, out, widen, half);
    int own = one_format(terms, term, format);
    if (own == F16) return sum_few(terms, term, rows, F16, F16, count, out, widen, half);
    if (own == BF16) return sum_few(terms, term, rows, BF16, BF16, count, out, widen, half);
    if (own == F32) return sum_few(terms, term, rows, F32, F32, count, out, widen, half);
    if (format == F16) return sum_few(terms, term, rows, ANY, F16, count, out, widen, half);
    if (format == BF16) return sum_few(terms, term, rows, ANY, BF16, count, out, widen, half);
    return sum_few(terms, term, rows, ANY, F32, count, out, widen, half);
}

/* The sum of a block's squared differences: in 64 sums side by side, which are then added in halves. torch can
   add them in this order too. */
#define SIDES 8

INLINE float squared(const floats *row) {
    floats sums[SIDES] = {0};
    for (int at = 0; at < BLOCK / LANES; at += SIDES)
        for (int i = 0; i < SIDES; i++) sums[i] += row[at + i] * row[at + i];
    for (int left = SIDES / 2; left; left /= 2)
        for (int i = 0; i < left; i++) sums[i] += sums[i + left];
    float *last = (float *)sums;
    for (int left = LANES / 2; left; left /= 2)
        for (int i = 0; i < left; i++) last[i] += last[i + left];
    return last[0];
}

/* Some values as eights of floats, zeros after the last. */
INLINE floats eight(int format, const char *from, long count, widen_half *widen) {
    char last[LANES * WIDEST] = {0};
    if (count >= LANES) return widened(format, from, widen);
    memcpy(last, from, count * ITEM_BYTES[format]);
    return widened(format, last, widen);
}

INLINE double square(long count, const char *from, int format, const char *to, int other, widen_half *widen) {
    double found = 0;
    for (long at = 0; at < count; at += BLOCK) {
        floats row[BLOCK / LANES] = {{0}};
        for (long i = at; i < at + BLOCK && i < count; i += LANES) {
            floats one = eight(format, from + i * ITEM_BYTES[format], count - i, widen);
            if (to) one -= eight(other, to + i * ITEM_BYTES[other], count - i, widen);
            row[(i - at) / LANES] = one;
        }
        found += squared(row);
    }
    return found;
}

/* Whether a NaN or infinity is among `count` values: numbers of whole BITS, whose exponent is then all ones. */
#define HAS_NO_END(BITS, ONES) \
    const BITS *value = values, ones = ONES; \
    BITS found = 0; \
    for (long i = 0; i < count; i++) found |= (BITS)-((value[i] & ones) == ones); \
    return found != 0;

INLINE int has_no_end(long count, const void *values, int format) {
    if (format == F64) { HAS_NO_END(uint64_t, 0x7ff0000000000000) }
    if (format == F32) { HAS_NO_END(uint32_t, 0x7f800000) }
    HAS_NO_END(uint16_t, format == F16 ? 0x7c00 : 0x7f80)
}

/* The loops, compiled for one kind of processor. */
#define COMPILED(KIND, TARGET) \
    TARGET static int sum_##KIND(int terms, const struct term *term, const char *const *rows, int format, \
                                 long count, char *out) { \
        return sum_any(terms, term, rows, format, count, out, widen_half_##KIND, narrow_half_##KIND); \
    } \
    TARGET static double square_##KIND(long count, const char *from, int format, const char *to, int other) { \
        return square(count, from, format, to, other, widen_half_##KIND); \
    } \
    TARGET static int has_no_end_##KIND(long count, const void *values, int format) { \
        return has_no_end(count, values, format); \
    }

COMPILED(plainly, )

#if defined(__x86_64__)
COMPILED(avx2, AVX2)

#define HAS_AVX2 \
    (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma"))
#define CHOSEN(NAME, ...) (!plainly && HAS_AVX2 ? NAME##_avx2(__VA_ARGS__) : NAME##_plainly(__VA_ARGS__))
#else
#define CHOSEN(NAME, ...) ((void)plainly, NAME##_plainly(__VA_ARGS__))
#endif

int aid_has_no_end(long count, const void *values, int format, int plainly) {
    return CHOSEN(has_no_end, count, values, format);
}

/* Which term the NaN or infinity comes from; -1 if from none. */
static int culprit(int terms, const struct term *term, const char *const *rows, long count, int plainly) {
    for (int k = 0; k < terms; k++)
        if (aid_has_no_end(count, rows[k], term[k].format, plainly)) return k + 1;
    return -1;
}

static int read_whole(int file, char *to, long size, int64_t at) {
    for (long done = 0, got; done < size; done += got) {
        do got = pread(file, to + done, size - done, at + done);
        while (got < 0 && errno == EINTR);
        if (got <= 0) return 0;
    }
    return 1;
}

/* What is less than LANES values goes by memory that holds as many. */
static int sum_last(int terms, const struct term *term, const char **rows, int format, long count, char *out,
                    char *spare, int plainly) {
    char result[LANES * WIDEST];
    for (int k = 0; k < terms; k++, spare += LANES * WIDEST) {
        memset(spare, 0, LANES * WIDEST);
        rows[k] = memcpy(spare, rows[k], count * ITEM_BYTES[term[k].format]);
    }
    int found = CHOSEN(sum, terms, term, rows, format, LANES, result);
    memcpy(out, result, count * ITEM_BYTES[format]);
    return found;
}

/* Some of the sum's values; its fault, as `aid_sum` tells it. */
static int blend(int terms, const struct term *term, const char **rows, int format, long count, char *out,
                 char *spare, int plainly) {
    long whole = count / LANES * LANES, left = count - whole;
    int fault = CHOSEN(sum, terms, term, rows, format, whole, out) ? culprit(terms, term, rows, whole, plainly) : 0;
    if (!left) return fault;
    for (int k = 0; k < terms; k++) rows[k] += whole * ITEM_BYTES[term[k].format];
    int found = sum_last(terms, term, rows, format, left, out + whole * ITEM_BYTES[format], spare, plainly);
    return found && !fault ? culprit(terms, term, rows, left, plainly) : fault;
}

/* out = sum of weight times values, `count` values each, of which some are read at a time from files. `plainly`
   does without vector instructions.

   Returns 0; k + 1 if term k holds NaN or infinity; -1 if only the result does; -2 without memory; -3 - k if
   term k's file ends too early or can't be read. */
int aid_sum(long count, int terms, const struct term *term, int format, char *out, int plainly) {
    int fault = 0;
    long most = ROOM / WIDEST / terms / LANES * LANES, step = most > STEP ? STEP : most < LANES ? LANES : most;
    char *room = malloc(terms * (step * WIDEST + LANES * WIDEST + sizeof(char *)));
    if (!room) return -2;
    char *spare = room + terms * step * WIDEST;
    const char **rows = (const char **)(spare + terms * LANES * WIDEST);
    for (long at = 0; at < count; at += step) {
        long here = count - at < step ? count - at : step;
        for (int k = 0; k < terms; k++) {
            int item = ITEM_BYTES[term[k].format];
            char *own = room + k * step * WIDEST;
            rows[k] = term[k].values ? term[k].values + at * item : own;
            if (term[k].values || read_whole(term[k].file, own, here * item, term[k].at + at * item)) continue;
            free(room);
            return -3 - k;
        }
        int found = blend(terms, term, rows, format, here, out + at * ITEM_BYTES[format], spare, plainly);
        if (!fault) fault = found;
    }
    free(room);
    return fault;
}

/* The sum of squared differences, in floats; `to` may be NULL, which stands for zeros. */
double aid_square(long count, const char *from, int format, const char *to, int other, int plainly) {
    return CHOSEN(square, count, from, format, to, other);
}
