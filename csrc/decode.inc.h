// Matrix products with few rows, and attention of one position, for one instruction set. Part of one instruction set's
// namespace; included by transform.inc.h.

// Vectors of a block of outputs, and the most rows at once: what fits the registers.
constexpr int BLOCK_VECTORS = 4, BLOCK_OUTPUTS = BLOCK_VECTORS * W;
constexpr int MOST_ROWS = W == 16 ? 6 : 2;

ALWAYS_INLINE Vec number(const float* from) { return load(from); }

ALWAYS_INLINE Vec number(const int8_t* from) {
#if MUOMNI_WIDTH == 16
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif MUOMNI_WIDTH == 8
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    return Vec{float(from[0]), float(from[1]), float(from[2]), float(from[3])};
#endif
}

// A block of outputs of R rows. Every sum runs over the inputs in their order, whatever R is.
template <typename T, int R>
KERNEL void block(const Product& op, const T* weights, const float* scales, int64_t row, int64_t output) {
    const int64_t n_in = op.weight.n_in, stride = op.x_stride;
    const float* x = op.x + row * stride;
    Vec sums[R][BLOCK_VECTORS] = {};
    for (int64_t k = 0; k < n_in; ++k, weights += PANEL) {
        Vec w[BLOCK_VECTORS];
        UNROLL for (int i = 0; i < BLOCK_VECTORS; ++i) w[i] = number(weights + i * W);
        UNROLL for (int r = 0; r < R; ++r) {
            const float each = x[r * stride + k];
            UNROLL for (int i = 0; i < BLOCK_VECTORS; ++i) sums[r][i] += w[i] * each;
        }
    }
    const int64_t n_left = op.weight.n_out - output;
    UNROLL for (int r = 0; r < R; ++r) {
        float* y = op.y + (row + r) * op.y_stride + output;
        UNROLL for (int i = 0; i < BLOCK_VECTORS; ++i) {
            const Vec value = scales == nullptr ? sums[r][i] : sums[r][i] * load(scales + output + i * W);
            const int64_t n = n_left - i * W;
            if (n >= W)
                put(y + i * W, value, Whole{});
            else if (n > 0)
                put(y + i * W, value, Part{n});
        }
    }
}

template <typename T, int R = MOST_ROWS>
ALWAYS_INLINE void block_of(const Product& op, const T* weights, const float* scales, int64_t row, int64_t output, int64_t n) {
    if (n == R) return block<T, R>(op, weights, scales, row, output);
    if constexpr (R > 1) block_of<T, R - 1>(op, weights, scales, row, output, n);
}

template <typename T>
void product_panel(const Product& op, const T* weights, const float* scales, int64_t panel) {
    weights += panel * PANEL * op.weight.n_in;
    for (int64_t row = 0; row < op.n_rows; row += MOST_ROWS) {
        const int64_t n = op.n_rows - row < MOST_ROWS ? op.n_rows - row : MOST_ROWS;
        for (int64_t part = 0; part < PANEL; part += BLOCK_OUTPUTS)
            block_of<T>(op, weights + part, scales, row, panel * PANEL + part, n);
    }
}

void product_float(const Product& op, int64_t panel) {
    product_panel<float>(op, op.weight.numbers, nullptr, panel);
}

void product_int8(const Product& op, int64_t panel) {
    product_panel<int8_t>(op, op.weight.bytes, op.weight.scales, panel);
}

// One head's weighted sum of values, N vectors of its features.
template <int N>
ALWAYS_INLINE void weigh(const float* shares, const float* v, int64_t n_keys, int64_t stride, float factor, float* out) {
    Vec sums[N] = {};
    for (int64_t t = 0; t < n_keys; ++t, v += stride)
        UNROLL for (int i = 0; i < N; ++i) sums[i] += load(v + i * W) * shares[t];
    UNROLL for (int i = 0; i < N; ++i) store(out + i * W, sums[i] * factor);
}

KERNEL void attend(const Attend& op, float* scores) {
    const int64_t d = op.head_dim, n = op.n_keys;
    for (int64_t g = 0; g < op.groups; ++g) {
        const float* q = op.q + g * d;
        float largest = -3.4e38f;
        for (int64_t t = 0; t < n; ++t) {
            const float* k = op.k + t * op.key_stride;
            Vec products = {};
            over(d, [&](int64_t i, auto part) { products += get(q + i, part) * get(k + i, part); });
            const float score = sum_of(products) * op.scale;
            scores[t] = score;
            largest = score > largest ? score : largest;
        }
        Vec total = {};
        float rest = 0.0f;
        int64_t t = 0;
        for (; t + W <= n; t += W) {
            const Vec share = exponential(load(scores + t) - largest);
            store(scores + t, share);
            total += share;
        }
        if (t < n) {
            float some[W];
            put(some, exponential(get(scores + t, Part{n - t}) - largest), Whole{});
            for (int64_t i = 0; t + i < n; ++i) {
                scores[t + i] = some[i];
                rest += some[i];
            }
        }
        const float factor = 1.0f / (sum_of(total) + rest);
        float* out = op.out + g * d;
        int64_t i = 0;
        for (; i + 2 * W <= d; i += 2 * W) weigh<2>(scores, op.v + i, n, op.key_stride, factor, out + i);
        for (; i + W <= d; i += W) weigh<1>(scores, op.v + i, n, op.key_stride, factor, out + i);
        for (; i < d; ++i) {
            float sum = 0.0f;
            for (int64_t key = 0; key < n; ++key) sum += scores[key] * op.v[key * op.key_stride + i];
            out[i] = sum * factor;
        }
    }
}
