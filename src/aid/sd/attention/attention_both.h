/* For one kind of processor: its KIND, TARGET and LANES, floats of a vector. */

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

TARGET INLINE floats OF(choose)(words mask, floats one, floats other) {
    return (floats)((mask & (words)one) | (~mask & (words)other));
}

/* 2^x for x <= 0, NaN for NaN: the whole part goes into the exponent. What rounding left above 0 is 0. */
TARGET INLINE floats OF(power_of_two)(floats x) {
    const floats lowest = (floats){0} - 126.0f, bounded = OF(choose)((words)(x < lowest), lowest, x);
    const floats exponent = OF(choose)((words)(bounded > 0.0f), (floats){0}, bounded);
    const floats shifted = exponent + 0x1.8p23f, part = exponent - (shifted - 0x1.8p23f);
    floats power = (floats){0} + SERIES[6];
    for (int i = 5; i >= 0; i--) power = power * part + SERIES[i];
    return OF(choose)((words)(x == x), (floats)((words)power + ((words)shifted << 23)), x);
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

/* LANES tokens beside each other, [width][LANES]; what is missing of them is the first again. */
TARGET INLINE void OF(load)(struct side side, long row, long first, long count, long channel, long width,
                            float scale, floats *to) {
    for (long i = 0; i < LANES; i++) {
        const float *own = OF(at)(side, row, first + (i < count ? i : 0), channel);
        for (long c = 0; c < width; c++) to[c][i] = scale * own[c];
    }
}

/* The first `count` of them, each times `scale`, to [tokens, heads, width]. */
TARGET INLINE void OF(store)(const floats *from, long count, long width, long token, floats scale, float *to) {
    for (long c = 0; c < width; c++) {
        floats scaled = from[c] * scale;
        for (long i = 0; i < count; i++) to[i * token + c] = scaled[i];
    }
}

/* Where a token's head lies in a result of so many tokens. */
TARGET INLINE long OF(place)(const struct attention *all, long row, long tokens, long token, long head) {
    return ((row * tokens + token) * all->heads + head) * all->width;
}

/* Up to LANES queries of a head, from the `first` on. */
TARGET static void OF(attend_piece)(const struct attention *all, long row, long head, long first, long count) {
    const long width = all->width, channel = head * width, beside = all->heads * width;
    floats query[WIDEST], out[WIDEST], scores[KEYS], highest = (floats){0} - FLT_MAX, sum = {0};
    OF(load)(all->query, row, first, count, channel, width, all->scale * LOG2_E, query);
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
    sum = OF(choose)((words)(highest > -FLT_MAX), sum, (floats){0} + NAN); /* no score is a number */
    OF(store)(out, count, width, beside, 1.0f / sum, all->to[0] + OF(place)(all, row, all->queries, first, head));
    if (all->ends)
        for (long i = 0; i < count; i++)
            all->ends[(row * all->heads + head) * all->queries + first + i] = highest[i] + log2f(sum[i]);
}

/* With P = softmax(scale Q K^T), dP = dO V^T and dS = P (dP - sum of O dO): dQ = scale dS K. */
TARGET static void OF(query_back_piece)(const struct attention *all, long row, long head, long first,
                                        long count) {
    const long width = all->width, channel = head * width, beside = all->heads * width;
    const long place = (row * all->heads + head) * all->queries + first;
    floats query[WIDEST], out[WIDEST], grad[WIDEST], scores[KEYS], slopes[KEYS], mean = {0}, end = {0};
    OF(load)(all->query, row, first, count, channel, width, all->scale * LOG2_E, query);
    OF(load)(all->out, row, first, count, channel, width, 1.0f, out);
    OF(load)(all->grad, row, first, count, channel, width, 1.0f, grad);
    for (long c = 0; c < width; c++) mean += out[c] * grad[c];
    for (long i = 0; i < count; i++) all->means[place + i] = mean[i], end[i] = all->ends[place + i];
    memset(out, 0, width * sizeof *out);
    for (long start = 0; start < all->keys; start += KEYS) {
        const long left = all->keys - start, keys = left < KEYS ? left : KEYS;
        const float *key = OF(at)(all->key, row, start, channel);
        memset(scores, 0, keys * sizeof *scores), memset(slopes, 0, keys * sizeof *slopes);
        OF(add_products)(keys, width, query, key, all->key.token, 1, scores);
        OF(add_products)(keys, width, grad, OF(at)(all->value, row, start, channel), all->value.token, 1, slopes);
        for (long j = 0; j < keys; j++) slopes[j] = OF(power_of_two)(scores[j] - end) * (slopes[j] - mean);
        OF(add_products)(width, keys, slopes, key, 1, all->key.token, out);
    }
    OF(store)(out, count, width, beside, (floats){0} + all->scale, all->to[0] + OF(place)(all, row, all->queries, first, head));
}

/* dV = P^T dO and dK = scale dS^T Q, of up to LANES keys. */
TARGET static void OF(key_back_piece)(const struct attention *all, long row, long head, long first, long count) {
    const long width = all->width, channel = head * width, beside = all->heads * width;
    floats key[WIDEST], value[WIDEST], of_key[WIDEST], of_value[WIDEST], scores[KEYS], slopes[KEYS];
    OF(load)(all->key, row, first, count, channel, width, all->scale * LOG2_E, key);
    OF(load)(all->value, row, first, count, channel, width, 1.0f, value);
    memset(of_key, 0, width * sizeof *of_key), memset(of_value, 0, width * sizeof *of_value);
    for (long start = 0; start < all->queries; start += KEYS) {
        const long left = all->queries - start, queries = left < KEYS ? left : KEYS;
        const long place = (row * all->heads + head) * all->queries + start;
        const float *query = OF(at)(all->query, row, start, channel), *grad = OF(at)(all->grad, row, start, channel);
        memset(scores, 0, queries * sizeof *scores), memset(slopes, 0, queries * sizeof *slopes);
        OF(add_products)(queries, width, key, query, all->query.token, 1, scores);
        OF(add_products)(queries, width, value, grad, all->grad.token, 1, slopes);
        for (long j = 0; j < queries; j++) {
            scores[j] = OF(power_of_two)(scores[j] - all->ends[place + j]);
            slopes[j] = scores[j] * (slopes[j] - all->means[place + j]);
        }
        OF(add_products)(width, queries, scores, grad, 1, all->grad.token, of_value);
        OF(add_products)(width, queries, slopes, query, 1, all->query.token, of_key);
    }
    const long place = OF(place)(all, row, all->keys, first, head);
    OF(store)(of_key, count, width, beside, (floats){0} + all->scale, all->to[1] + place);
    OF(store)(of_value, count, width, beside, (floats){0} + 1.0f, all->to[2] + place);
}

/* What each thread does: the next LANES tokens, until none are left. */
#define THREAD(NAME, PIECE, TOKENS)                                                                                \
    TARGET static void OF(NAME)(void *given) {                                                                     \
        struct work *work = given;                                                                                 \
        const struct attention *all = work->all;                                                                   \
        const long pieces = (all->TOKENS + LANES - 1) / LANES, whole = all->rows * all->heads * pieces;            \
        for (long one; (one = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < whole;) {                    \
            const long first = one % pieces * LANES, left = all->TOKENS - first;                                   \
            OF(PIECE)(all, one / pieces / all->heads, one / pieces % all->heads, first, left < LANES ? left : LANES); \
        }                                                                                                          \
    }
THREAD(attend, attend_piece, queries)
THREAD(query_back, query_back_piece, queries)
THREAD(key_back, key_back_piece, keys)
#undef THREAD
