/* Weighted sums of tensors of any floating format: each value is computed in double precision and rounded once.

   Built without contraction (no fused multiply-add), so that every machine and the torch path give the same
   bytes. The loops are compiled twice, plainly and for AVX2; which run is found out when they are called. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 64 /* squares summed side by side: as many as stay in registers */
#define BLOCK 1024 /* values at a time: the rows of some twenty models stay in the second-level cache */

enum format { F64, F32, F16, BF16 };

typedef void widen_half(const uint16_t *restrict from, float *restrict to, long count);
typedef void narrow_half(const float *restrict from, uint16_t *restrict to, long count);

#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

/* Half precision by shifts: the exponents are rebiased by a multiplication, which is exact. */
static void widen_half_plainly(const uint16_t *from, float *to, long count) {
    for (long i = 0; i < count; i++) {
        uint32_t half = from[i], magnitude = (half & 0x7fff) << 13;
        float value = float_of(magnitude) * 0x1p112f;
        if (magnitude >= 0x0f800000) value = float_of(magnitude | 0x7f800000); /* infinity, NaN */
        to[i] = float_of(bits_of(value) | (half & 0x8000) << 16);
    }
}

static void narrow_half_plainly(const float *from, uint16_t *to, long count) {
    for (long i = 0; i < count; i++) {
        uint32_t bits = bits_of(from[i]), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff, half;
        if (magnitude > 0x7f800000) half = 0x7e00;
        else if (magnitude >= 0x477ff000) half = 0x7c00; /* 65520 and more */
        else if (magnitude < 0x38800000) half = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000; /* subnormal */
        else half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
        to[i] = (uint16_t)(sign | half);
    }
}

INLINE void widen_row(int format, const void *from, float *to, long count, widen_half *half) {
    if (format == F16) half(from, to, count);
    else if (format == F32) memcpy(to, from, count * 4);
    else if (format == BF16)
        for (long i = 0; i < count; i++) to[i] = float_of((uint32_t)((const uint16_t *)from)[i] << 16);
    else
        for (long i = 0; i < count; i++) to[i] = (float)((const double *)from)[i];
}

/* To 24 bits, the last of which is set if anything was cut off: rounding this to fewer bits is then as if the
   double itself had been rounded ("round to odd"; Boldo and Melquiond 2008). */
INLINE float to_odd(double value) {
    const uint64_t cut = 0x1fffffff;
    uint64_t bits;
    memcpy(&bits, &value, 8);
    bits = (bits | ((bits & cut) + cut)) & ~cut;
    memcpy(&value, &bits, 8);
    return (float)value;
}

