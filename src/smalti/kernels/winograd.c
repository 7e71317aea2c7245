/* 3x3 convolutions by fewer products: Winograd's F(4x4, 3x3).

   Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3: with their matrices A, B and G, a square
   of 4 x 4 results is A' [(G g G') o (B' d B)] A, where g is a kernel, d the 6 x 6 values under the square and o the product
   number by number, summed over channels. So 36 products stand in place of 144. All squares of one place among the 36 are one
   product of matrices. Images are stored channels-last. A few squares go the whole way at once, so that what is between the maps stays
   in the cache of a core.

   Notation: B images, H W pixels, C channels in, K channels out, both divisible by LANES, T squares taken at once, P channels of a
   panel. */

#include <stdlib.h>

#include "lanes.h"

#define P PANEL
#define ROWS (WIDE == P ? 12 : 6) /* times P / WIDE registers of sums: as many as there are, but for what is multiplied */
#define COLUMNS (WIDE == P ? 8 : 4) /* ... in the products of gradients */
#define MOST 36 /* squares at once at most, a multiple of ROWS */

typedef struct { long B, H, W, C, K; } Shape;

static inline long panels(long K) { return (K + P - 1) / P; } /* the last may be half a panel, filled up with zeros */

/* How many squares go at once: no more than keep all threads at work. */
static long together(long squares, long threads) {
    long share = (squares + threads - 1) / threads;
    return least(MOST, (share + ROWS - 1) / ROWS * ROWS);
}

/* --- the maps of one line, strides in lanes ----------------------------------------------------------------------------- */

static inline void before(const lane *d, long s, lane *t) { /* B' d: 6 -> 6 */
    lane d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
    lane even = d4 - 4 * d2, odd = d3 - 4 * d1, near = d4 - d2, far = 2 * (d3 - d1);
    t[0] = 4 * d0 - 5 * d2 + d4;
    t[s] = even + odd;
    t[2 * s] = even - odd;
    t[3 * s] = near + far;
    t[4 * s] = near - far;
    t[5 * s] = 4 * d1 - 5 * d3 + d5;
}

static inline void after(const lane *m, long s, lane *y) { /* A' m: 6 -> 4 */
    lane sum = m[s] + m[2 * s], difference = m[s] - m[2 * s], wide = m[3 * s] + m[4 * s], step = m[3 * s] - m[4 * s];
    y[0] = m[0] + sum + wide;
    y[s] = difference + 2 * step;
    y[2 * s] = sum + 4 * wide;
    y[3 * s] = difference + 8 * step + m[5 * s];
}

static inline void after_back(const lane *y, long s, long t, lane *m) { /* A y: 4 -> 6 */
    lane even = y[0] + y[2 * s], odd = y[s] + y[3 * s], wide = y[0] + 4 * y[2 * s], step = 2 * y[s] + 8 * y[3 * s];
    m[0] = y[0];
    m[t] = even + odd;
    m[2 * t] = even - odd;
    m[3 * t] = wide + step;
    m[4 * t] = wide - step;
    m[5 * t] = y[3 * s];
}

