/* What TIES computes, value by value, in floats: the sizes of differences counted, and the mean of those that agree.

   Compiled together with the weighted sums, whose rows these are. */

#include "kernel.c"

#include <math.h>


INLINE uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

INLINE void widen_row(int format, const char *from, long at, float *to, long count, widen_half *half) {
    long item = ITEM_BYTES[format], whole = count / LANES * LANES;
    floats some;
    from += at * item;
    for (long i = 0; i < whole; i += LANES) {
        some = widened(format, from + i * item, half);
        memcpy(to + i, &some, sizeof some);
    }
    if (whole == count) return;
    some = eight(format, from + whole * item, count - whole, half);
    memcpy(to + whole, &some, sizeof some); /* a row is a BLOCK, whatever the count */
}

INLINE void widen(int format, const char *from, long at, float *to, long count, widen_half *half) {
    if (format == F16) widen_row(F16, from, at, to, count, half);
    else if (format == F32) widen_row(F32, from, at, to, count, half);
    else widen_row(format, from, at, to, count, half);
}

/* Differences' sizes as integers, which are in the same order, are counted from `lowest` on, 2^shift to a bin.
   Returns how many are below. */
INLINE long count_sizes(long count, const void *base, int format, const void *values, int other, uint32_t lowest,
                        int shift, uint32_t *counts, long bins, widen_half *half) {
    long below = 0;
    for (long at = 0; at < count; at += BLOCK) {
        float own[BLOCK], row[BLOCK];
        uint32_t sizes[BLOCK];
        int here = (int)(count - at < BLOCK ? count - at : BLOCK), less = 0;
        widen(format, base, at, own, here, half);
        widen(other, values, at, row, here, half);
        for (int i = 0; i < here; i++) {
            uint32_t size = bits_of(row[i] - own[i]) & 0x7fffffff;
            less += size < lowest;
            sizes[i] = (size - lowest) >> shift; /* of what is below it's beyond all bins */
        }
        below += less;
        for (int i = 0; i < here; i++)
            if (sizes[i] < bins) counts[sizes[i]]++;
    }
    return below;
}

INLINE float sign(float value) { return (float)((value > 0) - (value < 0)); }

/* base + alpha * mean of the differences that are no smaller than each model's least, and have the sign that most
   have, or that of their sum (`by_mass`). */
INLINE void agree(long count, int terms, const void *const *values, const int *formats, const float *least,
                  float alpha, int by_mass, float *out, widen_half *half, float (*rows)[BLOCK]) {
    for (long at = 0; at < count; at += BLOCK) {
        float own[BLOCK], votes[BLOCK] = {0}, total[BLOCK] = {0}, number[BLOCK] = {0};
        long here = count - at < BLOCK ? count - at : BLOCK;
        widen(formats[0], values[0], at, own, here, half);
        for (int term = 1; term < terms; term++) {
            float *row = rows[term - 1], end = least[term - 1];
            widen(formats[term], values[term], at, row, here, half);
            for (int i = 0; i < here; i++) {
                float one = row[i] - own[i];
                row[i] = fabsf(one) >= end ? one : 0.0f;
            }
            if (by_mass) for (int i = 0; i < here; i++) votes[i] += row[i];
            else for (int i = 0; i < here; i++) votes[i] += sign(row[i]);
        }
        for (int i = 0; i < here; i++) votes[i] = sign(votes[i]);
        for (int term = 1; term < terms; term++) {
            const float *row = rows[term - 1];
            for (int i = 0; i < here; i++) {
                int same = sign(row[i]) == votes[i];
                total[i] += same ? row[i] : 0.0f;
                number[i] += (float)same;
            }
        }
        for (int i = 0; i < here; i++)
            out[at + i] = own[i] + alpha * (number[i] != 0 ? total[i] / number[i] : 0.0f);
    }
}

#define COMPILED_TIES(KIND, TARGET) \
    TARGET static long count_sizes_##KIND(long count, const void *base, int format, const void *values, int other, \
                                          uint32_t lowest, int shift, uint32_t *counts, long bins) { \
        return count_sizes(count, base, format, values, other, lowest, shift, counts, bins, widen_half_##KIND); \
    } \
    TARGET static int agree_##KIND(long count, int terms, const void *const *values, const int *formats, \
                                   const float *least, float alpha, int by_mass, float *out, \
                                   float (*rows)[BLOCK]) { \
        agree(count, terms, values, formats, least, alpha, by_mass, out, widen_half_##KIND, rows); \
        return 0; \
    }

COMPILED_TIES(plainly, )
#if defined(__x86_64__)
COMPILED_TIES(avx2, AVX2)
#endif

long aid_count_sizes(long count, const void *base, int format, const void *values, int other, uint32_t lowest,
                     int shift, uint32_t *counts, long bins, int plainly) {
    return CHOSEN(count_sizes, count, base, format, values, other, lowest, shift, counts, bins);
}

/* In which bin the value is that has *place others before it, and in *place how many of these are in that bin; `bins`
   if in none. */
long aid_bin(const uint32_t *counts, long bins, long *place) {
    long bin = 0;
    while (bin < bins && *place >= counts[bin]) *place -= counts[bin++];
    return bin;
}

/* values[0] is the base. Returns 0, or -2 without memory. */
int aid_agree(long count, int terms, const void *const *values, const int *formats, const float *least, float alpha,
              int by_mass, float *out, int plainly) {
    float (*rows)[BLOCK] = calloc((size_t)terms, sizeof *rows);
    if (!rows) return -2;
    CHOSEN(agree, count, terms, values, formats, least, alpha, by_mass, out, rows);
    free(rows);
    return 0;
}
