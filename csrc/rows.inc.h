// The row-wise ops for one instruction set. Part of one instruction set's namespace; included by transform.inc.h.

// Bodies of loops in place, or what they capture is read from memory again and again.
#define KERNEL __attribute__((flatten))

// W features, or the n < W at the end of a row; the lanes behind them read as 0.
struct Whole {};
struct Part {
    int64_t n;
};

template <typename Body>
ALWAYS_INLINE void over(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + W <= n; i += W) body(i, Whole{});
    if (i < n) body(i, Part{n - i});
}

ALWAYS_INLINE Vec get(const float* from, Whole) { return load(from); }

ALWAYS_INLINE Vec get(const uint16_t* from, Whole) {
    HalfVec bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    // GCC 12 converts vectors in quarters.
#if MUOMNI_WIDTH == 16
    const BitVec wide = (BitVec)_mm512_cvtepu16_epi32((__m256i)bits);
#elif MUOMNI_WIDTH == 8
    const BitVec wide = (BitVec)_mm256_cvtepu16_epi32((__m128i)bits);
#else
    const BitVec wide = __builtin_convertvector(bits, BitVec);
#endif
    return (Vec)(wide << 16);
}

template <typename T>
ALWAYS_INLINE Vec get(const T* from, Part part) {
    T some[W] = {};
    for (int64_t i = 0; i < part.n; ++i) some[i] = from[i];
    return get(some, Whole{});
}

ALWAYS_INLINE void put(float* into, Vec value, Whole) { store(into, value); }

// To nearest even; a NaN must not carry into infinity.
ALWAYS_INLINE void put(uint16_t* into, Vec value, Whole) {
    const BitVec bits = (BitVec)value, is_nan = (BitVec)(value != value);
    const BitVec rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const BitVec kept = (rounded & ~is_nan) | (0x7fc0u & is_nan);
#if MUOMNI_WIDTH == 16
    const HalfVec upper = (HalfVec)_mm512_cvtepi32_epi16((__m512i)kept);
#else
    const HalfVec upper = __builtin_convertvector(kept, HalfVec);
#endif
    __builtin_memcpy(into, &upper, sizeof upper);
}

template <typename T>
ALWAYS_INLINE void put(T* into, Vec value, Part part) {
    T some[W];
    put(some, value, Whole{});
    for (int64_t i = 0; i < part.n; ++i) into[i] = some[i];
}

