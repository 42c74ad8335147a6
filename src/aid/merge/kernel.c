/* Weighted sums of tensors of any floating format: each value is computed in double precision and rounded once.

   Built without contraction (no fused multiply-add), so that every machine and the torch path give the same
   bytes. The loops are compiled twice, plainly and for AVX2; which one runs is found out when it is called. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 64 /* sums side by side: as many as stay in registers */
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

INLINE void narrow_row(int format, const double *sum, float *odd, void *to, long count, narrow_half *half) {
    if (format == F64) { memcpy(to, sum, count * 8); return; }
    if (format == F32) { for (long i = 0; i < count; i++) ((float *)to)[i] = (float)sum[i]; return; }
    for (long i = 0; i < count; i++) odd[i] = to_odd(sum[i]);
    if (format == F16) half(odd, to, count);
    else for (long i = 0; i < count; i++) ((uint16_t *)to)[i] = narrow_brain(odd[i]);
}

INLINE int has_no_end(const float *row, long count) {
    uint32_t found = 0;
    for (long i = 0; i < count; i++) found |= (bits_of(row[i]) & 0x7f800000) == 0x7f800000;
    return found != 0;
}

/* Which term the NaN or infinity comes from; -1 if from none. */
static int culprit(const float *rows, int terms, long count) {
    for (int term = 0; term < terms; term++)
        if (has_no_end(rows + (long)term * BLOCK, count)) return term + 1;
    return -1;
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

INLINE void add_row(const void *from, int format, const float *row, double weight, int first, double *sum,
                    long count) {
    const double *exact = from;
    if (format == F64 && first) for (long i = 0; i < count; i++) sum[i] = weight * exact[i];
    else if (format == F64) for (long i = 0; i < count; i++) sum[i] += weight * exact[i];
    else if (first) for (long i = 0; i < count; i++) sum[i] = weight * row[i];
    else for (long i = 0; i < count; i++) sum[i] += weight * row[i];
}

static const int ITEM_BYTES[] = {8, 4, 2, 2};

INLINE int blend(long count, int terms, const void *const *values, const int *formats, const double *weights,
                 int format, void *out, double *squares, widen_half *widen, narrow_half *narrow) {
    static const float nothing[BLOCK];
    float *rows = calloc((size_t)(terms + 1) * BLOCK, sizeof(float)), *result = rows + (long)terms * BLOCK;
    double sum[BLOCK];
    int fault = rows ? 0 : -2;
    for (long at = 0; at < count && rows; at += BLOCK) {
        long here = count - at < BLOCK ? count - at : BLOCK;
        if (here < BLOCK) memset(rows, 0, (size_t)(terms + 1) * BLOCK * sizeof(float));
        for (int term = 0; term < terms; term++) {
            const char *from = (const char *)values[term] + at * ITEM_BYTES[formats[term]];
            float *row = rows + (long)term * BLOCK;
            widen_row(formats[term], from, row, here, widen);
            if (out) add_row(from, formats[term], row, weights[term], term == 0, sum, here);
        }
        if (out) {
            char *to = (char *)out + at * ITEM_BYTES[format];
            narrow_row(format, sum, result, to, here, narrow);
            widen_row(format, to, result, here, widen);
        } else memcpy(result, rows, BLOCK * sizeof(float));
        for (int term = 0; out && term < terms; term++)
            squares[term] += squared(rows + (long)term * BLOCK, result);
        float square = squared(result, nothing);
        squares[terms] += square;
        if (!fault && !isfinite(square) && has_no_end(result, here)) /* one in a term is one in the sum */
            fault = culprit(rows, terms, here);
    }
    free(rows);
    return fault;
}

static int blend_plainly(long count, int terms, const void *const *values, const int *formats,
                         const double *weights, int format, void *out, double *squares) {
    return blend(count, terms, values, formats, weights, format, out, squares, widen_half_plainly,
                 narrow_half_plainly);
}

#if defined(__x86_64__)
#include <immintrin.h>

#define FAST __attribute__((target("avx2,f16c")))

FAST static void widen_half_fast(const uint16_t *from, float *to, long count) {
    long i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    for (; i < count; i++) to[i] = _cvtsh_ss(from[i]);
}

FAST static void narrow_half_fast(const float *from, uint16_t *to, long count) {
    long i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
    for (; i < count; i++) to[i] = _cvtss_sh(from[i], 0);
}

FAST static int blend_fast(long count, int terms, const void *const *values, const int *formats,
                           const double *weights, int format, void *out, double *squares) {
    return blend(count, terms, values, formats, weights, format, out, squares, widen_half_fast,
                 narrow_half_fast);
}

static int is_fast(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }
#else
#define blend_fast blend_plainly
static int is_fast(void) { return 0; }
#endif

/* out = sum of weights[k] * values[k], `count` values each, in the formats given (enum format). Without `out`
   there is one term, the result itself, which is only looked at.

   squares has terms + 1 places, to which are added: for each term the squared distance between its values and
   the result, then the result's own squares. `plainly` does without vector instructions.

   Returns 0; k + 1 if term k holds NaN or infinity; -1 if only the result does; -2 without memory. */
int aid_blend(long count, int terms, const void *const *values, const int *formats, const double *weights,
              int format, void *out, double *squares, int plainly) {
    if (!plainly && is_fast())
        return blend_fast(count, terms, values, formats, weights, format, out, squares);
    return blend_plainly(count, terms, values, formats, weights, format, out, squares);
}
