/* Attention in single precision, softmax(scale Q K^T) V, without its scores in memory (Rabe and Staats 2021,
   arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135): for a vector of queries at a time, the keys in parts,
   the sums so far being scaled as the highest score rises.

   Each query goes through the same operations whatever is beside it and whichever thread takes it, so a row is
   the same to the bit in any batch. Heads lie beside each other in a token, as linear layers make them. */

#include "../kernel/kernel.h"
#include <float.h>
#include <math.h>

#define KEYS 128   /* at a time: their scores stay in the nearest memory */
#define WIDEST 256 /* of a head */
#define HIGH 8     /* sums kept in registers: as many as hide how long an addition takes */

/* Of Q, K or V, of the result O or of its gradient: the first number, and numbers from a row of the batch and
   from a token to the next. */
struct side {
    const float *values;
    int64_t row, token;
};

struct attention {
    struct side query, key, value, out, grad; /* the last two for gradients alone */
    float *to[3]; /* [rows, tokens, heads, width]: O; or the gradients of Q, K and V */
    float *ends;  /* [rows, heads, queries]: log2 of a query's sum of 2^scores; may be NULL without gradients */
    float *means; /* the same shape, for gradients alone: of a query, O times its gradient */
    int64_t rows, heads, queries, keys, width;
    float scale;
};

struct work {
    const struct attention *all;
    long next; /* piece that no thread has taken */
};

/* What is multiplied by the scale, as its powers are of 2. */
#define LOG2_E 1.44269504f

/* The Taylor series of 2^f, exact to a rounding for f in [-1/2, 1/2]. */
static const float SERIES[] = {1.0f,           0.693147181f,   0.240226507f,  0.0555041087f,
                               0.00961812911f, 0.00133335581f, 0.000154035304f};

#if defined(__x86_64__)
#define KIND avx2
#define TARGET AVX2
#define LANES 8
#include "attention_both.h"
#undef KIND
#undef TARGET
#undef LANES

#define KIND avx512
#define TARGET AVX512
#define LANES 16
#include "attention_both.h"

typedef void piece_work(void *);

static void share_out(const struct attention *all, int threads, piece_work *function) {
    struct work work = {all, 0};
    GOMP_parallel(function, &work, threads, 0);
}

void aid_attend(const struct attention *all, int lanes, int threads) {
    share_out(all, threads, lanes == 16 ? attend_avx512 : attend_avx2);
}

/* The gradients of Q, then of K and V: each is added up by one thread, in one order. */
void aid_attend_back(const struct attention *all, int lanes, int threads) {
    share_out(all, threads, lanes == 16 ? query_back_avx512 : query_back_avx2);
    share_out(all, threads, lanes == 16 ? key_back_avx512 : key_back_avx2);
}
#endif

int aid_usable(int size) { return usable_lanes(size == sizeof(struct attention)); }