ALWAYS_INLINE float sum_of(Vec x) {
    Four parts[W / 4];
    __builtin_memcpy(parts, &x, sizeof x);
    for (int n = W / 8; n >= 1; n /= 2)
        for (int i = 0; i < n; ++i) parts[i] += parts[i + n];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// e^x = 2^n e^r, n the nearest integer to x / ln 2: e^r as 1 + r + r^2 q(r), q a minimax fit of degree 4; relative error
// below 4e-9 before rounding. 2^n as two factors: the result may be infinite, subnormal or 0. A NaN stays one.
ALWAYS_INLINE Vec exponential(Vec x) {
    constexpr float LARGEST = 104.0f, ROUND = 12582912.0f;  // e^104 is infinite, e^-104 is 0; 1.5 * 2^23
    x = x > LARGEST ? Vec{} + LARGEST : x;
    x = x < -LARGEST ? Vec{} - LARGEST : x;
    const Vec shifted = x * 1.44269504f + ROUND, n = shifted - ROUND;
    // ln 2 in two parts, the first exact times any n.
    const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Vec q = r * 0.00138146023f + 0.00836871564f;
    q = q * r + 0.041668389f;
    q = q * r + 0.166665211f;
    q = q * r + 0.49999994f;
    const IntVec power = (IntVec)shifted - 0x4b400000, half = power >> 1;
    return ((q * r) * r + r + 1.0f) * (Vec)((half + 127) << 23) * (Vec)((power - half + 127) << 23);
}

template <typename X, typename S>
KERNEL void norm(const Norm& op, int64_t first, int64_t last) {
    const int64_t width = op.width;
    const float* weight = op.weight;
    for (int64_t row = first; row < last; ++row) {
        const X* x = static_cast<const X*>(op.x) + row * op.x_stride;
        const S* s = reinterpret_cast<const S*>(x);  // of one type where there is no residual
        Vec squares = {};
        if (op.residual == nullptr) {
            over(width, [&](int64_t i, auto n) {
                const Vec value = get(s + i, n);
                squares += value * value;
            });
        } else {
            const S* residual = static_cast<const S*>(op.residual) + row * op.residual_stride;
            S* into = static_cast<S*>(op.s) + row * width;
            over(width, [&](int64_t i, auto n) {
                put(into + i, get(residual + i, n) + get(x + i, n), n);
                const Vec value = get(into + i, n);
                squares += value * value;
            });
            s = into;
        }
        const float rstd = 1.0f / __builtin_sqrtf(sum_of(squares) / static_cast<float>(width) + op.eps);
        X* y = static_cast<X*>(op.y) + row * width;
        over(width, [&](int64_t i, auto n) { put(y + i, get(s + i, n) * rstd * get(weight + i, n), n); });
        op.rstd[row] = rstd;
    }
}

template <typename Y, typename S>
KERNEL void norm_gradient(const NormGradient& op, int64_t first, int64_t last, float* dw) {
    const int64_t width = op.width;
    const float* weight = op.weight;
    for (int64_t row = first; row < last; ++row) {
        const Y* dy = static_cast<const Y*>(op.dy) + row * op.dy_stride;
        const S* s = static_cast<const S*>(op.s) + row * op.s_stride;
        const float rstd = op.rstd[row];
        Vec products = {};
        over(width, [&](int64_t i, auto n) {
            products += get(dy + i, n) * get(weight + i, n) * (get(s + i, n) * rstd);
        });
        const float mean = sum_of(products) / static_cast<float>(width);
        S* ds = static_cast<S*>(op.ds) + row * width;
        const S* d_s = op.d_s == nullptr ? nullptr : static_cast<const S*>(op.d_s) + row * op.d_s_stride;
        over(width, [&](int64_t i, auto n) {
            const Vec gradient = get(dy + i, n), h = get(s + i, n) * rstd;
            Vec value = rstd * (gradient * get(weight + i, n) - h * mean);
            if (d_s != nullptr) value += get(d_s + i, n);
            put(ds + i, value, n);
            put(dw + i, get(dw + i, n) + gradient * h, n);
        });
    }
}

template <typename T>
KERNEL void rope(const Rope& op, int64_t first, int64_t last) {
    const int64_t half = op.half, passing = 2 * half;
    for (int64_t token = first; token < last; ++token) {
        const float *cos = op.cos + token * half, *sin = op.sin + token * half;
        for (int64_t head = 0; head < op.x.count; ++head) {
            const T* x = static_cast<const T*>(op.x.data) + token * op.x.token_stride + head * op.x.head_stride;
            T* y = static_cast<T*>(op.y) + (token * op.x.count + head) * op.head_dim;
            over(half, [&](int64_t i, auto n) {
                const Vec a = get(x + i, n), b = get(x + half + i, n);
                const Vec c = get(cos + i, n), s = get(sin + i, n) * op.direction;
                put(y + i, a * c - b * s, n);
                put(y + half + i, b * c + a * s, n);
            });
            for (int64_t i = passing; i < op.head_dim; ++i) y[i] = x[i];
        }
    }
}

// 1 / sqrt(mean(x^2) + eps).
template <typename T>
ALWAYS_INLINE float inverse_norm(const T* x, int64_t width, float eps) {
    Vec squares = {};
    over(width, [&](int64_t i, auto n) {
        const Vec value = get(x + i, n);
        squares += value * value;
    });
    return 1.0f / __builtin_sqrtf(sum_of(squares) / static_cast<float>(width) + eps);
}

template <typename T>
ALWAYS_INLINE T* head_of(const Heads& heads, int64_t token, int64_t head) {
    return static_cast<T*>(heads.data) + token * heads.token_stride + head * heads.head_stride;
}

template <typename T>
ALWAYS_INLINE void copy_heads(const T* from, int64_t from_stride, T* into, int64_t into_stride, int64_t count, int64_t width) {
    for (int64_t head = 0; head < count; ++head)
        __builtin_memcpy(into + head * into_stride, from + head * from_stride, static_cast<size_t>(width) * sizeof(T));
}

// Of a token; null for no rotation.
struct Angles {
    const float *cos, *sin;
};

ALWAYS_INLINE Angles angles_of(const QkNormRope& op, int64_t token) {
    if (op.cos == nullptr) return {nullptr, nullptr};
    const int64_t at = token * (op.head_dim / 2);
    return {op.cos + at, op.sin + at};
}

// A pair of halves of a head's features.
struct Halves {
    Vec a, b;
};

template <typename T>
KERNEL void qk_norm_rope(const QkNormRope& op, int64_t first, int64_t last) {
    const int64_t d = op.head_dim, half = d / 2;
    for (int64_t token = first; token < last; ++token) {
        const T* x = static_cast<const T*>(op.qkv) + token * op.qkv_stride;
        const Angles angles = angles_of(op, token);
        for (const bool is_q : {true, false}) {
            const Heads& heads = is_q ? op.q : op.k;
            const float* weight = is_q ? op.q_weight : op.k_weight;
            for (int64_t head = 0; head < heads.count; ++head, x += d) {
                T* y = head_of<T>(heads, token, head);
                const float rstd = inverse_norm(x, d, op.eps);
                over(half, [&](int64_t i, auto n) {
                    Halves h = {get(x + i, n) * rstd * get(weight + i, n),
                                get(x + half + i, n) * rstd * get(weight + half + i, n)};
                    if (angles.cos != nullptr) {
                        const Vec c = get(angles.cos + i, n), s = get(angles.sin + i, n);
                        h = {h.a * c - h.b * s, h.b * c + h.a * s};
                    }
                    put(y + i, h.a, n);
                    put(y + half + i, h.b, n);
                });
            }
        }
        copy_heads(x, d, head_of<T>(op.v, token, 0), op.v.head_stride, op.v.count, d);
    }
}

template <typename T>
KERNEL void qk_norm_rope_gradient(const QkNormRope& op, int64_t first, int64_t last, float* dw) {
    const int64_t d = op.head_dim, half = d / 2, width = (op.q.count + op.k.count + op.v.count) * d;
    for (int64_t token = first; token < last; ++token) {
        const T* x = static_cast<const T*>(op.qkv) + token * op.qkv_stride;
        T* dx = static_cast<T*>(op.dqkv) + token * width;
        const Angles angles = angles_of(op, token);
        for (const bool is_q : {true, false}) {
            const Heads& heads = is_q ? op.q : op.k;
            const float* weight = is_q ? op.q_weight : op.k_weight;
            float* d_weight = is_q ? dw : dw + d;
            for (int64_t head = 0; head < heads.count; ++head, x += d, dx += d) {
                const T* dy = head_of<const T>(heads, token, head);
                const float rstd = inverse_norm(x, d, op.eps);
                // The gradient before the rotation: turned by the opposite angle.
                const auto gradient = [&](int64_t i, auto n) -> Halves {
                    const Vec a = get(dy + i, n), b = get(dy + half + i, n);
                    if (angles.cos == nullptr) return {a, b};
                    const Vec c = get(angles.cos + i, n), s = get(angles.sin + i, n);
                    return {a * c + b * s, b * c - a * s};
                };
                Vec products = {};
                over(half, [&](int64_t i, auto n) {
                    const Halves g = gradient(i, n);
                    products += g.a * get(weight + i, n) * (get(x + i, n) * rstd);
                    products += g.b * get(weight + half + i, n) * (get(x + half + i, n) * rstd);
                });
                const float mean = sum_of(products) / static_cast<float>(d);
                over(half, [&](int64_t i, auto n) {
                    const Halves g = gradient(i, n), h = {get(x + i, n) * rstd, get(x + half + i, n) * rstd};
                    put(dx + i, rstd * (g.a * get(weight + i, n) - h.a * mean), n);
                    put(dx + half + i, rstd * (g.b * get(weight + half + i, n) - h.b * mean), n);
                    put(d_weight + i, get(d_weight + i, n) + g.a * h.a, n);
                    put(d_weight + half + i, get(d_weight + half + i, n) + g.b * h.b, n);
                });
            }
        }
        copy_heads(head_of<const T>(op.v, token, 0), op.v.head_stride, dx, d, op.v.count, d);
    }
}

template <typename T>
KERNEL void swiglu(const SwiGLU& op, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const T *gate = static_cast<const T*>(op.gate_up) + row * op.stride, *up = gate + op.width;
        T* y = static_cast<T*>(op.out) + row * op.width;
        over(op.width, [&](int64_t i, auto n) {
            const Vec g = get(gate + i, n);
            put(y + i, g / (1.0f + exponential(-g)) * get(up + i, n), n);
        });
    }
}

