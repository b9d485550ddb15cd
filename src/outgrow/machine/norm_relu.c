/* ReLU of a batch norm in training mode, or of the norm plus a shortcut. The maps are in channels_last: rows
   of `channels` values, in bfloat16, or in float32 with FLOAT32 defined.

   Forward reads the maps twice and writes once. Backward reads maps and gradient twice and writes once; it
   recomputes the ReLU's mask from the maps. With a shortcut the mask comes from the output. The masked
   gradient is written first, as the shortcut's gradient, and then read instead of the gradient. Sums are in
   float32 over 64 rows, then in double. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 64, LANES = 32 };

#ifdef FLOAT32
typedef float map;
static inline float up(map value) { return value; }
static inline map down(float value) { return value; }
static inline int passes(map value) { return !(value <= 0); }
#else
typedef uint16_t map;
static inline float up(map half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
/* round to nearest, ties to even; NaN stays NaN */
static inline map down(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return value != value ? 0x7fc0 : (map)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline int passes(map value) { return (int16_t)value > 0; } /* true for NaN, too */
#endif

/* gradient of a ReLU with output y; it passes where y is NaN */
static void pass(const map *restrict g, const map *restrict y, map *restrict d, int64_t first, int64_t last) {
#pragma omp simd
  for (int64_t i = first; i < last; i++) d[i] = passes(y[i]) ? g[i] : 0;
}

/* two sums over a thread's rows: in forward of x - shift and its square, in backward of the gradient after
   the ReLU and of that gradient times x - shift */
#define ADD(lanes, VALUE)                                     \
  _Pragma("omp simd") for (int c = 0; c < lanes; c++) {       \
    const int64_t k = at + c, i = r * channels + k;           \
    const float v = up(x[i]), away = v - shift[k], d = VALUE; \
    a[c] += d;                                                \
    b[c] += d * away;                                         \
  }
#define SUMS(name, PREPARE, VALUE)                                                                         \
  static void name(const map *restrict x, const map *restrict g, const map *restrict y,                    \
                   map *restrict through, int64_t first, int64_t last, int64_t channels,                   \
                   const float *restrict shift, const float *restrict scale, const float *restrict offset, \
                   double *restrict one, double *restrict two) {                                           \
    for (int64_t c = 0; c < channels; c++) one[c] = two[c] = 0;                                            \
    for (int64_t row = first; row < last; row += BLOCK) {                                                  \
      const int64_t end = row + BLOCK < last ? row + BLOCK : last;                                         \
      PREPARE                                                                                              \
      for (int64_t at = 0; at < channels; at += LANES) {                                                   \
        float a[LANES] = {0}, b[LANES] = {0};                                                              \
        if (channels - at >= LANES) {                                                                      \
          for (int64_t r = row; r < end; r++) ADD(LANES, VALUE)                                            \
        } else {                                                                                           \
          for (int64_t r = row; r < end; r++) ADD((int)(channels - at), VALUE)                             \
        }                                                                                                  \
        for (int c = 0; c < LANES && at + c < channels; c++) one[at + c] += a[c], two[at + c] += b[c];     \
      }                                                                                                    \
    }                                                                                                      \
  }
SUMS(sums_of_maps, , away)
SUMS(sums_of_gradient, , (v * scale[k] + offset[k] > 0 ? up(g[i]) : 0))
SUMS(sums_of_shared_gradient, pass(g, y, through, row * channels, end * channels);, up(through[i]))

typedef struct {
  int64_t first, last;
} part;

/* this thread's rows; the team may be smaller than requested (a thread limit, a nested parallel region) */
static part mine_of(int64_t rows) {
  const int64_t each = (rows + omp_get_num_threads() - 1) / omp_get_num_threads();
  const int64_t first = each * omp_get_thread_num();
  return (part){first < rows ? first : rows, first + each < rows ? first + each : rows};
}

/* sums of the whole team, in the order of its threads */
static void total(double *work, int64_t channels) {
  for (int t = 1; t < omp_get_num_threads(); t++)
    for (int64_t c = 0; c < 2 * channels; c++) work[c] += work[2 * channels * t + c];
}

/* saved: mean, 1 / deviation, scale and bias of the whole map; work: threads x 2 x channels */
void norm_relu_forward(const map *x, int64_t rows, int64_t channels, const float *weight, const float *bias,
                       double eps, double momentum, float *running_mean, float *running_var, float *saved,
                       double *work, const map *shortcut, map *restrict y, int32_t threads) {
  float *restrict mean = saved, *restrict inverse = saved + channels, *restrict scale = saved + 2 * channels,
        *restrict offset = saved + 3 * channels;
  for (int64_t c = 0; c < channels; c++) mean[c] = up(x[c]); /* a shift close to the mean, for stable sums */
#pragma omp parallel num_threads(threads)
  {
    const part own = mine_of(rows);
    double *mine = work + 2 * channels * omp_get_thread_num();
    sums_of_maps(x, x, x, y, own.first, own.last, channels, mean, mean, mean, mine, mine + channels);
#pragma omp barrier
#pragma omp single
    {
      total(work, channels);
      for (int64_t c = 0; c < channels; c++) {
        const double away = work[c] / rows, middle = mean[c] + away;
        double variance = work[channels + c] / rows - away * away;
        variance = variance < 0 ? 0 : variance;
        const double one = 1 / sqrt(variance + eps);
        mean[c] = (float)middle;
        inverse[c] = (float)one;
        scale[c] = (float)(weight[c] * one);
        offset[c] = (float)(bias[c] - middle * weight[c] * one);
        running_mean[c] = (float)((1 - momentum) * running_mean[c] + momentum * middle);
        running_var[c] = (float)((1 - momentum) * running_var[c] + momentum * variance * rows / (rows - 1));
      }
    }
    for (int64_t r = own.first; r < own.last; r++) {
      const map *restrict from = x + r * channels;
      map *restrict to = y + r * channels;
      if (shortcut) {
        const map *restrict other = shortcut + r * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) {
          const float v = up(from[c]) * scale[c] + offset[c] + up(other[c]);
          to[c] = down(v < 0 ? 0 : v);
        }
        continue;
      }
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) {
        const float v = up(from[c]) * scale[c] + offset[c];
        to[c] = down(v < 0 ? 0 : v);
      }
    }
  }
}

