/* One decoding step of a transformer block in C, except for its key-value cache.

   It is bound by memory bandwidth: weights, or keys and values, are read once. An output row depends on its input row only, not on
   the number of rows or threads.

   Notation: R rows, D width, E outputs, H width of the MLP, B sequences, N heads, S codes so far, d head dimension. D and d are
   divisible by LANES, H by PANEL. */

#include <omp.h>

#include "lanes.h"

#define ROWS 6 /* at once; times two registers of sums: as many as there are, but for what is multiplied */
#define MANY 8 /* registers of one sum of values */
#define AHEAD 256 /* floats: prefetch distance of weights */

typedef struct { const float *panels, *bias; long E; } Map; /* a weight (E/PANEL,D,PANEL), E/PANEL rounded up; bias may be null */
typedef struct { const float *gain, *shift; float epsilon; } Norm; /* LayerNorm; where shift is null, RMSNorm */
typedef struct {
    Norm attention, query, key, mlp; /* without a gain, queries and keys are not normalized */
    Map project[3], out, up, down; /* queries, keys and values by one map, and the others make nothing, or by three */
    long D, N, H; /* if `up` has 2 H outputs, the MLP is gated */
} Block;
typedef struct { long B, N, S, d, sequence, head; } CacheLayout; /* the last two: strides of sequences and heads, in floats */

/* --- of numbers ------------------------------------------------------------------------------------------------------------ */

static inline lane silu(lane x) { return x / (1 + exponential(-x)); }

/* x times the normal distribution up to x. Abramowitz and Stegun 7.1.26: within 2e-7, times x. */
static inline lane gelu(lane x) {
    lane far = choose(x < 0, -x, x) * 0.70710678f, t = 1 / (1 + 0.3275911f * far);
    lane sum = 1.061405429f * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    lane tail = 0.5f * sum * t * exponential(-far * far);
    return x * choose(x < 0, tail, 1 - tail);
}

/* --- of rows --------------------------------------------------------------------------------------------------------------- */

static void normalize(const float *x, Norm norm, long D, float *y) {
    lane sum = {0}, squares = {0};
    for (long d = 0; norm.shift && d < D; d += LANES) sum += load(x + d);
    float mean = total(sum) / D;
    for (long d = 0; d < D; d += LANES) squares += (load(x + d) - mean) * (load(x + d) - mean);
    float scale = 1 / sqrtf(total(squares) / D + norm.epsilon);
    for (long d = 0; d < D; d += LANES) {
        lane made = (load(x + d) - mean) * scale * load(norm.gain + d);
        store(y + d, norm.shift ? made + load(norm.shift + d) : made);
    }
}

/* `count` rows of x, known to the compiler, times a panel (D,PANEL), and bias (PANEL) or null -> y (count,PANEL) */
static inline __attribute__((always_inline)) void product(
    const float *x, const float *panel, const float *bias, long D, const int count, float *y) {
    lane sums[ROWS][2];
    for (int r = 0; r < count; r++)
        for (int i = 0; i < 2; i++) sums[r][i] = bias ? load(bias + i * LANES) : (lane){0};
    for (long d = 0; d < D; d++) {
        lane left = load(panel + d * PANEL), right = load(panel + d * PANEL + LANES);
        __builtin_prefetch(panel + d * PANEL + AHEAD);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) {
            float value = x[r * D + d];
            sums[r][0] += value * left;
            sums[r][1] += value * right;
        }
    }
    for (int r = 0; r < count; r++)
        for (int i = 0; i < 2; i++) store(y + r * PANEL + i * LANES, sums[r][i]);
}

static void products(const float *x, const float *panel, const float *bias, long D, long count, float *y) {
    switch (count) {
        case 1: product(x, panel, bias, D, 1, y); break;
        case 2: product(x, panel, bias, D, 2, y); break;
        case 3: product(x, panel, bias, D, 3, y); break;
        case 4: product(x, panel, bias, D, 4, y); break;
        case 5: product(x, panel, bias, D, 5, y); break;
        default: product(x, panel, bias, D, ROWS, y);
    }
}

/* x (R,D) -> y (R,E), rows `stride` apart, added to `plus` if there is one, which lies as y. Work is shared among the threads,
   without a barrier. */
static void linear_rows(const float *x, Map map, const float *plus, long R, long D, float *y, long stride) {
#pragma omp for schedule(static) nowait
    for (long e = 0; e < map.E; e += PANEL) {
        float made[ROWS * PANEL], bias[PANEL] = {0};
        long width = least(PANEL, map.E - e);
        for (long i = 0; map.bias && i < width; i++) bias[i] = map.bias[e + i];
        for (long first = 0; first < R; first += ROWS) {
            long count = least(ROWS, R - first);
            products(x + first * D, map.panels + e * D, bias, D, count, made);
            for (long r = 0; r < count; r++)
                for (long i = 0; i < width; i++) {
                    long at = (first + r) * stride + e + i;
                    y[at] = made[r * PANEL + i] + (plus ? plus[at] : 0);
                }
        }
    }
}

