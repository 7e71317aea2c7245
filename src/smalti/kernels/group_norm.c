/* GroupNorm of images that are stored channels-last, with statistics that are right for maps of any size.

   Wu and He 2018, "Group Normalization", equations 1 to 3. Sums over some hundred pixels are float32, all others double; values are
   taken from that of the channel's first pixel, so that nothing is lost where a mean is large beside its deviation.

   Notation: B images, N pixels of each, C channels, divisible by LANES, G groups. */

#include <stdlib.h>

#include "lanes.h"

#define BLOCK 256 /* pixels */

/* Some pixels, and the values that are subtracted -> sums of C differences and of their squares. */
static void summed(const float *x, const float *from, long count, long C, double *sums) {
    for (long c = 0; c < C; c += LANES) {
        lane first = load(from + c), sum = {0}, square = {0};
        for (long n = 0; n < count; n++) {
            lane far = load(x + n * C + c) - first;
            sum += far;
            square += far * far;
        }
        for (int i = 0; i < LANES; i++) sums[c + i] = sum[i], sums[C + c + i] = square[i];
    }
}

/* Sums of all blocks of an image -> mean and 1 / deviation of each group. */
static void moments(const double *sums, const float *from, long blocks, long N, long C, long G, double epsilon,
                    float *mean, float *scale) {
    long size = C / G;
    for (long g = 0; g < G; g++) {
        double middle = 0, spread = 0;
        for (int turn = 0; turn < 2; turn++) /* first the mean of the group, then the squares around it */
            for (long c = g * size; c < (g + 1) * size; c++) {
                double sum = 0, square = 0;
                for (long b = 0; b < blocks; b++) sum += sums[2 * b * C + c], square += sums[(2 * b + 1) * C + c];
                double own = from[c] + sum / N, far = own - middle;
                if (turn == 0) middle += own / size;
                else spread += (square / N - sum / N * (sum / N) + far * far) / size;
            }
        mean[g] = middle;
        scale[g] = 1 / sqrt(spread + epsilon);
    }
}

/* x (B,N,C), weight and bias (C) -> y (B,N,C), mean and 1 / deviation (B,G). Not 0 where there is no memory. */
int group_norm(const float *x, const float *weight, const float *bias, long B, long N, long C, long G, double epsilon,
               int threads, float *mean, float *scale, float *y) {
    long blocks = (N + BLOCK - 1) / BLOCK;
    double *sums = malloc(2 * B * blocks * C * sizeof(double));
    float *maps = malloc(2 * B * C * sizeof(float));
    int failed = sums == NULL || maps == NULL;
    if (!failed) {
#pragma omp parallel for num_threads(threads)
        for (long block = 0; block < B * blocks; block++) {
            long b = block / blocks, n = block % blocks * BLOCK;
            summed(x + (b * N + n) * C, x + b * N * C, N - n < BLOCK ? N - n : BLOCK, C, sums + 2 * block * C);
        }
        for (long b = 0; b < B; b++) {
            moments(sums + 2 * b * blocks * C, x + b * N * C, blocks, N, C, G, epsilon, mean + b * G, scale + b * G);
            for (long c = 0; c < C; c++) {
                long g = b * G + c / (C / G);
                maps[2 * b * C + c] = weight[c] * scale[g];
                maps[(2 * b + 1) * C + c] = bias[c] - mean[g] * maps[2 * b * C + c];
            }
        }
#pragma omp parallel for num_threads(threads)
        for (long n = 0; n < B * N; n++)
            for (long c = 0; c < C; c += LANES) {
                const float *map = maps + 2 * (n / N) * C + c;
                store(y + n * C + c, load(x + n * C + c) * load(map) + load(map + C));
            }
    }
    free(sums);
    free(maps);
    return failed;
}
