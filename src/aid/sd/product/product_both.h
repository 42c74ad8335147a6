/* For one kind of processor: its KIND, TARGET and LANES, floats of a vector, and how two vectors' LOW_HALVES and
   HIGH_HALVES are laid in turns. */

#define HIGH (LANES / 2)   /* rows of a tile, whose sums are in registers */
#define ACROSS (2 * LANES) /* columns of one */

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

/* The first `count` numbers, zeros behind them. */
TARGET INLINE floats OF(load)(const float *from, long count) {
    floats made = {0};
    if (count >= LANES)
        memcpy(&made, from, sizeof made);
    else
        for (long i = 0; i < count; i++) made[i] = from[i];
    return made;
}

TARGET INLINE void OF(store)(floats value, float *to, long count) {
    if (count >= LANES)
        memcpy(to, &value, sizeof value);
    else
        for (long i = 0; i < count; i++) to[i] = value[i];
}

/* Rows become columns: each time the first half of them is laid between the second. */
TARGET INLINE void OF(turn)(floats *square) {
    for (int span = 1; span < LANES; span *= 2) {
        floats made[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            made[2 * i] = SHUFFLED(square[i], square[i + LANES / 2], LOW_HALVES);
            made[2 * i + 1] = SHUFFLED(square[i], square[i + LANES / 2], HIGH_HALVES);
        }
        memcpy(square, made, sizeof made);
    }
}

/* The weights of a tile's columns, `deep` of each, `down` and `across` from a number to the next, one of which is
   1; those `ahead` come next and are fetched meanwhile. */
TARGET static void OF(gather)(const float *from, long deep, long columns, long down, long across, long ahead,
                              floats (*panel)[2]) {
    if (across == 1) {
        for (long k = 0; k < deep; k++)
            for (int j = 0; j < 2; j++) {
                const float *place = from + k * down + j * LANES;
                __builtin_prefetch(place + ahead);
                panel[k][j] = OF(load)(place, columns - j * LANES);
            }
        return;
    }
    for (long k = 0; k < deep; k += LANES)
        for (int j = 0; j < 2; j++) {
            floats square[LANES];
            for (long i = 0; i < LANES; i++) {
                const float *place = from + k + (j * LANES + i) * across;
                __builtin_prefetch(place + ahead);
                square[i] = OF(load)(place, j * LANES + i < columns ? deep - k : 0);
            }
            OF(turn)(square);
            for (long i = 0; i < least(LANES, deep - k); i++) panel[k + i][j] = square[i];
        }
}

/* to[r, c] = start[r, c] + the sum over k of rows[r][k along] panel[k][c], of up to HIGH rows. The next tile's
   place is fetched meanwhile. */
TARGET INLINE void OF(tile)(const float *const *rows, long along, long deep, const floats (*panel)[2], long high,
                            long columns, const float *start, long below, float *to, long down) {
    floats sums[HIGH][2];
    for (int r = 0; r < HIGH; r++)
        for (int j = 0; j < 2; j++) {
            sums[r][j] = (floats){0};
            __builtin_prefetch(to + (HIGH + r) * down + j * LANES, 1);
        }
    for (long k = 0; k < deep; k++)
        for (int r = 0; r < HIGH; r++)
            for (int j = 0; j < 2; j++) sums[r][j] += rows[r][k * along] * panel[k][j];
    for (int r = 0; r < HIGH; r++)
        for (int j = 0; j < 2 && r < high; j++) {
            const floats before = OF(load)(start + r * below + j * LANES, columns - j * LANES);
            OF(store)(sums[r][j] + before, to + r * down + j * LANES, columns - j * LANES);
        }
}

/* Whether any of so many rows is there. */
TARGET INLINE int OF(any)(const int32_t *places, long count) {
    int32_t all = -1;
    for (long i = 0; i < count; i++) all &= places[i];
    return all >= 0;
}

/* What is added up over taps: rows times weights. */
struct OF(sum) {
    const float *from;    /* [, deep] */
    const int32_t *index; /* [taps, rows], of from; NULL: each row is its own */
    const float *weight, *start; /* what is added to each row; NULL: nothing */
    float *to; /* [rows, columns] */
    long rows, taps, deep, columns;
    long tap_on, down, across; /* from a weight to that of the next tap, number of a row, column */
};

