/* Cross-entropy and rectified KL of float32 rows, gradient in closed form.

   A row is read twice, written once, and in between lies in three buffers that fit the cache. Sums of
   a row are of float32 lanes; what is computed from them is in double. No flag of fast maths: one of
   them would change how the whole process treats small numbers.

   A correction is three numbers a row: the belief is q = c t but for the label, q_a = u, and the top
   class, q_b = v. Against the plain teacher's KL(t || p) only two classes change:

     KL(q || p) = c (KL(t || p) - sum_ab t log(t / p)) + c log c (1 - t_a - t_b) + sum_ab q log(q / p)

   and the gradient of T^2 KL in the student's logits is T (p - q). The value subtracts: it is good to
   rounding of sum t |log t| + sum t |log p|, not of a KL near zero. */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { PLAIN, PAIR, SWAP, LEAD, BOOST };

/* exp for x <= 0 (Cephes: 2^k times a polynomial, good to 1 ulp or so), 0 below the smallest normal
   number; a NaN stays one */
static inline float exponential(float from) {
  const float x = from < -87.0f ? -87.0f : from;
  float k = __builtin_rintf(x * 1.44269504f);
  float r = x - k * 0.693359375f + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)k + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return from < -87.0f ? 0.0f : p * power;
}

/* q log(q / p), 0 where nothing is believed */
static double term(double q, double log_p) { return q == 0 ? 0 : q * (log(q) - log_p); }

/* sums: of the cross-entropy, and of weight * KL over right and over wrong rows; scales: what multiplies
   them in the gradient. A stride of 0 is one weight for all rows. */
void kd_rows(const float *teacher, const float *student, const int64_t *label, const uint8_t *wrong,
             const float *row_weight, int64_t stride, const double *scales, int64_t rows, int64_t classes,
             int32_t rule, double parameter, double temperature, float *buffer, double *sums, float *gradient) {
  const float inverse = (float)(1 / temperature);
  float *restrict t = buffer, *restrict p = buffer + classes, *restrict p1 = buffer + 2 * classes;
  sums[0] = sums[1] = sums[2] = 0;
  for (int64_t row = 0; row < rows; row++) {
    const float *restrict z = teacher + row * classes, *restrict s = student + row * classes;
    const int64_t a = label[row];
    float max_z = z[0], max_s = s[0], sum_t = 0, sum_p = 0, sum_p1 = 0, dot = 0;
#pragma omp simd reduction(max : max_z, max_s)
    for (int64_t c = 0; c < classes; c++) {
      max_z = z[c] > max_z ? z[c] : max_z;
      max_s = s[c] > max_s ? s[c] : max_s;
    }
#pragma omp simd reduction(+ : sum_t, sum_p, sum_p1, dot)
    for (int64_t c = 0; c < classes; c++) {
      const float from = (z[c] - max_z) * inverse, to = (s[c] - max_s) * inverse;
      const float of_t = exponential(from);
      t[c] = of_t;
      p[c] = exponential(to);
      p1[c] = exponential(s[c] - max_s);
      sum_t += of_t;
      sum_p += p[c];
      sum_p1 += p1[c];
      dot += of_t == 0 ? 0 : of_t * (from - to); /* a class that the teacher rules out */
    }
    const double log_sum_t = log(sum_t), log_sum_p = log(sum_p);
    double value = dot / (double)sum_t - log_sum_t + log_sum_p, scale = 1, of_label = 0, of_top = 0;
    int64_t b = a;
    if (wrong[row] && rule != PLAIN) {
      for (b = 0; b < classes - 1 && z[b] != max_z; b++) {
      }
      const double log_ta = (double)(z[a] - max_z) / temperature - log_sum_t, log_tb = -log_sum_t;
      const double log_pa = (double)(s[a] - max_s) / temperature - log_sum_p;
      const double log_pb = (double)(s[b] - max_s) / temperature - log_sum_p;
      const double ta = exp(log_ta), tb = exp(log_tb), mass = ta + tb;
      double u = tb, v = ta; /* SWAP */
      if (rule == PAIR) {
        u = mass * (1 + ta) / (1 + mass);
        v = mass * tb / (1 + mass);
      } else if (rule == LEAD) { /* the parameter is the margin */
        scale = (1 - parameter) / (1 - ta + tb);
        u = scale * ta + (1 - scale);
        v = scale * tb;
      } else if (rule == BOOST) { /* delta / T, added to the label's log odds: exp of it may overflow */
        const double odds = log_ta - log1p(-ta) + parameter;
        u = 1 / (1 + exp(-odds));
        scale = 1 / (1 + exp(odds)) / (1 - ta);
        v = scale * tb;
      }
      value = scale * (value - term(ta, log_pa) - term(tb, log_pb)) + term(scale, 0) * (1 - mass) +
              term(u, log_pa) + term(v, log_pb);
      of_label = scale * ta - u;
      of_top = scale * tb - v;
    }
    const int is_wrong = wrong[row] != 0;
    const double own = row_weight[row * stride];
    sums[0] += log(sum_p1) - (double)(s[a] - max_s);
    if (own != 0) sums[1 + is_wrong] += own * value; /* the value of far logits may be infinite */
    if (!gradient) continue;
    const double weight = temperature * own * scales[1 + is_wrong];
    const float of_p1 = (float)(scales[0] / sum_p1), of_p = (float)(weight / sum_p);
    const float of_t = (float)(weight * scale / sum_t);
    float *restrict out = gradient + row * classes;
#pragma omp simd
    for (int64_t c = 0; c < classes; c++) out[c] = of_p1 * p1[c] + of_p * p[c] - of_t * t[c];
    out[a] += (float)(weight * of_label - scales[0]);
    if (b != a) out[b] += (float)(weight * of_top);
  }
}
