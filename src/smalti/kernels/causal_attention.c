/* Attention of a causal network while it learns, and its gradients: a code sees itself and those before it.

   Weights p = softmax(q k' / sqrt(d)), what is seen o = p v. Their gradients, from that of o, g: of v, p' g; of the scores,
   s = p (g v' - sum(g o)); of q, s k / sqrt(d), and of k, s' q / sqrt(d). Only the logarithm of each softmax's sum is kept; the
   weights are made again (Dao et al. 2022, "FlashAttention", section 3.1). PANEL queries of a head go at once, their weights
   transposed (keys,PANEL), so that each number of a register belongs to a query of its own, and keys that come after all of
   them are never read.

   Notation: B sequences, N heads, T codes, d width of a head, S and D the same filled up with zeros to whole panels. */

#include <stdlib.h>
#include <string.h>

#include "lanes.h"

#define ROWS (WIDE == PANEL ? PANEL : 4) /* at once; a divisor of PANEL */
#define HALVES (PANEL / LANES)
#define LINE 64 /* bytes that caches keep together, which a register should not lie across */

typedef struct { float *at; long sequence, head, code; } Part; /* (B,N,T,d), and how far apart neighbors lie, in floats */

/* y (rows,PANEL), which lie `to` apart, + a (rows,count), of which a row lies `row` apart, times b (count,PANEL), `stride` apart. */
static inline __attribute__((always_inline)) void product(
    const float *a, long row, long next, const float *b, long stride, long count, long rows, float *y, long to) {
    for (long first = 0; first < rows; first += ROWS, a += ROWS * row, y += ROWS * to) {
        wide sums[ROWS][PANEL / WIDE];
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < PANEL / WIDE; i++) sums[r][i] = ((const wide *)(y + r * to))[i];
        for (long n = 0; n < count; n++)
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int i = 0; i < PANEL / WIDE; i++) sums[r][i] += a[r * row + n * next] * ((const wide *)(b + n * stride))[i];
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < PANEL / WIDE; i++) ((wide *)(y + r * to))[i] = sums[r][i];
    }
}

/* Zeros, or null where there is no memory. */
static float *zeros(long count) {
    long bytes = (count * sizeof(float) + LINE - 1) / LINE * LINE;
    float *made = aligned_alloc(LINE, bytes);
    return made ? memset(made, 0, bytes) : NULL;
}

/* Rounded up to whole panels. */
static inline long filled(long count) { return (count + PANEL - 1) / PANEL * PANEL; }

static inline float *element(const Part *part, long b, long n, long t) {
    return part->at + b * part->sequence + n * part->head + t * part->code;
}

/* Codes (count,d) of a head -> (.,D), and if `turned` a panel of them transposed (D,PANEL). What is there beyond them stays. */
static void copied(const Part *from, long b, long n, long t, long count, long d, long D, float *to, float *turned) {
    const float *x = element(from, b, n, t);
    for (long r = 0; r < count; r++, x += from->code) memcpy(to + r * D, x, d * sizeof(float));
    for (long i = 0; turned && i < d; i++)
        for (long r = 0; r < PANEL; r++) turned[i * PANEL + r] = to[r * D + i];
}

static void written(const float *x, long count, long d, long D, float factor, const Part *to, long b, long n, long t) {
    float *y = element(to, b, n, t);
    for (long r = 0; r < count; r++, y += to->code)
        for (long i = 0; i < d; i++) y[i] = x[r * D + i] * factor;
}

/* Queries transposed (D,PANEL) and keys (S,D) -> scores (S,PANEL) of the first `seen` keys. */
static void scored(const float *queries, const float *keys, long seen, long D, float *scores) {
    memset(scores, 0, seen * PANEL * sizeof(float));
    product(keys, D, 1, queries, PANEL, D, seen, scores, PANEL);
}

/* What the queries from t on do not see of the keys up to `seen` becomes `value`. */
static void hidden(float *scores, long t, long seen, float value) {
    for (long s = t + 1; s < seen; s++)
        for (long r = 0; r < PANEL && t + r < s; r++) scores[s * PANEL + r] = value;
}

/* Scores (seen,PANEL) -> weights that are not yet divided by their sums; the sums, and logarithms of the softmax's. */
static void weighted(float *scores, long seen, float scale, float *sums, float *logs) {
    for (int half = 0; half < HALVES; half++) {
        float *p = scores + half * LANES;
        lane most = alike(-INFINITY), sum = {0};
        for (long s = 0; s < seen; s++) most = choose(load(p + s * PANEL) > most, load(p + s * PANEL), most);
        for (long s = 0; s < seen; s++) {
            lane weight = exponential((load(p + s * PANEL) - most) * scale);
            store(p + s * PANEL, weight);
            sum += weight;
        }
        store(sums + half * LANES, sum);
        for (int r = 0; r < LANES; r++) logs[half * LANES + r] = most[r] * scale + logf(sum[r]);
    }
}