static const float G[6][3] = {{1. / 4, 0, 0},           {-1. / 6, -1. / 6, -1. / 6}, {-1. / 6, 1. / 6, -1. / 6},
                              {1. / 24, 1. / 12, 1. / 6}, {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};

/* --- the maps of squares ------------------------------------------------------------------------------------------------ */

typedef struct { long b, i, j; } Square; /* its image, row and column, in squares */

static Square square(long n, long h, long w) { return (Square){n / (h * w), n / w % h, n % w}; }

/* LANES channels of a side x side square, the first pixel at (row, column), zero outside the image. */
static inline void look(const float *x, long H, long W, long C, long row, long column, int side, lane *d) {
    for (int a = 0; a < side; a++)
        for (int b = 0; b < side; b++) {
            long r = row + a, c = column + b;
            int inside = r >= 0 && r < H && c >= 0 && c < W;
            d[side * a + b] = inside ? load(x + (r * W + c) * C) : (lane){0};
        }
}

/* Some squares of x (B,H,W,C), from number n on -> v (36,T,C). */
static void values(const float *x, Shape s, long n, long count, long T, float *v) {
    long h = (s.H + 3) / 4, w = (s.W + 3) / 4;
    for (long t = 0; t < count; t++) {
        Square at = square(n + t, h, w);
        for (long c = 0; c < s.C; c += LANES) {
            lane d[36];
            look(x + at.b * s.H * s.W * s.C + c, s.H, s.W, s.C, 4 * at.i - 1, 4 * at.j - 1, 6, d);
            for (int j = 0; j < 6; j++) before(d + j, 6, d + j);
            for (int i = 0; i < 6; i++) before(d + 6 * i, 1, d + 6 * i);
            for (int i = 0; i < 36; i++) store(v + (i * T + t) * s.C + c, d[i]);
        }
    }
}

/* Some squares of the gradient of the results (B,H,W,K), from number n on -> m (36,T,panels(K) P). */
static void slopes(const float *y, Shape s, long n, long count, long T, float *m) {
    long h = (s.H + 3) / 4, w = (s.W + 3) / 4, K = panels(s.K) * P;
    for (long t = 0; t < count; t++) {
        Square at = square(n + t, h, w);
        for (long k = 0; k < s.K; k += LANES) {
            lane d[16], e[24], f[36];
            look(y + at.b * s.H * s.W * s.K + k, s.H, s.W, s.K, 4 * at.i, 4 * at.j, 4, d);
            for (int j = 0; j < 4; j++) after_back(d + j, 4, 4, e + j);
            for (int i = 0; i < 6; i++) after_back(e + 4 * i, 1, 1, f + 6 * i);
            for (int i = 0; i < 36; i++) store(m + (i * T + t) * K + k, f[i]);
        }
    }
}

/* A panel of some squares, m (36,T,P), back into `width` channels of y (B,H,W,K). */
static void results(const float *m, const float *bias, Shape s, long n, long count, long T, long width, float *y) {
    long h = (s.H + 3) / 4, w = (s.W + 3) / 4;
    for (long t = 0; t < count; t++) {
        Square at = square(n + t, h, w);
        long rows = least(4, s.H - 4 * at.i), columns = least(4, s.W - 4 * at.j);
        float *to = y + ((at.b * s.H + 4 * at.i) * s.W + 4 * at.j) * s.K;
        for (long k = 0; k < width; k += LANES) {
            lane d[36], e[24], f[16], plus = bias ? load(bias + k) : (lane){0};
            for (int i = 0; i < 36; i++) d[i] = load(m + (i * T + t) * P + k);
            for (int j = 0; j < 6; j++) after(d + j, 6, e + j);
            for (int i = 0; i < 4; i++) after(e + 6 * i, 1, f + 4 * i);
            for (long a = 0; a < rows; a++)
                for (long b = 0; b < columns; b++) store(to + (a * s.W + b) * s.K + k, f[4 * a + b] + plus);
        }
    }
}

/* --- the products ------------------------------------------------------------------------------------------------------- */

/* v (T,C), T a multiple of ROWS, and one panel u (C,P) -> m (T,P). */
static void product(const float *v, const float *u, long T, long C, float *m) {
    for (long t = 0; t < T; t += ROWS) {
        wide sums[ROWS][P / WIDE] = {{{0}}};
        for (long c = 0; c < C; c++)
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int i = 0; i < P / WIDE; i++) sums[r][i] += v[(t + r) * C + c] * ((const wide *)(u + c * P))[i];
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < P / WIDE; i++) ((wide *)(m + (t + r) * P))[i] = sums[r][i];
    }
}

/* v (T,C) transposed times m (T,K), added to u (C,K). */
static void outer(const float *v, const float *m, long T, long C, long K, float *u) {
    for (long k = 0; k < K; k += P)
        for (long c = 0; c < C; c += COLUMNS) {
            wide sums[COLUMNS][P / WIDE] = {{{0}}};
            for (long t = 0; t < T; t++)
#pragma GCC unroll 8
                for (int r = 0; r < COLUMNS; r++)
#pragma GCC unroll 2
                    for (int i = 0; i < P / WIDE; i++)
                        sums[r][i] += v[t * C + c + r] * ((const wide *)(m + t * K + k))[i];
            for (int r = 0; r < COLUMNS; r++)
                for (int i = 0; i < P / WIDE; i++) ((wide *)(u + (c + r) * K + k))[i] += sums[r][i];
        }
}

/* --- what is called ------------------------------------------------------------------------------------------------------- */

