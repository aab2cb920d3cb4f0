/* Products of a weight matrix with a feature-major batch; included by kernels_body.inc.h.
 *
 * A tile of MR output features x NV vectors of the batch stays in registers while the depth runs; the activation is applied before
 * it is stored. Tiles are sized for the register file: 16 accumulators of 32 registers with AVX-512, 8 of 16 otherwise.
 */
struct product {
    const float *a; /* element (m, k) at a[m * row + k * col] */
    size_t row, col;
    uint32_t depth, ld;
    const float *x, *bias, *h;
    float *y;
    enum corral_dense_act act;
    bool backward; /* multiply by act'(h) instead of applying act */
};

INLINE vf activate(vf v, enum corral_dense_act act)
{
    if (act == CORRAL_DENSE_TANH) {
        return v_tanh(v);
    }
    return act == CORRAL_DENSE_RELU ? choose(v < splat(0.0f), splat(0.0f), v) : v;
}

INLINE vf times_derivative(vf d, vf h, enum corral_dense_act act)
{
    if (act == CORRAL_DENSE_TANH) {
        return d * (splat(1.0f) - h * h);
    }
    return choose(h > splat(0.0f), d, splat(0.0f));
}

INLINE void tile(const struct product *p, uint32_t m0, uint32_t b0, const uint32_t mr, const uint32_t nv)
{
    vf acc[8][4];
    UNROLL for (uint32_t m = 0; m < mr; m++)
    {
        UNROLL for (uint32_t v = 0; v < nv; v++)
        {
            acc[m][v] = splat(p->bias ? p->bias[m0 + m] : 0.0f);
        }
    }
    const float *x = p->x + b0, *a = p->a + m0 * p->row;
    const size_t row = p->row, col = p->col, ld = p->ld;
    for (uint32_t k = p->depth; k > 0; k--) {
        vf xv[4];
        UNROLL for (uint32_t v = 0; v < nv; v++)
        {
            xv[v] = load(x + v * LANES);
        }
        UNROLL for (uint32_t m = 0; m < mr; m++)
        {
            vf w = splat(a[m * row]);
            UNROLL for (uint32_t v = 0; v < nv; v++)
            {
                acc[m][v] += w * xv[v];
            }
        }
        x += ld;
        a += col;
    }
    UNROLL for (uint32_t m = 0; m < mr; m++)
    {
        UNROLL for (uint32_t v = 0; v < nv; v++)
        {
            size_t at = (m0 + m) * ld + b0 + v * LANES;
            vf r = acc[m][v];
            if (p->act != CORRAL_DENSE_LINEAR) {
                r = p->backward ? times_derivative(r, load(p->h + at), p->act) : activate(r, p->act);
            }
            store(p->y + at, r);
        }
    }
}

#define DEFINE_COLUMNS(nv, mr_most)                                                                         \
    static __attribute__((noinline)) void columns_##nv(const struct product *p, uint32_t rows, uint32_t b0) \
    {                                                                                                       \
        uint32_t m = 0;                                                                                     \
        for (; m + (mr_most) <= rows; m += (mr_most)) {                                                     \
            tile(p, m, b0, mr_most, nv);                                                                    \
        }                                                                                                   \
        if ((mr_most) > 4 && m + 4 <= rows) {                                                               \
            tile(p, m, b0, 4, nv);                                                                          \
            m += 4;                                                                                         \
        }                                                                                                   \
        if ((mr_most) > 2 && m + 2 <= rows) {                                                               \
            tile(p, m, b0, 2, nv);                                                                          \
            m += 2;                                                                                         \
        }                                                                                                   \
        if (m < rows) {                                                                                     \
            tile(p, m, b0, 1, nv);                                                                          \
        }                                                                                                   \
    }
#if LANES == 16
DEFINE_COLUMNS(4, 4)
DEFINE_COLUMNS(2, 8)
DEFINE_COLUMNS(1, 8)
#elif LANES == 8
DEFINE_COLUMNS(2, 4)
#else
DEFINE_COLUMNS(4, 2)
#endif

static void product(const struct product *p, uint32_t rows, uint32_t n)
{
    uint32_t b = 0;
#if LANES == 16
    for (; b + 64 <= n; b += 64) {
        columns_4(p, rows, b);
    }
    if (b + 32 <= n) {
        columns_2(p, rows, b);
        b += 32;
    }
    if (b < n) {
        columns_1(p, rows, b);
    }
#elif LANES == 8
    for (; b < n; b += 16) {
        columns_2(p, rows, b);
    }
#else
    for (; b < n; b += 16) {
        columns_4(p, rows, b);
    }
#endif
}

static void forward(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w, const float *bias,
                    const float *x, float *y, enum corral_dense_act act)
{
    struct product p = {
        .a = w, .row = in, .col = 1, .depth = in, .ld = ld, .x = x, .bias = bias, .y = y, .act = act};
    product(&p, out, n);
}

static void input_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *w, const float *dy,
                       const float *h, float *dx, enum corral_dense_act act)
{
    struct product p = {.a = w,
                        .row = 1,
                        .col = in,
                        .depth = out,
                        .ld = ld,
                        .x = dy,
                        .h = h,
                        .y = dx,
                        .act = act,
                        .backward = true};
    product(&p, in, n);
}