/* q, k, v -> o (B,N,T,d) and the logarithms of the sums (B,N,T). Not 0 where there is no memory. */
int attend_causally(const Part *parts, long B, long N, long T, long d, int threads, float *logs) {
    const Part *query = parts, *key = parts + 1, *value = parts + 2, *out = parts + 3;
    long S = filled(T), D = filled(d), failed = 0;
    float scale = 1 / sqrtf(d);
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        float *room = zeros(2 * S * D + S * PANEL + 3 * PANEL * D), *k = room, *v = k + S * D;
        float *weights = v + S * D, *q = weights + S * PANEL, *turned = q + PANEL * D, *o = turned + PANEL * D;
        failed = room == NULL;
#pragma omp for schedule(dynamic)
        for (long head = 0; head < B * N; head++) {
            if (failed) continue;
            long b = head / N, n = head % N;
            copied(key, b, n, 0, T, d, D, k, NULL);
            copied(value, b, n, 0, T, d, D, v, NULL);
            for (long t = 0; t < T; t += PANEL) {
                long count = least(PANEL, T - t), seen = t + PANEL;
                float sums[PANEL], log[PANEL];
                copied(query, b, n, t, count, d, D, q, turned);
                scored(turned, k, seen, D, weights);
                hidden(weights, t, seen, -INFINITY);
                weighted(weights, seen, scale, sums, log);
                memset(o, 0, PANEL * D * sizeof(float));
                for (long i = 0; i < D; i += PANEL) product(weights, 1, PANEL, v + i, D, seen, PANEL, o + i, D);
                for (long r = 0; r < count; r++) {
                    written(o + r * D, 1, d, D, 1 / sums[r], out, b, n, t + r);
                    logs[head * T + t + r] = log[r];
                }
            }
        }
        free(room);
    }
    return failed != 0;
}

/* q, k, v, o, the gradient of o, and the logarithms -> the gradients of q, k, v (B,N,T,d). Not 0 where there is no memory. */
int attend_back(const Part *parts, long B, long N, long T, long d, int threads, const float *logs) {
    const Part *query = parts, *key = parts + 1, *value = parts + 2, *out = parts + 3, *given = parts + 4, *of = parts + 5;
    long S = filled(T), D = filled(d), failed = 0;
    float scale = 1 / sqrtf(d);
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        float *room = zeros(4 * S * D + 2 * S * PANEL + 6 * PANEL * D), *k = room, *v = k + S * D;
        float *of_k = v + S * D, *of_v = of_k + S * D, *weights = of_v + S * D, *slopes = weights + S * PANEL;
        float *q = slopes + S * PANEL, *q_turned = q + PANEL * D, *g = q_turned + PANEL * D, *g_turned = g + PANEL * D;
        float *o = g_turned + PANEL * D, *of_q = o + PANEL * D;
        failed = room == NULL;
#pragma omp for schedule(dynamic)
        for (long head = 0; head < B * N; head++) {
            if (failed) continue;
            long b = head / N, n = head % N;
            copied(key, b, n, 0, T, d, D, k, NULL);
            copied(value, b, n, 0, T, d, D, v, NULL);
            memset(of_k, 0, 2 * S * D * sizeof(float));
            for (long t = 0; t < T; t += PANEL) {
                long count = least(PANEL, T - t), seen = t + PANEL;
                float log[PANEL] = {0}, along[PANEL] = {0};
                if (count < PANEL) memset(q, 0, 5 * PANEL * D * sizeof(float)); /* no code is there that could teach others */
                copied(query, b, n, t, count, d, D, q, q_turned);
                copied(given, b, n, t, count, d, D, g, g_turned);
                copied(out, b, n, t, count, d, D, o, NULL);
                for (long r = 0; r < count; r++) {
                    lane sum = {0};
                    for (long i = 0; i < D; i += LANES) sum += load(g + r * D + i) * load(o + r * D + i);
                    along[r] = total(sum);
                    log[r] = logs[head * T + t + r];
                }
                scored(q_turned, k, seen, D, weights);
                scored(g_turned, v, seen, D, slopes);
                for (long s = 0; s < seen * PANEL; s += LANES) {
                    lane weight = exponential(load(weights + s) * scale - load(log + s % PANEL));
                    store(weights + s, weight);
                    store(slopes + s, weight * (load(slopes + s) - load(along + s % PANEL)));
                }
                hidden(weights, t, seen, 0);
                hidden(slopes, t, seen, 0);
                memset(of_q, 0, PANEL * D * sizeof(float));
                for (long i = 0; i < D; i += PANEL) {
                    product(slopes, 1, PANEL, k + i, D, seen, PANEL, of_q + i, D);
                    product(slopes, PANEL, 1, q + i, D, PANEL, seen, of_k + i, D);
                    product(weights, PANEL, 1, g + i, D, PANEL, seen, of_v + i, D);
                }
                written(of_q, count, d, D, scale, of, b, n, t);
            }
            written(of_k, T, d, D, scale, of + 1, b, n, 0);
            written(of_v, T, d, D, 1, of + 2, b, n, 0);
        }
        free(room);
    }
    return failed != 0;
}