/* x (R,D) -> y (R,H), H divisible by PANEL, through GELU; or where the map makes 2 H numbers, the second half by SiLU of the first. */
static void mlp_rows(const float *x, Map map, long R, long D, long H, float *y) {
#pragma omp for schedule(static) nowait
    for (long h = 0; h < H; h += PANEL)
        for (long first = 0; first < R; first += ROWS) {
            float made[ROWS * PANEL], other[ROWS * PANEL];
            long count = least(ROWS, R - first), gated = map.E > H;
            products(x + first * D, map.panels + h * D, map.bias ? map.bias + h : 0, D, count, made);
            if (gated) products(x + first * D, map.panels + (H + h) * D, map.bias ? map.bias + H + h : 0, D, count, other);
            for (long n = 0; n < count * PANEL; n += LANES) {
                lane value = load(made + n);
                store(y + (first + n / PANEL) * H + h + n % PANEL, gated ? silu(value) * load(other + n) : gelu(value));
            }
        }
}

/* A query or key x (d): normalized, and rotated by cosines and signed sines (d) if there are any. */
static void normalize_and_rotate(float *x, Norm norm, const float *cosines, const float *sines, long d) {
    float own[d];
    if (norm.gain) normalize(x, norm, d, x);
    if (!cosines) return;
    for (long i = 0; i < d; i++) own[i] = x[i];
    for (long i = 0; i < d; i++) x[i] = own[i] * cosines[i] + own[(i + d / 2) % d] * sines[i];
}

/* Weights p (S), values (S,d) from some number on -> `count` registers of their sum, known to the compiler, times `share`. */
static inline __attribute__((always_inline)) void mix(
    const float *p, const float *values, long S, long d, const int count, float share, float *y) {
    lane sums[MANY] = {{0}};
    for (long s = 0; s < S; s++)
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) sums[i] += p[s] * load(values + s * d + i * LANES);
    for (int i = 0; i < count; i++) store(y + i * LANES, sums[i] * share);
}

/* --- what is called ------------------------------------------------------------------------------------------------------- */

/* x (R,D) -> y (R,E) */
void linear(const float *x, Map map, long R, long D, int threads, float *y) {
#pragma omp parallel num_threads(threads)
    linear_rows(x, map, 0, R, D, y, map.E);
}

/* x (R,D) -> queries, keys and values (R,3,N,d). Row r is rotated by row r % T of the cosines and signed sines (T,d), those of
   queries and those of keys, which may all be null. `work` (threads,R,D) is scratch: each thread normalizes all rows, which is
   faster than a barrier. */
void project(const Block *block, const float *x, const float *query_cosines, const float *query_sines, const float *key_cosines,
             const float *key_sines, long R, long T, int threads, float *work, float *y) {
    long D = block->D, N = block->N, d = D / N;
#pragma omp parallel num_threads(threads)
    {
        float *rows = work + omp_get_thread_num() * R * D;
        for (long r = 0; r < R; r++) normalize(x + r * D, block->attention, D, rows + r * D);
        for (long m = 0; m < 3; m++) linear_rows(rows, block->project[m], 0, R, D, y + m * D, 3 * D);
        if (block->query.gain || query_cosines) {
#pragma omp barrier
#pragma omp for
            for (long n = 0; n < 2 * R * N; n++) {
                long r = n / (2 * N), at = r % T * d, is_key = n / N % 2;
                Norm norm = is_key ? block->key : block->query;
                const float *cosines = is_key ? key_cosines : query_cosines, *sines = is_key ? key_sines : query_sines;
                normalize_and_rotate(y + r * 3 * D + n % (2 * N) * d, norm, cosines ? cosines + at : 0, sines ? sines + at : 0, d);
            }
        }
    }
}

/* A query (B,N,d), keys and values (B,N,S,d) -> attention output (B,N,d). `scores` (B,N,S rounded up to LANES) is scratch. */
void attend(const float *query, const float *keys, const float *values, CacheLayout layout, int threads, float *scores, float *output) {
    long d = layout.d, S = layout.S, room = (S + LANES - 1) / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < layout.B * layout.N; n++) {
        long from = n / layout.N * layout.sequence + n % layout.N * layout.head;
        const float *q = query + n * d, *k = keys + from, *v = values + from;
        float *p = scores + n * room, most = -INFINITY, scale = 1 / sqrtf(d);
        lane sum = {0};
        for (long s = 0; s < S; s++) {
            lane along = {0};
            for (long i = 0; i < d; i += LANES) along += load(q + i) * load(k + s * d + i);
            p[s] = total(along) * scale;
            if (p[s] > most) most = p[s];
        }
        for (long s = S; s < room; s++) p[s] = -INFINITY;
        for (long s = 0; s < room; s += LANES) {
            lane weight = exponential(load(p + s) - most);
            store(p + s, weight);
            sum += weight;
        }
        float share = 1 / total(sum);
        long i = 0;
        for (; i + MANY * LANES <= d; i += MANY * LANES) mix(p, v + i, S, d, MANY, share, output + n * d + i);
        for (; i < d; i += LANES) mix(p, v + i, S, d, 1, share, output + n * d + i);
    }
}

/* x and the attention output (R,D) -> y (R,D), both residual branches added. `work` (threads,R,D) and `hidden` (R,H) are scratch. */
void finish(const Block *block, const float *x, const float *attended, long R, int threads, float *work, float *hidden, float *y) {
    long D = block->D, H = block->H;
#pragma omp parallel num_threads(threads)
    {
        float *rows = work + omp_get_thread_num() * R * D;
        linear_rows(attended, block->out, x, R, D, y, D);
#pragma omp barrier
        for (long r = 0; r < R; r++) normalize(y + r * D, block->mlp, D, rows + r * D);
        mlp_rows(rows, block->up, R, D, H, hidden);
#pragma omp barrier
        linear_rows(hidden, block->down, y, R, H, y, D);
    }
}