/* Sum each of LANES vectors: lane i of the result is the sum of a[i]. A tree of pairwise interleaved additions. */
#if LANES == 16
#define PAIR(a, b)                                                                             \
    (__builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) + \
     __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31))
#define QUAD(a, b)                                                                             \
    (__builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) + \
     __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define FOUR(a) QUAD(PAIR((a)[0], (a)[1]), PAIR((a)[2], (a)[3]))
INLINE vf sums(const vf *a)
{
    vf q0 = FOUR(a), q1 = FOUR(a + 4), q2 = FOUR(a + 8), q3 = FOUR(a + 12);
    vf u = __builtin_shufflevector(q0, q1, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(q0, q1, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    vf w = __builtin_shufflevector(q2, q3, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(q2, q3, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    return __builtin_shufflevector(u, w, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(u, w, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
#elif LANES == 8
#define PAIR(a, b)                                             \
    (__builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + \
     __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15))
#define QUAD(a, b)                                             \
    (__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + \
     __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define FOUR(a) QUAD(PAIR((a)[0], (a)[1]), PAIR((a)[2], (a)[3]))
INLINE vf sums(const vf *a)
{
    vf q0 = FOUR(a), q1 = FOUR(a + 4);
    return __builtin_shufflevector(q0, q1, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(q0, q1, 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
INLINE vf sums(const vf *a)
{
    vf u = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5) + __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
    vf w = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5) + __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
    return __builtin_shufflevector(u, w, 0, 1, 4, 5) + __builtin_shufflevector(u, w, 2, 3, 6, 7);
}
#endif

/* Dot products of a block of dy rows with four x rows, LANES of them at once; the block's missing rows repeat its last one. */
#define BLOCK (LANES / 4)
INLINE void weight_tile(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy, const float *x,
                        float *dw, uint32_t o, uint32_t i)
{
    vf acc[LANES];
    const float *py[BLOCK], *px[4];
    UNROLL for (uint32_t m = 0; m < LANES; m++)
    {
        acc[m] = splat(0.0f);
    }
    UNROLL for (uint32_t m = 0; m < BLOCK; m++)
    {
        py[m] = dy + (size_t)(o + m < out ? o + m : out - 1) * ld;
    }
    UNROLL for (uint32_t j = 0; j < 4; j++)
    {
        px[j] = x + (size_t)(i + j < in ? i + j : in - 1) * ld;
    }
    for (uint32_t b = 0; b < n; b += LANES) {
        vf xv[4];
        UNROLL for (uint32_t j = 0; j < 4; j++)
        {
            xv[j] = load(px[j] + b);
        }
        UNROLL for (uint32_t m = 0; m < BLOCK; m++)
        {
            vf d = load(py[m] + b);
            UNROLL for (uint32_t j = 0; j < 4; j++)
            {
                acc[m * 4 + j] += d * xv[j];
            }
        }
    }
    vf r = sums(acc);
    float part[LANES];
    store(part, r);
    uint32_t width = in - i < 4 ? in - i : 4;
    for (uint32_t m = 0; m < BLOCK && o + m < out; m++) {
        float *to = dw + (size_t)(o + m) * in + i;
        for (uint32_t j = 0; j < width; j++) {
            to[j] += part[m * 4 + j];
        }
    }
}

static void row_sums(uint32_t rows, uint32_t n, uint32_t ld, const float *dy, float *db)
{
    for (uint32_t o = 0; o < rows; o += LANES) {
        vf acc[LANES];
        UNROLL for (uint32_t m = 0; m < LANES; m++)
        {
            const float *p = dy + (size_t)(o + m < rows ? o + m : rows - 1) * ld;
            vf s = load(p);
            for (uint32_t b = LANES; b < n; b += LANES) {
                s += load(p + b);
            }
            acc[m] = s;
        }
        float part[LANES];
        store(part, sums(acc));
        for (uint32_t m = 0; m < LANES && o + m < rows; m++) {
            db[o + m] += part[m];
        }
    }
}

static void weight_grad(uint32_t out, uint32_t in, uint32_t n, uint32_t ld, const float *dy, const float *x,
                        float *dw, float *db)
{
    for (uint32_t o = 0; o < out; o += BLOCK) {
        for (uint32_t i = 0; i < in; i += 4) {
            weight_tile(out, in, n, ld, dy, x, dw, o, i);
        }
    }
    row_sums(out, n, ld, dy, db);
}

static void bias_act(uint32_t rows, uint32_t n, uint32_t ld, const float *bias, float *y,
                     enum corral_dense_act act)
{
    for (uint32_t o = 0; o < rows; o++) {
        vf add = splat(bias[o]);
        float *p = y + (size_t)o * ld;
        for (uint32_t b = 0; b < n; b += LANES) {
            store(p + b, activate(load(p + b) + add, act));
        }
    }
}

static void act_grad(uint32_t rows, uint32_t n, uint32_t ld, const float *h, float *dx,
                     enum corral_dense_act act)
{
    if (act == CORRAL_DENSE_LINEAR) {
        return;
    }
    for (uint32_t o = 0; o < rows; o++) {
        size_t at = (size_t)o * ld;
        for (uint32_t b = 0; b < n; b += LANES) {
            store(dx + at + b, times_derivative(load(dx + at + b), load(h + at + b), act));
        }
    }
}