/* Some rows of it and ACROSS columns. */
TARGET static void OF(add_taps)(const struct OF(sum) *sum, long row, long rows, long column) {
    floats panel[DEPTH][2];
    const long columns = least(ACROSS, sum->columns - column);
    const float *start = sum->start ? sum->start + column : NOTHING;
    float *to = sum->to + row * sum->columns + column;
    long below = 0;
    for (long tap = 0; tap < sum->taps; tap++) {
        const int32_t *places = sum->index ? sum->index + tap * sum->rows + row : 0;
        if (places && !OF(any)(places, rows) && (start == to || tap + 1 < sum->taps)) continue;
        for (long k = 0; k < sum->deep; k += DEPTH) {
            const long deep = least(DEPTH, sum->deep - k), at = tap * sum->tap_on + k * sum->down;
            const long next = k + DEPTH < sum->deep ? at + DEPTH * sum->down
                              : tap + 1 < sum->taps ? (tap + 1) * sum->tap_on
                                                    : ACROSS * sum->across;
            OF(gather)(sum->weight + column * sum->across + at, deep, columns, sum->down, sum->across, next - at,
                       panel);
            for (long r = 0; r < rows; r += HIGH) {
                const float *from[HIGH];
                for (long i = 0; i < HIGH; i++) {
                    const long one = r + i < rows ? r + i : r, place = places ? places[one] : row + one;
                    from[i] = place < 0 ? NOTHING : sum->from + place * sum->deep + k;
                }
                OF(tile)(from, 1, deep, (const floats(*)[2])panel, rows - r, columns, start + r * below, below,
                         to + r * sum->columns, sum->columns);
            }
            start = to, below = sum->columns;
        }
    }
}

/* The gradients of some outs' weights for a tap, of ACROSS columns. */
TARGET static void OF(weigh_back)(const struct product *all, long out, long outs, long tap, long column) {
    floats panel[DEPTH][2];
    const long columns = least(ACROSS, all->width - column);
    const long beside = all->taps * all->width;
    const int32_t *places = all->source ? all->source + tap * all->rows : 0;
    float *to = all->of_weight + out * beside + tap * all->width + column;
    if (places && !OF(any)(places, all->rows)) {
        for (long o = 0; o < outs; o++) memset(to + o * beside, 0, columns * sizeof *to);
        return;
    }
    for (long k = 0; k < all->rows; k += DEPTH) {
        const long deep = least(DEPTH, all->rows - k);
        for (long i = 0; i < deep; i++) {
            const long place = places ? places[k + i] : k + i;
            for (int j = 0; j < 2; j++)
                panel[i][j] = OF(load)(all->x + place * all->width + column + j * LANES,
                                       place < 0 ? 0 : columns - j * LANES);
        }
        for (long o = 0; o < outs; o += HIGH) {
            const float *grad[HIGH];
            for (long i = 0; i < HIGH; i++) grad[i] = all->grad + k * all->outs + out + (o + i < outs ? o + i : o);
            OF(tile)(grad, all->outs, deep, (const floats(*)[2])panel, outs - o, columns,
                     k ? to + o * beside : NOTHING, k ? beside : 0, to + o * beside, beside);
        }
    }
}

TARGET static void OF(bias_back)(const struct product *all, long out, long outs) {
    float sums[MOST] = {0};
    for (long start = 0; start < all->rows; start += DEPTH) {
        float some[MOST] = {0};
        for (long row = start; row < least(start + DEPTH, all->rows); row++)
            for (long o = 0; o < outs; o++) some[o] += all->grad[row * all->outs + out + o];
        for (long o = 0; o < outs; o++) sums[o] += some[o];
    }
    memcpy(all->of_bias + out, sums, outs * sizeof *sums);
}

/* What each thread does: the next piece, until none is left. */
TARGET INLINE void OF(add_all)(const struct OF(sum) *sum, struct work *work) {
    const long across = parts(sum->columns, ACROSS), rows = share(sum->rows, HIGH, across, work->threads);
    const long pieces = across * parts(sum->rows, rows);
    for (long one; (one = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < pieces;) {
        const long row = one / across * rows;
        OF(add_taps)(sum, row, least(rows, sum->rows - row), one % across * ACROSS);
    }
}

TARGET static void OF(multiply)(void *given) {
    struct work *work = given;
    const struct product *all = work->all;
    const struct OF(sum) sum = {
        .from = all->x, .index = all->source, .weight = all->weight, .start = all->bias, .to = all->out,
        .rows = all->rows, .taps = all->taps, .deep = all->width, .columns = all->outs,
        .tap_on = all->width, .down = 1, .across = all->taps * all->width,
    };
    OF(add_all)(&sum, work);
}

TARGET static void OF(input_back)(void *given) {
    struct work *work = given;
    const struct product *all = work->all;
    const struct OF(sum) sum = {
        .from = all->grad, .index = all->target, .weight = all->weight, .to = all->of_x,
        .rows = all->x_rows, .taps = all->taps, .deep = all->outs, .columns = all->width,
        .tap_on = all->width, .down = all->taps * all->width, .across = 1,
    };
    OF(add_all)(&sum, work);
}

TARGET static void OF(weight_back)(void *given) {
    struct work *work = given;
    const struct product *all = work->all;
    const long across = parts(all->width, ACROSS), beside = across * all->taps;
    const long outs = share(all->outs, HIGH, beside, work->threads), pieces = beside * parts(all->outs, outs);
    for (long one; (one = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < pieces;) {
        const long out = one / beside * outs, many = least(outs, all->outs - out);
        if (all->of_bias && one % beside == 0) OF(bias_back)(all, out, many);
        if (all->of_weight) OF(weigh_back)(all, out, many, one % beside / across, one % across * ACROSS);
    }
}

#undef HIGH
#undef ACROSS
