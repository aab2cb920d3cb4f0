/* Elementary functions over arrays, and the categorical head; included by kernels_body.inc.h. */
#define DEFINE_MAP(name, fn, fill)                         \
    static void name(uint32_t n, const float *x, float *y) \
    {                                                      \
        uint32_t i = 0;                                    \
        for (; i + LANES <= n; i += LANES) {               \
            store(y + i, fn(load(x + i)));                 \
        }                                                  \
        if (i < n) {                                       \
            float part[LANES];                             \
            for (uint32_t j = 0; j < LANES; j++) {         \
                part[j] = i + j < n ? x[i + j] : (fill);   \
            }                                              \
            store(part, fn(load(part)));                   \
            for (uint32_t j = 0; i + j < n; j++) {         \
                y[i + j] = part[j];                        \
            }                                              \
        }                                                  \
    }
DEFINE_MAP(tanh_f32, v_tanh, 0.0f)
DEFINE_MAP(exp_f32, v_exp, 0.0f)
DEFINE_MAP(log_f32, v_log, 1.0f)

static void softmax(uint32_t choices, uint32_t n, uint32_t ld, float *z, float *p, float *entropy)
{
    for (uint32_t b = 0; b < n; b += LANES) {
        vf top = load(z + b);
        for (size_t j = 1; j < choices; j++) {
            top = vmax(load(z + j * ld + b), top);
        }
        vf sum = splat(0.0f);
        for (size_t j = 0; j < choices; j++) {
            vf e = v_exp(load(z + j * ld + b) - top);
            store(p + j * ld + b, e);
            sum += e;
        }
        vf scale = splat(1.0f) / sum, shift = top + v_log(sum), h = splat(0.0f);
        for (size_t j = 0; j < choices; j++) {
            vf q = load(p + j * ld + b) * scale, lp = load(z + j * ld + b) - shift;
            store(p + j * ld + b, q);
            store(z + j * ld + b, lp);
            h -= q * lp;
        }
        store(entropy + b, h);
    }
}

static void softmax_grad(uint32_t choices, uint32_t n, uint32_t ld, const int32_t *action, const float *log_p,
                         const float *p, const float *entropy, const float *d_log_prob,
                         const float *d_entropy, float *dz)
{
    for (uint32_t b = 0; b < n; b += LANES) {
        vi a = *(const vi_any *)(action + b);
        vf dl = load(d_log_prob + b), de = load(d_entropy + b), h = load(entropy + b);
        for (uint32_t j = 0; j < choices; j++) {
            size_t at = (size_t)j * ld + b;
            vf q = load(p + at);
            vf hit = (vf)((a == splat_i((int32_t)j)) & (vi)dl);
            store(dz + at, hit - q * (dl + de * (load(log_p + at) + h)));
        }
    }
}