template <typename T>
KERNEL void swiglu_gradient(const SwiGLU& op, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const T *gate = static_cast<const T*>(op.gate_up) + row * op.stride, *up = gate + op.width;
        const T* dy = static_cast<const T*>(op.dy) + row * op.dy_stride;
        T *d_gate = static_cast<T*>(op.out) + 2 * row * op.width, *d_up = d_gate + op.width;
        over(op.width, [&](int64_t i, auto n) {
            const Vec g = get(gate + i, n), gradient = get(dy + i, n);
            const Vec sigmoid = 1.0f / (1.0f + exponential(-g)), u = get(up + i, n);
            put(d_up + i, gradient * (g * sigmoid), n);
            put(d_gate + i, gradient * u * (sigmoid * (1.0f + g * (1.0f - sigmoid))), n);
        });
    }
}

RowLevel row_level() {
    using Half = uint16_t;
    return {{{norm<float, float>, norm<float, Half>}, {norm<Half, float>, norm<Half, Half>}},
            {{norm_gradient<float, float>, norm_gradient<float, Half>},
             {norm_gradient<Half, float>, norm_gradient<Half, Half>}},
            {rope<float>, rope<Half>},
            {qk_norm_rope<float>, qk_norm_rope<Half>},
            {qk_norm_rope_gradient<float>, qk_norm_rope_gradient<Half>},
            {swiglu<float>, swiglu<Half>},
            {swiglu_gradient<float>, swiglu_gradient<Half>}};
}