INLINE uint16_t narrow_brain(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* Whether there is a NaN or infinity among them: the exponent is all ones. */
INLINE int has_no_end(int format, const void *row, long count) {
    uint64_t found = 0;
    uint32_t found32 = 0;
    uint16_t found16 = 0, ones = format == F16 ? 0x7c00 : 0x7f80;
    if (format == F64)
        for (long i = 0; i < count; i++) {
            const uint64_t exponent = 0x7ff0000000000000;
            found |= (((const uint64_t *)row)[i] & exponent) == exponent;
        }
    else if (format == F32)
        for (long i = 0; i < count; i++) found32 |= (((const uint32_t *)row)[i] & 0x7f800000) == 0x7f800000;
    else
        for (long i = 0; i < count; i++) found16 |= (((const uint16_t *)row)[i] & ones) == ones;
    return found || found32 || found16;
}

static const int ITEM_BYTES[] = {8, 4, 2, 2};

/* What is summed, and a block of it as floats. */
struct sum {
    int terms;
    const void *const *values;
    const int *formats;
    const double *weights;
    float *rows;
};

INLINE const void *place(const struct sum *own, int term, long at) {
    return (const char *)own->values[term] + at * ITEM_BYTES[own->formats[term]];
}

/* Term by term, for any formats. */
INLINE void sum_terms(const struct sum *own, long at, double *sum, long count) {
    for (int term = 0; term < own->terms; term++) {
        const double *exact = place(own, term, at), weight = own->weights[term];
        const float *row = own->rows + (long)term * BLOCK;
        if (own->formats[term] == F64 && !term) for (long i = 0; i < count; i++) sum[i] = weight * exact[i];
        else if (own->formats[term] == F64) for (long i = 0; i < count; i++) sum[i] += weight * exact[i];
        else if (!term) for (long i = 0; i < count; i++) sum[i] = weight * row[i];
        else for (long i = 0; i < count; i++) sum[i] += weight * row[i];
    }
}

/* The same of a whole block of floats; where `terms` is known to the compiler, the sums stay in registers. */
INLINE void sum_rows(const float *restrict rows, const double *restrict weights, int terms, double *restrict sum) {
    for (int i = 0; i < BLOCK; i++) {
        double total = weights[0] * rows[i];
        for (int term = 1; term < terms; term++) total += weights[term] * rows[term * BLOCK + i];
        sum[i] = total;
    }
}

INLINE void sum_block(const struct sum *own, long at, double *sum, long count) {
    int doubles = 0;
    for (int term = 0; term < own->terms; term++) doubles |= own->formats[term] == F64;
    if (!doubles && own->terms == 1) sum_rows(own->rows, own->weights, 1, sum);
    else if (!doubles && own->terms == 2) sum_rows(own->rows, own->weights, 2, sum);
    else if (!doubles && own->terms == 3) sum_rows(own->rows, own->weights, 3, sum);
    else if (!doubles && own->terms == 4) sum_rows(own->rows, own->weights, 4, sum);
    else sum_terms(own, at, sum, count);
}

INLINE void narrow_row(int format, const double *sum, void *to, long count, narrow_half *half) {
    float odd[BLOCK];
    if (format == F64) { memcpy(to, sum, count * 8); return; }
    if (format == F32) { for (long i = 0; i < count; i++) ((float *)to)[i] = (float)sum[i]; return; }
    for (long i = 0; i < count; i++) odd[i] = to_odd(sum[i]);
    if (format == F16) half(odd, to, count);
    else for (long i = 0; i < count; i++) ((uint16_t *)to)[i] = narrow_brain(odd[i]);
}

/* Which term the NaN or infinity comes from; -1 if from none. */
static int culprit(const struct sum *own, long at, long count) {
    for (int term = 0; term < own->terms; term++)
        if (has_no_end(own->formats[term], place(own, term, at), count)) return term + 1;
    return -1;
}

INLINE int blend(struct sum *own, long count, int format, void *out, widen_half *widen, narrow_half *narrow) {
    double sum[BLOCK];
    int fault = 0;
    for (long at = 0; at < count; at += BLOCK) {
        char *to = (char *)out + at * ITEM_BYTES[format];
        long here = count - at < BLOCK ? count - at : BLOCK;
        for (int term = 0; term < own->terms; term++)
            widen_row(own->formats[term], place(own, term, at), own->rows + (long)term * BLOCK, here, widen);
        sum_block(own, at, sum, here);
        narrow_row(format, sum, to, here, narrow);
        if (!fault && has_no_end(format, to, here)) fault = culprit(own, at, here);
    }
    return fault;
}

/* The sum of a block's squared differences: in LANES sums side by side, which are then added in halves. torch can
   add them in this order too. */
INLINE float squared(const float *row, const float *less) {
    float sums[LANES] = {0};
    for (int at = 0; at < BLOCK; at += LANES)
        for (int i = 0; i < LANES; i++) {
            float one = row[at + i] - less[at + i];
            sums[i] += one * one;
        }
    for (int left = LANES / 2; left; left /= 2)
        for (int i = 0; i < left; i++) sums[i] += sums[i + left];
    return sums[0];
}

INLINE double square(long count, const void *from, int format, const void *to, int other, widen_half *widen) {
    double found = 0;
    for (long at = 0; at < count; at += BLOCK) {
        float row[BLOCK] = {0}, less[BLOCK] = {0};
        long here = count - at < BLOCK ? count - at : BLOCK;
        widen_row(format, (const char *)from + at * ITEM_BYTES[format], row, here, widen);
        if (to) widen_row(other, (const char *)to + at * ITEM_BYTES[other], less, here, widen);
        found += squared(row, less);
    }
    return found;
}

/* The loops, compiled for one kind of processor. */
#define COMPILED(KIND, TARGET) \
    TARGET static int blend_##KIND(struct sum *own, long count, int format, void *out) { \
        return blend(own, count, format, out, widen_half_##KIND, narrow_half_##KIND); \
    } \
    TARGET static double square_##KIND(long count, const void *from, int format, const void *to, int other) { \
        return square(count, from, format, to, other, widen_half_##KIND); \
    }

COMPILED(plainly, )

#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c")))

AVX2 static void widen_half_avx2(const uint16_t *from, float *to, long count) {
    long i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    for (; i < count; i++) to[i] = _cvtsh_ss(from[i]);
}

AVX2 static void narrow_half_avx2(const float *from, uint16_t *to, long count) {
    long i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
    for (; i < count; i++) to[i] = _cvtss_sh(from[i], 0);
}

COMPILED(avx2, AVX2)

#define CHOSEN(NAME, ...) \
    (!plainly && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? NAME##_avx2(__VA_ARGS__) \
                                                                                  : NAME##_plainly(__VA_ARGS__))
#else
#define CHOSEN(NAME, ...) ((void)plainly, NAME##_plainly(__VA_ARGS__))
#endif

/* out = sum of weights[k] * values[k], `count` values each, in the formats given (enum format). `plainly` does
   without vector instructions.

   Returns 0; k + 1 if term k holds NaN or infinity; -1 if only the result does; -2 without memory. */
int aid_blend(long count, int terms, const void *const *values, const int *formats, const double *weights,
              int format, void *out, int plainly) {
    float *rows = calloc((size_t)terms * BLOCK, sizeof(float));
    if (!rows) return -2;
    struct sum own = {terms, values, formats, weights, rows};
    int fault = CHOSEN(blend, &own, count, format, out);
    free(rows);
    return fault;
}

/* The sum of squared differences, in floats; `to` may be NULL, which stands for zeros. */
double aid_square(long count, const void *from, int format, const void *to, int other, int plainly) {
    return CHOSEN(square, count, from, format, to, other);
}

/* Whether there is a NaN or infinity among `count` values. */
int aid_has_no_end(long count, const void *values, int format) { return has_no_end(format, values, count); }
