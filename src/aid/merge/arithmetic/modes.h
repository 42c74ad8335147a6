/* Of numbers that are REAL, whose bits are BITS, SOME at a time; WIDENED makes them. Rows are a BLOCK long. */

TARGET static void OF(row_of)(int format, const char *from, REAL *to, long count) {
    long item = ITEM_BYTES[format], whole = count / LANES * LANES;
    char last[LANES * WIDEST] = {0};
    SOME some;
    for (long i = 0; i < whole; i += LANES) {
        some = WIDENED(format, from + i * item, JOIN(widen, half, KIND));
        memcpy(to + i, &some, sizeof some);
    }
    if (whole == count) return;
    memcpy(last, from + whole * item, (count - whole) * item);
    some = WIDENED(format, last, JOIN(widen, half, KIND));
    memcpy(to + whole, &some, sizeof some);
}

TARGET static void OF(row)(const struct term *term, long at, REAL *to, long count) {
    const char *from = term->values + at * ITEM_BYTES[term->format];
    if (term->format == F16) OF(row_of)(F16, from, to, count); /* a loop of its own */
    else if (term->format == F32) OF(row_of)(F32, from, to, count);
    else OF(row_of)(term->format, from, to, count);
}

INLINE REAL OF(size)(REAL value) { return value < 0 ? -value : value; }
INLINE REAL OF(sign)(REAL value) { return (REAL)((value > 0) - (value < 0)); }

/* Differences' sizes as whole numbers, which are in the same order, are counted from `lowest` on, 2^shift to a bin.
   Returns how many are below. */
TARGET static long OF(count_sizes)(long count, const struct term *term, uint64_t lowest, int shift,
                                   uint32_t *counts, long bins) {
    const BITS least = (BITS)lowest, rest = (BITS)-1 >> 1;
    long below = 0;
    for (long at = 0; at < count; at += BLOCK) {
        REAL own[BLOCK], other[BLOCK];
        BITS sizes[BLOCK];
        long here = count - at < BLOCK ? count - at : BLOCK, less = 0;
        OF(row)(term, at, own, here);
        OF(row)(term + 1, at, other, here);
        for (long i = 0; i < here; i++) other[i] -= own[i];
        memcpy(sizes, other, sizeof sizes);
        for (long i = 0; i < here; i++) {
            BITS size = sizes[i] & rest;
            less += size < least;
            sizes[i] = (size - least) >> shift; /* of what is below it's beyond all bins */
        }
        below += less;
        for (long i = 0; i < here; i++)
            if (sizes[i] < (BITS)bins) counts[sizes[i]]++;
    }
    return below;
}

/* TIES: A + alpha times the mean of the differences that are no smaller than each model's least, and have the sign
   that most have, or that of their sum. */
TARGET static void OF(agree)(long count, int terms, const struct term *term, const double *least, double alpha,
                             int by_mass, REAL *restrict out) {
    REAL own[BLOCK], rows[terms][BLOCK], votes[BLOCK], total[BLOCK], number[BLOCK];
    for (long at = 0; at < count; at += BLOCK) {
        long here = count - at < BLOCK ? count - at : BLOCK;
        OF(row)(term, at, own, here);
        for (long i = 0; i < BLOCK; i++) votes[i] = total[i] = number[i] = 0;
        for (int k = 1; k < terms; k++) {
            REAL *row = rows[k], end = (REAL)least[k - 1];
            OF(row)(term + k, at, row, here);
            for (long i = 0; i < here; i++) {
                REAL one = row[i] - own[i];
                row[i] = OF(size)(one) >= end ? one : 0;
            }
            if (by_mass) for (long i = 0; i < here; i++) votes[i] += row[i];
            else for (long i = 0; i < here; i++) votes[i] += OF(sign)(row[i]);
        }
        for (long i = 0; i < here; i++) votes[i] = OF(sign)(votes[i]);
        for (int k = 1; k < terms; k++)
            for (long i = 0; i < here; i++) {
                int same = OF(sign)(rows[k][i]) == votes[i];
                total[i] += same ? rows[k][i] : 0;
                number[i] += (REAL)same;
            }
        for (long i = 0; i < here; i++) {
            REAL mean = total[i] / number[i];
            total[i] = number[i] != 0 ? mean : 0;
        }
        for (long i = 0; i < here; i++) out[at + i] = own[i] + (REAL)alpha * total[i];
    }
}