/* y and dshortcut: with a shortcut its output and its gradient, else both NULL */
void norm_relu_backward(const map *x, const map *g, const map *y, int64_t rows, int64_t channels,
                        const float *saved, double *work, float *terms, map *dx, map *dshortcut,
                        float *dweight, float *dbias, int32_t threads) {
  const float *restrict mean = saved, *restrict inverse = saved + channels, *restrict scale = saved + 2 * channels,
              *restrict offset = saved + 3 * channels;
  float *restrict constant = terms, *restrict slope = terms + channels;
#pragma omp parallel num_threads(threads)
  {
    const part own = mine_of(rows);
    double *mine = work + 2 * channels * omp_get_thread_num();
    if (y)
      sums_of_shared_gradient(x, g, y, dshortcut, own.first, own.last, channels, mean, scale, offset, mine,
                              mine + channels);
    else
      sums_of_gradient(x, g, y, dx, own.first, own.last, channels, mean, scale, offset, mine, mine + channels);
#pragma omp barrier
#pragma omp single
    {
      total(work, channels);
      for (int64_t c = 0; c < channels; c++) {
        const double of_scale = work[channels + c] * inverse[c];
        dbias[c] = (float)work[c];
        dweight[c] = (float)of_scale;
        const double steep = scale[c] * inverse[c] * of_scale / rows;
        slope[c] = (float)steep;
        constant[c] = (float)(scale[c] * work[c] / rows - steep * mean[c]);
      }
    }
    for (int64_t r = own.first; r < own.last; r++) {
      const map *restrict xs = x + r * channels, *restrict gs = (y ? dshortcut : g) + r * channels;
      map *restrict to = dx + r * channels;
      if (y) {
#pragma omp simd
        for (int64_t c = 0; c < channels; c++)
          to[c] = down(scale[c] * up(gs[c]) - constant[c] - slope[c] * up(xs[c]));
        continue;
      }
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) {
        const float v = up(xs[c]), passed = v * scale[c] + offset[c] > 0 ? up(gs[c]) : 0;
        to[c] = down(scale[c] * passed - constant[c] - slope[c] * v);
      }
    }
  }
}
