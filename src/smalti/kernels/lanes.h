/* Registers of floats, as the C files here use them. */

#include <math.h>

#define LANES 8 /* floats of a register of AVX2; where one holds fewer, the compiler takes several */
#define PANEL (2 * LANES)
#ifdef __AVX512F__
#define WIDE PANEL /* floats of a register in products, of which there are twice as many, too */
#else
#define WIDE LANES
#endif

typedef float lane __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int whole __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float wide __attribute__((vector_size(4 * WIDE), aligned(4)));

static inline lane load(const float *from) { return *(const lane *)from; }
static inline void store(float *to, lane value) { *(lane *)to = value; }
static inline long least(long a, long b) { return a < b ? a : b; }
static inline lane choose(whole which, lane one, lane other) { return (lane)((which & (whole)one) | (~which & (whole)other)); }
static inline lane alike(float value) { return value - (lane){0}; }
static inline float total(lane v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

/* exp x, as 2^n exp r with |r| <= log(2) / 2: within 2e-7 of itself. Cephes, expf. */
static inline lane exponential(lane x) {
    const float shift = 12582912; /* 1.5 * 2^23: what is added to it is rounded, and stands in the last bits */
    x = choose(x < -87, alike(-87), choose(x > 88, alike(88), x));
    lane n = x * 1.44269504f + shift;
    whole power = (whole)n << 23;
    n -= shift;
    lane r = x - n * 0.693359375f + n * 2.12194440e-4f;
    lane sum = 1.9875691500e-4f * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    return (lane)((whole)(sum * r * r + r + 1) + power);
}