/* A weight, K x C x 3 x 3 numbers that lie `strides` apart -> u (36,panels(K),C,P), of which zeros are left as they are. */
void map_weight(const float *weight, const long *strides, long C, long K, int threads, float *u) {
#pragma omp parallel for num_threads(threads)
    for (long k = 0; k < K; k += LANES)
        for (long c = 0; c < C; c++) {
            lane g[9], half[18];
            for (int n = 0; n < 9; n++)
                for (int p = 0; p < LANES; p++)
                    g[n][p] = weight[(k + p) * strides[0] + c * strides[1] + n / 3 * strides[2] + n % 3 * strides[3]];
            for (int n = 0; n < 18; n++)
                half[n] = G[n / 3][0] * g[n % 3] + G[n / 3][1] * g[3 + n % 3] + G[n / 3][2] * g[6 + n % 3];
            for (int n = 0; n < 36; n++) {
                const lane *row = half + n / 6 * 3;
                lane value = G[n % 6][0] * row[0] + G[n % 6][1] * row[1] + G[n % 6][2] * row[2];
                store(u + ((n * panels(K) + k / P) * C + c) * P + k % P, value);
            }
        }
}

/* x (B,H,W,C) and a mapped weight u, bias (K) or null -> y (B,H,W,K). Not 0 where there is no memory. */
int convolve(const float *x, const float *u, const float *bias, Shape s, int threads, float *y) {
    long squares = s.B * ((s.H + 3) / 4) * ((s.W + 3) / 4), T = together(squares, threads), failed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        float *v = calloc(36 * T * (s.C + P), sizeof(float)), *m = v + 36 * T * s.C;
        failed = v == NULL;
#pragma omp for schedule(dynamic)
        for (long n = 0; n < squares; n += T) {
            if (failed) continue;
            long count = least(T, squares - n), rows = (count + ROWS - 1) / ROWS * ROWS;
            values(x, s, n, count, T, v);
            for (long k = 0; k < s.K; k += P) {
                for (int i = 0; i < 36; i++)
                    product(v + i * T * s.C, u + (i * panels(s.K) + k / P) * s.C * P, rows, s.C, m + i * T * P);
                results(m, bias ? bias + k : NULL, s, n, count, T, least(P, s.K - k), y + k);
            }
        }
        free(v);
    }
    return failed != 0;
}

/* x (B,H,W,C) and the gradient of the results (B,H,W,K) -> that of the weight, as `map_weight` takes one. */
int weight_gradient(const float *x, const float *y, Shape s, const long *strides, int threads, float *weight) {
    long squares = s.B * ((s.H + 3) / 4) * ((s.W + 3) / 4), parts = least(threads, squares / (MOST / 2) + 1);
    long T = together(squares, parts), blocks = (squares + T - 1) / T, K = panels(s.K) * P, size = 36 * s.C * K, failed = 0;
    float *u = calloc(parts * size, sizeof(float)); /* each part its own: their sum does not depend on who is first */
    if (u == NULL) return 1;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : failed)
    for (long part = 0; part < parts; part++) {
        float *v = calloc(36 * T * (s.C + K), sizeof(float)), *m = v + 36 * T * s.C;
        if (v == NULL) {
            failed = 1;
            continue;
        }
        for (long block = blocks * part / parts; block < blocks * (part + 1) / parts; block++) {
            long count = least(T, squares - block * T);
            values(x, s, block * T, count, T, v);
            slopes(y, s, block * T, count, T, m);
            for (int i = 0; i < 36; i++)
                outer(v + i * T * s.C, m + i * T * K, count, s.C, K, u + part * size + i * s.C * K);
        }
        free(v);
    }
#pragma omp parallel for num_threads(threads)
    for (long c = 0; c < s.C; c++)
        for (long k = 0; k < s.K; k += LANES) {
            lane half[18], sum;
            for (int n = 0; n < 18; n++) { /* (3,6) */
                half[n] = (lane){0};
                for (int i = 0; i < 6; i++)
                    for (long part = 0; part < parts; part++)
                        half[n] += G[i][n / 6] * load(u + part * size + ((6 * i + n % 6) * s.C + c) * K + k);
            }
            for (int n = 0; n < 9; n++) {
                sum = (lane){0};
                for (int j = 0; j < 6; j++) sum += G[j][n % 3] * half[n / 3 * 6 + j];
                for (int p = 0; p < LANES; p++)
                    weight[(k + p) * strides[0] + c * strides[1] + n / 3 * strides[2] + n % 3 * strides[3]] = sum[p];
            }
        }
    free(u);
    return failed != 0;
}
