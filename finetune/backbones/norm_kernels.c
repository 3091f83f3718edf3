/* The elementwise passes of batch norm over maps stored channels last: matrices of rows (pixels) and columns (channels),
 * whose rows may lie further apart (ld) than they are long. Each pass reads and writes a map once.
 *
 * A norm is given by mean, var, weight and bias per column: z = x * scale + shift, scale = weight / sqrt(var + eps),
 * shift = bias - mean * scale, then the ReLU where there is one. A map is cut into `parts` ranges of rows, one per thread.
 * Sums over rows are taken in float over BLOCK rows and then in double, and parts are joined in order: a result depends
 * on the number of threads and on nothing else.
 */
#include <math.h>
#include <stdlib.h>

#define BLOCK 64
#define PARALLEL _Pragma("omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)")
/* over columns, which never depend on each other: an output may be written over an input */
#define EACH(j) _Pragma("GCC ivdep") for (integer j = 0; j < columns; j++)

typedef long long integer;
typedef struct {
    const float *mean, *var, *weight, *bias;
    double eps;
    integer relu;
} Norm;

static integer start_of(integer part, integer parts, integer rows) { return rows * part / parts; }

/* scale and shift of each column, in one piece of memory that the caller frees */
static float *affine(const Norm *norm, integer columns) {
    float *scale = malloc(2 * columns * sizeof(float)), *shift = scale + columns;
    EACH(j) {
        scale[j] = norm->weight[j] / sqrt(norm->var[j] + norm->eps);
        shift[j] = norm->bias[j] - norm->mean[j] * scale[j];
    }
    return scale;
}

/* mean and var (divided by the number of rows) of each column */
void statistics(integer rows, integer columns, const float *x, integer ldx, float *mean, float *var, integer parts) {
    double *all = calloc(2 * parts * columns, sizeof(double));
    PARALLEL
    for (integer part = 0; part < parts; part++) {
        double *means = all + 2 * part * columns, *squares = means + columns;
        float *m = malloc(2 * columns * sizeof(float)), *s = m + columns;
        integer first = start_of(part, parts, rows), last = start_of(part + 1, parts, rows);
        for (integer i = first; i < last; i += BLOCK) {
            integer n = last - i < BLOCK ? last - i : BLOCK, seen = i - first;
            EACH(j) m[j] = s[j] = 0;
            for (integer k = i; k < i + n; k++) EACH(j) m[j] += x[k * ldx + j];
            EACH(j) m[j] /= n;
            for (integer k = i; k < i + n; k++) EACH(j) {
                float d = x[k * ldx + j] - m[j];
                s[j] += d * d;
            }
            EACH(j) { /* Chan et al.: the moments of two sets of numbers become those of one */
                double d = m[j] - means[j];
                means[j] += d * n / (seen + n);
                squares[j] += s[j] + d * d * seen * n / (seen + n);
            }
        }
        free(m);
    }
    for (integer part = 1; part < parts; part++) {
        double *means = all + 2 * part * columns, *squares = means + columns;
        integer seen = start_of(part, parts, rows), n = start_of(part + 1, parts, rows) - seen;
        EACH(j) {
            double d = means[j] - all[j];
            all[j] += d * n / (seen + n);
            all[columns + j] += squares[j] + d * d * seen * n / (seen + n);
        }
    }
    EACH(j) {
        mean[j] = all[j];
        var[j] = all[columns + j] / rows;
    }
    free(all);
}

/* z = relu(x * scale + shift + add); add may be absent, and so may the ReLU. NaN stays NaN. */
void normalise(integer rows, integer columns, const float *x, integer ldx, const Norm *norm, const float *add,
               integer ldadd, float *z, integer ldz, integer parts) {
    float *scale = affine(norm, columns), *shift = scale + columns;
    integer relu = norm->relu;
    PARALLEL
    for (integer part = 0; part < parts; part++)
        for (integer i = start_of(part, parts, rows); i < start_of(part + 1, parts, rows); i++) {
            const float *xi = x + i * ldx, *ai = add ? add + i * ldadd : 0;
            float *zi = z + i * ldz;
            if (add)
                EACH(j) {
                    float v = xi[j] * scale[j] + shift[j] + ai[j];
                    zi[j] = relu && v < 0 ? 0 : v;
                }
            else
                EACH(j) {
                    float v = xi[j] * scale[j] + shift[j];
                    zi[j] = relu && v < 0 ? 0 : v;
                }
        }
    free(scale);
}

