/* For one kind of processor: its KIND, TARGET and LANES, floats of a vector. */

#define JOINED(NAME, KIND) NAME##_##KIND
#define JOIN(NAME, KIND) JOINED(NAME, KIND)
#define OF(NAME) JOIN(NAME, KIND)
#define floats OF(floats)
#define words OF(words)

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

TARGET INLINE floats OF(choose)(words mask, floats one, floats other) {
    return (floats)((mask & (words)one) | (~mask & (words)other));
}

/* 2^x for x <= 0, NaN for NaN: the whole part goes into the exponent. */
TARGET INLINE floats OF(power_of_two)(floats x) {
    const floats lowest = (floats){0} - 126.0f;
    x = OF(choose)((words)(x < lowest), lowest, x);
    floats shifted = x + 0x1.8p23f, part = x - (shifted - 0x1.8p23f), power = (floats){0} + SERIES[6];
    for (int i = 5; i >= 0; i--) power = power * part + SERIES[i];
    return (floats)((words)power + ((words)shifted << 23));
}

/* sums[i] += sum over j of left[j] right[i, j], of `high` i. */
TARGET INLINE void OF(add_product)(int high, long count, const floats *left, const float *right, long down,
                                   long along, floats *sums) {
    floats kept[HIGH];
    for (int i = 0; i < high; i++) kept[i] = sums[i];
    for (long j = 0; j < count; j++)
        for (int i = 0; i < high; i++) kept[i] += left[j] * right[i * down + j * along];
    for (int i = 0; i < high; i++) sums[i] = kept[i];
}

TARGET INLINE void OF(add_products)(long rows, long count, const floats *left, const float *right, long down,
                                    long along, floats *sums) {
    long i = 0;
    for (; i + HIGH <= rows; i += HIGH)
        OF(add_product)(HIGH, count, left, right + i * down, down, along, sums + i);
    for (; i < rows; i++) OF(add_product)(1, count, left, right + i * down, down, along, sums + i);
}

TARGET INLINE const float *OF(at)(struct side side, long row, long token, long channel) {
    return side.values + row * side.row + token * side.token + channel;
}

/* Up to LANES queries of a head, from the `first` on. */
TARGET static void OF(attend_piece)(const struct attention *all, long row, long head, long first) {
    const long width = all->width, channel = head * width, rest = all->queries - first;
    const long queries = rest < LANES ? rest : LANES;
    floats query[WIDEST], out[WIDEST], scores[KEYS], highest = (floats){0} - FLT_MAX, sum = {0};
    for (long i = 0; i < LANES; i++) {
        const float *own = OF(at)(all->query, row, first + (i < queries ? i : 0), channel);
        for (long c = 0; c < width; c++) query[c][i] = all->scale * own[c];
    }
    memset(out, 0, width * sizeof *out);
    for (long start = 0; start < all->keys; start += KEYS) {
        const long left = all->keys - start, keys = left < KEYS ? left : KEYS;
        memset(scores, 0, keys * sizeof *scores);
        OF(add_products)(keys, width, query, OF(at)(all->key, row, start, channel), all->key.token, 1, scores);
        floats higher = highest;
        for (long j = 0; j < keys; j++) higher = OF(choose)((words)(scores[j] > higher), scores[j], higher);
        const floats still = OF(power_of_two)(highest - higher);
        highest = higher, sum *= still;
        if (start)
            for (long c = 0; c < width; c++) out[c] *= still;
        for (long j = 0; j < keys; j++) sum += scores[j] = OF(power_of_two)(scores[j] - highest);
        OF(add_products)(width, keys, scores, OF(at)(all->value, row, start, channel), 1, all->value.token, out);
    }
    float *to = all->out + ((row * all->queries + first) * all->heads + head) * width;
    for (long c = 0; c < width; c++) out[c] /= sum;
    for (long i = 0; i < queries; i++)
        for (long c = 0; c < width; c++) to[i * all->heads * width + c] = out[c][i];
}

/* What each thread does: the next piece, until none is left. */
TARGET static void OF(attend)(void *given) {
    struct work *work = given;
    const struct attention *all = work->all;
    const long pieces = (all->queries + LANES - 1) / LANES, whole = all->rows * all->heads * pieces;
    for (long one; (one = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < whole;)
        OF(attend_piece)(all, one / pieces / all->heads, one / pieces % all->heads, one % pieces * LANES);
}

#undef JOINED
#undef JOIN
#undef OF
#undef floats
#undef words