/* A + scale s (B - C), s = |B - A| / (|B - A| + |B - C|). */
TARGET static void OF(train)(long count, const struct term *term, double scale, REAL *restrict out) {
    REAL a[BLOCK], b[BLOCK], c[BLOCK];
    for (long at = 0; at < count; at += BLOCK) {
        long here = count - at < BLOCK ? count - at : BLOCK;
        OF(row)(term, at, a, here);
        OF(row)(term + 1, at, b, here);
        OF(row)(term + 2, at, c, here);
        for (long i = 0; i < here; i++) {
            REAL learned = b[i] - c[i], left = OF(size)(b[i] - a[i]), both = left + OF(size)(learned);
            REAL share = left / both;
            b[i] = both != 0 ? share : 0;
            c[i] = learned;
        }
        for (long i = 0; i < here; i++) out[at + i] = a[i] + (REAL)scale * b[i] * c[i];
    }
}

/* DARE: A + scale times the sum of the differences, of which a share is dropped. `states` are PCG64's for each model
   but the first: state and increment, the upper half first, and 1 if half of the next draw has been taken. */
TARGET static void OF(drop)(long count, int terms, const struct term *term, const uint64_t *states,
                            double share, double scale, REAL *restrict out) {
    REAL own[BLOCK], row[BLOCK];
    float chance[BLOCK], least = (float)share;
    for (long i = 0; i < count; i++) out[i] = 0;
    for (int k = 1; k < terms; k++, states += 5) {
        state now = (state)states[0] << 64 | states[1], more = (state)states[2] << 64 | states[3];
        int taken = (int)states[4];
        uint64_t pair = taken ? drawn(&now, more) : 0;
        for (long at = 0; at < count; at += BLOCK) {
            long here = count - at < BLOCK ? count - at : BLOCK, i = 0;
            if (taken) chance[i++] = upper(pair);
            for (; i + 1 < here; i += 2) {
                pair = drawn(&now, more);
                chance[i] = lower(pair);
                chance[i + 1] = upper(pair);
            }
            taken = i < here;
            if (taken) chance[i] = lower(pair = drawn(&now, more));
            OF(row)(term, at, own, here);
            OF(row)(term + k, at, row, here);
            for (i = 0; i < here; i++) {
                REAL one = row[i] - own[i];
                row[i] = chance[i] >= least ? one : 0;
            }
            for (i = 0; i < here; i++) out[at + i] += row[i];
        }
    }
    for (long at = 0; at < count; at += BLOCK) {
        long here = count - at < BLOCK ? count - at : BLOCK;
        OF(row)(term, at, own, here);
        for (long i = 0; i < here; i++) out[at + i] = own[i] + (REAL)scale * out[at + i];
    }
}

/* The sums of A B, A A and B B in doubles: in eight sums side by side, which are then added in halves. */
TARGET static void OF(products)(long count, const struct term *term, double *sums) {
    double side[3][LANES] = {{0}};
    for (long at = 0; at < count; at += BLOCK) {
        REAL a[BLOCK] = {0}, b[BLOCK] = {0};
        long here = count - at < BLOCK ? count - at : BLOCK;
        OF(row)(term, at, a, here);
        OF(row)(term + 1, at, b, here);
        for (long i = 0; i < BLOCK; i += LANES)
            for (int j = 0; j < LANES; j++) {
                double x = a[i + j], y = b[i + j];
                side[0][j] += x * y;
                side[1][j] += x * x;
                side[2][j] += y * y;
            }
    }
    for (int k = 0; k < 3; k++) {
        for (int left = LANES / 2; left; left /= 2)
            for (int j = 0; j < left; j++) side[k][j] += side[k][j + left];
        sums[k] = side[k][0];
    }
}

