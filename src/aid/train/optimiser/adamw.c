/* AdamW (Loshchilov and Hutter 2017) in single precision for many tensors at once, and the norm of their
   gradients. Memory is what takes the time, so each number is touched once in either.

   A number goes through the roundings that torch's fused kernel has for all but the last few of a tensor. A
   piece's squares are added up by one thread, and pieces in their order. */

#include "../../sd/kernel/kernel.h"
#include <math.h>

#define PIECE 16384 /* numbers that a thread takes */
#define SUMS 16     /* of a piece, each of every 16th square: as many as hide how long an addition takes */

/* `many` of each. A weight's numbers lie in the same order in all that belongs to it. */
struct tensors {
    int64_t many;
    const int64_t *counts; /* of numbers */
    const float *const *gradients;
    float *const *weights, *const *means, *const *squares, *const *steps; /* for AdamW alone */
};

/* `decay` is what a weight loses of itself, `scale` what gradients are multiplied by. */
struct rule {
    double rate, first, second, epsilon, decay, scale;
};

struct work {
    const struct tensors *all;
    const struct rule *rule;
    double *sums; /* of a piece's squares; NULL for AdamW */
    int64_t next; /* piece that no thread has taken */
};

#if defined(__x86_64__)
/* The mean's way to the gradient is counted from whichever is nearer, as in torch's lerp. */
AVX2 static void move(const struct tensors *all, int64_t which, int64_t start, int64_t count,
                      const struct rule *rule) {
    const double step = *all->steps[which];
    const float rate = (float)(rule->rate / (1 - pow(rule->first, step))), epsilon = (float)rule->epsilon;
    const float root = (float)sqrt(1 - pow(rule->second, step)), kept = (float)(1 - rule->rate * rule->decay);
    const float share = (float)(1 - rule->first), scale = (float)rule->scale;
    const float second = (float)rule->second, rest = (float)(1 - rule->second);
    float *restrict weight = all->weights[which] + start, *restrict mean = all->means[which] + start;
    float *restrict square = all->squares[which] + start;
    const float *restrict gradient = all->gradients[which] + start;
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * scale, way = g - mean[i];
        const float m = share < 0.5f ? fmaf(share, way, mean[i]) : fmaf(share - 1, way, g);
        const float v = fmaf(rest * g, g, square[i] * second);
        mean[i] = m, square[i] = v;
        weight[i] = weight[i] * kept - rate * m / (sqrtf(v) / root + epsilon);
    }
}

AVX2 static double sum_of_squares(const float *numbers, int64_t count) {
    double sums[SUMS] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + SUMS <= count; i += SUMS)
        for (int j = 0; j < SUMS; j++) sums[j] += (double)numbers[i + j] * numbers[i + j];
    for (; i < count; i++) sum += (double)numbers[i] * numbers[i];
    for (int j = 0; j < SUMS; j++) sum += sums[j];
    return sum;
}

static int64_t pieces(int64_t count) { return (count + PIECE - 1) / PIECE; }

/* What each thread does: the next piece, until none is left. */
static void take_pieces(void *given) {
    struct work *work = given;
    const struct tensors *all = work->all;
    int64_t which = 0, before = 0; /* a tensor, and the pieces of those before it */
    for (;;) {
        const int64_t piece = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        for (; which < all->many && piece - before >= pieces(all->counts[which]); which++)
            before += pieces(all->counts[which]);
        if (which == all->many) return;
        const int64_t start = (piece - before) * PIECE, left = all->counts[which] - start;
        const int64_t count = left < PIECE ? left : PIECE;
        if (work->sums)
            work->sums[piece] = sum_of_squares(all->gradients[which] + start, count);
        else
            move(all, which, start, count, work->rule);
    }
}

/* A step of all weights. */
void aid_move(const struct tensors *all, const struct rule *rule, int threads) {
    for (int64_t i = 0; i < all->many; i++) *all->steps[i] += 1;
    struct work work = {all, rule, 0, 0};
    GOMP_parallel(take_pieces, &work, threads, 0);
}

/* How many sums `aid_norm` has to be given room for. */
int64_t aid_pieces(const struct tensors *all) {
    int64_t whole = 0;
    for (int64_t i = 0; i < all->many; i++) whole += pieces(all->counts[i]);
    return whole;
}

double aid_norm(const struct tensors *all, double *sums, int threads) {
    struct work work = {all, 0, sums, 0};
    GOMP_parallel(take_pieces, &work, threads, 0);
    double sum = 0;
    for (int64_t i = 0, whole = aid_pieces(all); i < whole; i++) sum += sums[i];
    return sqrt(sum);
}
#endif

int aid_usable(int tensors_size, int rule_size) {
    return usable_lanes(tensors_size == sizeof(struct tensors) && rule_size == sizeof(struct rule));
}