/* With t = dz, or 0 where the ReLU gave 0: plain += sum t, dot += sum t * (x - mean), and dx += t * scale where dx is
 * given. */
void gradient_sums(integer rows, integer columns, const float *dz, integer lddz, const float *x, integer ldx,
                   const Norm *norm, double *plain, double *dot, float *dx, integer lddx, integer parts) {
    float *scale = affine(norm, columns), *shift = scale + columns;
    const float *mean = norm->mean;
    integer relu = norm->relu;
    double *all = calloc(2 * parts * columns, sizeof(double));
    PARALLEL
    for (integer part = 0; part < parts; part++) {
        double *plains = all + 2 * part * columns, *dots = plains + columns;
        float *p = malloc(2 * columns * sizeof(float)), *q = p + columns;
        integer first = start_of(part, parts, rows), last = start_of(part + 1, parts, rows);
        for (integer i = first; i < last; i += BLOCK) {
            integer stop = last - i < BLOCK ? last : i + BLOCK;
            EACH(j) p[j] = q[j] = 0;
            for (integer k = i; k < stop; k++) {
                const float *xk = x + k * ldx, *gk = dz + k * lddz;
                float *dk = dx ? dx + k * lddx : 0;
                if (dx)
                    EACH(j) {
                        float t = relu && xk[j] * scale[j] + shift[j] <= 0 ? 0 : gk[j];
                        p[j] += t;
                        q[j] += t * (xk[j] - mean[j]);
                        dk[j] += t * scale[j];
                    }
                else
                    EACH(j) {
                        float t = relu && xk[j] * scale[j] + shift[j] <= 0 ? 0 : gk[j];
                        p[j] += t;
                        q[j] += t * (xk[j] - mean[j]);
                    }
            }
            EACH(j) {
                plains[j] += p[j];
                dots[j] += q[j];
            }
        }
        free(p);
    }
    for (integer part = 0; part < parts; part++) EACH(j) {
        plain[j] += all[2 * part * columns + j];
        dot[j] += all[(2 * part + 1) * columns + j];
    }
    free(all);
    free(scale);
}

/* From those sums to the gradients of weight and bias, and, where the statistics are the batch's, to p and r of
 * dx = t * scale + p * x + r: they are added to what is there. */
void correction(integer rows, integer columns, const Norm *norm, const double *plain, const double *dot, float *dweight,
                float *dbias, float *p, float *r) {
    EACH(j) {
        double rstd = 1 / sqrt(norm->var[j] + norm->eps), scale = norm->weight[j] * rstd;
        double slope = -scale * rstd * rstd * dot[j] / rows;
        dweight[j] = rstd * dot[j];
        dbias[j] = plain[j];
        p[j] += slope;
        r[j] -= scale * plain[j] / rows + slope * norm->mean[j];
    }
}

/* dx = t * scale + p * x + r, with t as above; p and r are zero for a norm whose statistics are fixed. */
void gradient(integer rows, integer columns, const float *dz, integer lddz, const float *x, integer ldx,
              const Norm *norm, const float *p, const float *r, float *dx, integer lddx, integer parts) {
    float *scale = affine(norm, columns), *shift = scale + columns;
    integer relu = norm->relu;
    PARALLEL
    for (integer part = 0; part < parts; part++)
        for (integer i = start_of(part, parts, rows); i < start_of(part + 1, parts, rows); i++) {
            const float *xi = x + i * ldx, *gi = dz + i * lddz;
            float *di = dx + i * lddx;
            EACH(j) {
                float t = relu && xi[j] * scale[j] + shift[j] <= 0 ? 0 : gi[j];
                di[j] = t * scale[j] + p[j] * xi[j] + r[j];
            }
        }
    free(scale);
}