/* out += scale times left @ right, of floats: [rows, rank] and [rank, columns]. Sums are of doubles in the ranks' order;
   as a product of two floats is exact there, it makes no difference whether it is rounded before it is added. `room` has
   (rows rounded up to a HEIGHT + WIDTH) * rank doubles. */
TARGET static void OF(add_product)(long rows, long rank, long columns, const float *left, const float *right,
                                   double scale, REAL *restrict out, double *room) {
    double *high = room, *wide = lay_rows(rows, rank, left, high);
    for (long at = 0; at < columns; at += WIDTH) {
        const long width = lay_columns(rank, columns, at, right, wide);
        for (long from = 0; from < rows; from += HEIGHT) {
            const long height = MIN(HEIGHT, rows - from);
            double sums[HEIGHT][WIDTH];
            JOIN(tile, of, KIND)(rank, high + from * rank, wide, sums);
            for (long i = 0; i < height; i++) {
                REAL *to = out + (from + i) * columns + at;
                for (long j = 0; j < width; j++) to[j] = (REAL)(to[j] + scale * sums[i][j]);
            }
        }
    }
}

/* LoHa: out += scale times strength times two such products multiplied by each other, value by value. Products are
   rounded to floats. `room` is for both. */
TARGET static void OF(add_multiplied)(long rows, long rank, long columns, const float *const *left,
                                      const float *const *right, double scale, double strength, REAL *restrict out,
                                      double *room) {
    double *high = room, *other_high = lay_rows(rows, rank, left[0], high);
    double *wide = lay_rows(rows, rank, left[1], other_high), *other_wide = wide + WIDTH * rank;
    for (long at = 0; at < columns; at += WIDTH) {
        const long width = lay_columns(rank, columns, at, right[0], wide);
        lay_columns(rank, columns, at, right[1], other_wide);
        for (long from = 0; from < rows; from += HEIGHT) {
            const long height = MIN(HEIGHT, rows - from);
            double one[HEIGHT][WIDTH], other[HEIGHT][WIDTH];
            JOIN(tile, of, KIND)(rank, high + from * rank, wide, one);
            JOIN(tile, of, KIND)(rank, other_high + from * rank, other_wide, other);
            for (long i = 0; i < height; i++) {
                REAL *to = out + (from + i) * columns + at;
                for (long j = 0; j < width; j++) {
                    float both = (float)one[i][j] * (float)other[i][j];
                    to[j] += both * (REAL)scale * (REAL)strength;
                }
            }
        }
    }
}

/* DoRA: rows of a weight [rows, inputs, each] plus a delta times `scale`, each value squared and added to its input's
   sum, row by row. */
TARGET static void OF(add_squares)(long rows, long inputs, long each, const REAL *values, const float *delta,
                                   double scale, double *squares) {
    for (long r = 0; r < rows; r++)
        for (long j = 0; j < inputs; j++)
            for (long k = 0; k < each; k++, values++, delta++) {
                double merged = *values + *delta * (REAL)scale;
                squares[j] += merged * merged;
            }
}

/* What magnitudes make of such rows, less these, is added `strength` times. The magnitudes are those of the inputs, whose
   norms are told; if none are, of the rows. */
TARGET static void OF(add_decomposed)(long rows, long inputs, long each, REAL *values, const float *delta, double scale,
                                      double strength, const float *magnitude, const double *norms) {
    const REAL least = (REAL)0x1p-23, share = (REAL)strength;
    for (long r = 0; r < rows; r++) {
        double square = 0;
        for (long i = 0; !norms && i < inputs * each; i++) {
            double merged = values[i] + delta[i] * (REAL)scale;
            square += merged * merged;
        }
        for (long j = 0; j < inputs; j++) {
            REAL length = (REAL)(norms ? norms[j] : sqrt(square)), factor = magnitude[norms ? j : r] / (length + least);
            for (long k = 0; k < each; k++, values++, delta++) {
                REAL merged = *values + *delta * (REAL)scale;
                *values += share * (merged * factor - *values);
            }
        }
    }
}
