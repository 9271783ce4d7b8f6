// Fuzz cases of the row-wise ops, float and bfloat16, every level and any stride between rows, against the formulas in
// double precision; buffers are exact to the byte.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "fuzz_downsample.h"
#include "rows.h"
#include "simd.h"

namespace fuzz {

using Numbers = std::vector<double>;

// Rows of `width` numbers, `stride` apart, in one block that ends with the last number.
template <typename Element>
struct Table {
    using Stored = typename Element::Stored;
    int64_t rows, width, stride;
    Exact<Stored> block;

    Table(int64_t rows, int64_t width, int64_t stride)
        : rows(rows), width(width), stride(stride), block(rows ? (rows - 1) * stride + width : 0) {}

    static Table random(Random& random, int64_t rows, int64_t width, double size) {
        Table made(rows, width, width + (random.one_in(2) ? 0 : random.below(9)));
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t i = 0; i < width; ++i)
                made.block.data[row * made.stride + i] = Element::narrow(static_cast<float>(random.real(-size, size)));
        return made;
    }

    static Table result(int64_t rows, int64_t width) { return Table(rows, width, width); }

    double at(int64_t row, int64_t i) const { return Format<Element>::value(block.data[row * stride + i]); }

    Numbers row(int64_t index) const {
        Numbers numbers;
        for (int64_t i = 0; i < width; ++i) numbers.push_back(at(index, i));
        return numbers;
    }

    // Rounded to the element's type, after float arithmetic on numbers up to `size`.
    void require(int64_t row, int64_t i, double expected, double size, const char* what) const {
        const double rounding = std::ldexp(std::abs(expected), -Format<Element>::MANTISSA);
        // Not a comparison that a NaN would pass.
        if (!(std::abs(at(row, i) - expected) <= rounding + 64.0 * EPSILON * size + 1e-37)) fail(what);
    }
};

inline double mean_product(const Numbers& a, const Numbers& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum / static_cast<double>(a.size());
}

inline Numbers scaled(const Numbers& a, const Numbers& b) {
    Numbers product;
    for (size_t i = 0; i < a.size(); ++i) product.push_back(a[i] * b[i]);
    return product;
}

inline Numbers scaled(const Numbers& a, double b) { return scaled(a, Numbers(a.size(), b)); }

// Features i and i + half turned by the angle of cos and sin, the rest as they are.
inline Numbers turned(Numbers x, const Numbers& cos, const Numbers& sin, double direction) {
    const size_t half = cos.size();
    for (size_t i = 0; i < half; ++i) {
        const double a = x[i], b = x[half + i], s = direction * sin[i];
        x[i] = a * cos[i] - b * s;
        x[half + i] = b * cos[i] + a * s;
    }
    return x;
}

// rstd (g - h mean(g h)) of one row with g = dy weight, and dy h added to dw.
inline Numbers norm_gradient(const Numbers& x, const Numbers& dy, const Numbers& weight, double eps, Numbers& dw) {
    const double rstd = 1.0 / std::sqrt(mean_product(x, x) + eps);
    const Numbers h = scaled(x, rstd), g = scaled(dy, weight);
    const double mean = mean_product(g, h);
    Numbers dx;
    for (size_t i = 0; i < x.size(); ++i) {
        dx.push_back(rstd * (g[i] - h[i] * mean));
        dw[i] += dy[i] * h[i];
    }
    return dx;
}

constexpr double EPS = 1e-3;  // numbers up to 2 then give at most 64 times the gradient

// A weight's gradient over `terms` rows of numbers up to `size`.
inline void require_sum(const Exact<float>& found, const Numbers& expected, int64_t terms, double size, const char* what) {
    for (size_t i = 0; i < expected.size(); ++i)
        if (!(std::abs(found.data[i] - expected[i]) <= 64.0 * EPSILON * size * static_cast<double>(terms))) fail(what);
}

template <typename Element, typename Stream>
void check_norm(Random& random, const muomni::RowLevel& level, const muomni::RowTask& task, int64_t width) {
    constexpr bool half_s = !std::is_same_v<Stream, Float32>;
    const bool adds = random.one_in(2) || !std::is_same_v<Element, Stream>;
    const int64_t rows = task.n_rows;
    const auto x = Table<Element>::random(random, rows, width, 2.0), dy = Table<Element>::random(random, rows, width, 1.0);
    const auto residual = Table<Stream>::random(random, rows, width, 2.0), d_s = Table<Stream>::random(random, rows, width, 1.0);
    const auto weight = Table<Float32>::random(random, 1, width, 1.5);
    const auto y = Table<Element>::result(rows, width);
    const auto s = Table<Stream>::result(rows, width), ds = Table<Stream>::result(rows, width);
    const Exact<float> rstd(rows), dw(width);
    const muomni::Norm op{x.block.data, adds ? residual.block.data : nullptr, weight.block.data, y.block.data,
                          adds ? s.block.data : nullptr, rstd.data, width, x.stride, residual.stride, static_cast<float>(EPS)};
    muomni::run(level, task, op, half_s);
    const void* kept = adds ? static_cast<const void*>(s.block.data) : x.block.data;
    const muomni::NormGradient gradient{dy.block.data, adds ? d_s.block.data : nullptr, kept, weight.block.data,
                                        rstd.data, ds.block.data, width, dy.stride, d_s.stride, adds ? width : x.stride};
    muomni::run_gradient(level, task, gradient, half_s, dw.data);
    Numbers sums(static_cast<size_t>(width));
    for (int64_t row = 0; row < rows; ++row) {
        if (adds)
            for (int64_t i = 0; i < width; ++i)
                s.require(row, i, residual.at(row, i) + x.at(row, i), 0.05, "norm: a sum is off");
        const Numbers from = adds ? s.row(row) : x.row(row), w = weight.row(0);
        const double scale = 1.0 / std::sqrt(mean_product(from, from) + EPS);
        Numbers d = norm_gradient(from, dy.row(row), w, EPS, sums);
        for (int64_t i = 0; i < width; ++i) {
            const size_t at = static_cast<size_t>(i);
            y.require(row, i, from[at] * scale * w[at], 0.2, "norm is off");
            ds.require(row, i, d[at] + (adds ? d_s.at(row, i) : 0.0), 60.0 + 20.0 * std::abs(from[at]), "norm: a gradient is off");
        }
    }
    require_sum(dw, sums, rows, std::sqrt(static_cast<double>(width)), "norm: a weight's gradient is off");
}

template <typename Element>
void check_swiglu(Random& random, const muomni::RowLevel& level, const muomni::RowTask& task, int64_t width) {
    const int64_t rows = task.n_rows;
    const double size = random.pick({1.0, 20.0, 80.0});
    const auto gate_up = Table<Element>::random(random, rows, 2 * width, size);
    const auto dy = Table<Element>::random(random, rows, width, 1.0);
    const auto y = Table<Element>::result(rows, width), d = Table<Element>::result(rows, 2 * width);
    muomni::SwiGLU op{gate_up.block.data, gate_up.stride, width, dy.block.data, dy.stride, y.block.data};
    muomni::run(level, task, op);
    op.out = d.block.data;
    muomni::run_gradient(level, task, op);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < width; ++i) {
            const double g = gate_up.at(row, i), u = gate_up.at(row, width + i), from = dy.at(row, i);
            const double sigmoid = 1.0 / (1.0 + std::exp(-g)), silu = g * sigmoid;
            // 1 - sigmoid is rounded where the sigmoid is near 1.
            const double slope = sigmoid * (1.0 + g * (1.0 - sigmoid)), off = sigmoid * (1.0 + std::abs(g));
            y.require(row, i, silu * u, std::abs(silu * u), "swiglu is off");
            d.require(row, i, from * u * slope, std::abs(from * u) * off, "swiglu: the gate's gradient is off");
            d.require(row, width + i, from * silu, std::abs(from * silu), "swiglu: a gradient is off");
        }
}

// Heads of q, k and v in one table: (tokens, heads * head_dim).
template <typename Element>
muomni::Heads heads_of(const Table<Element>& table, int64_t head_dim) {
    return {table.block.data, table.stride, head_dim, table.width / head_dim};
}

template <typename Element>
Numbers head(const Table<Element>& table, int64_t token, int64_t index, int64_t head_dim) {
    const Numbers row = table.row(token);
    return Numbers(row.begin() + index * head_dim, row.begin() + (index + 1) * head_dim);
}

template <typename Element>
void require_head(const Table<Element>& table, int64_t token, int64_t index, const Numbers& expected, double size, const char* what) {
    const int64_t d = static_cast<int64_t>(expected.size());
    for (int64_t i = 0; i < d; ++i) table.require(token, index * d + i, expected[static_cast<size_t>(i)], size, what);
}

template <typename Element>
void check_heads(Random& random, const muomni::RowLevel& level, const muomni::RowTask& task, int64_t half) {
    const int64_t tokens = task.n_rows, d = 2 * half, passing = random.below(4), n_kv = random.between(1, 2);
    const int64_t n_q = n_kv * random.between(1, 3), n = n_q + 2 * n_kv;
    const bool turns = !random.one_in(4);
    const auto cos = Table<Float32>::result(tokens, half), sin = Table<Float32>::result(tokens, half);
    for (int64_t i = 0; i < tokens * half; ++i) {
        const double angle = random.real(-PI, PI);
        cos.block.data[i] = static_cast<float>(std::cos(angle));
        sin.block.data[i] = static_cast<float>(std::sin(angle));
    }
    const auto x = Table<Element>::random(random, tokens, n_q * (d + passing), 2.0);
    const auto y = Table<Element>::result(tokens, n_q * (d + passing));
    const float direction = random.pick({1.0f, -1.0f});
    const muomni::Rope rope{heads_of(x, d + passing), cos.block.data, sin.block.data, y.block.data, d + passing, half, direction};
    muomni::run(level, task, rope);

    const auto qkv = Table<Element>::random(random, tokens, n * d, 2.0);
    const auto weights = Table<Float32>::random(random, 2, d, 1.5);
    const auto q = Table<Element>::result(tokens, n_q * d), k = Table<Element>::result(tokens, n_kv * d), v = Table<Element>::result(tokens, n_kv * d);
    const auto dq = Table<Element>::random(random, tokens, n_q * d, 1.0), dk = Table<Element>::random(random, tokens, n_kv * d, 1.0);
    const auto dv = Table<Element>::random(random, tokens, n_kv * d, 1.0), dqkv = Table<Element>::result(tokens, n * d);
    const Exact<float> dw(2 * d);
    const float *w = weights.block.data, *c = turns ? cos.block.data : nullptr, *s = turns ? sin.block.data : nullptr;
    muomni::QkNormRope op{qkv.block.data, qkv.stride, heads_of(q, d), heads_of(k, d), heads_of(v, d), w,
                          w + weights.stride, c, s, nullptr, d, static_cast<float>(EPS)};
    muomni::run(level, task, op);
    op.q = heads_of(dq, d), op.k = heads_of(dk, d), op.v = heads_of(dv, d), op.dqkv = dqkv.block.data;
    muomni::run_gradient(level, task, op, dw.data);

    Numbers sums[2] = {Numbers(static_cast<size_t>(d)), Numbers(static_cast<size_t>(d))};
    for (int64_t token = 0; token < tokens; ++token) {
        const Numbers cs = cos.row(token), sn = sin.row(token);
        for (int64_t h = 0; h < n_q; ++h)
            require_head(y, token, h, turned(head(x, token, h, d + passing), cs, sn, direction), 0.1, "rope is off");
        for (int64_t h = 0; h < n; ++h) {
            const Numbers from = head(qkv, token, h, d);
            const int which = h < n_q ? 0 : h < n_q + n_kv ? 1 : 2;
            const auto& result = which == 0 ? q : which == 1 ? k : v;
            const auto& given = which == 0 ? dq : which == 1 ? dk : dv;
            const int64_t at = which == 0 ? h : which == 1 ? h - n_q : h - n_q - n_kv;
            Numbers dy = head(given, token, at, d);
            if (which == 2) {
                require_head(result, token, at, from, 0.0, "qk_norm_rope: v is off");
                require_head(dqkv, token, h, dy, 0.0, "qk_norm_rope: v's gradient is off");
                continue;
            }
            const Numbers weight = weights.row(which);
            Numbers n_x = scaled(scaled(from, 1.0 / std::sqrt(mean_product(from, from) + EPS)), weight);
            if (turns) n_x = turned(n_x, cs, sn, 1.0), dy = turned(dy, cs, sn, -1.0);
            require_head(result, token, at, n_x, 0.3, "qk_norm_rope is off");
            require_head(dqkv, token, h, norm_gradient(from, dy, weight, EPS, sums[which]), 100.0, "qk_norm_rope: a gradient is off");
        }
    }
    const Exact<float> both[2] = {Exact<float>(d), Exact<float>(d)};
    for (int which = 0; which < 2; ++which) {
        std::memcpy(both[which].data, dw.data + which * d, static_cast<size_t>(d) * sizeof(float));
        require_sum(both[which], sums[which], tokens * (which ? n_kv : n_q), std::sqrt(2.0 * static_cast<double>(d)), "qk_norm_rope: a weight's gradient is off");
    }
}

template <typename Element>
void check_rows_of(Random& random, const muomni::RowLevel& level, muomni::RowTask task, int64_t width) {
    task.half = !std::is_same_v<Element, Float32>;
    if (random.one_in(2))
        check_norm<Element, Float32>(random, level, task, width);
    else
        check_norm<Element, Bfloat16>(random, level, task, width);
    check_swiglu<Element>(random, level, task, width);
    check_heads<Element>(random, level, task, 1 + width / 4);
}

inline void check_rows(Random& random) {
    const std::vector<muomni::SimdLevel>& levels = muomni::simd_levels();
    const muomni::SimdLevel& level = levels[static_cast<size_t>(random.below(static_cast<int64_t>(levels.size())))];
    // Now and then rows enough for blocks and for several threads.
    const int64_t rows = random.one_in(40) ? random.between(65, 300) : random.between(0, 5);
    const int64_t width = random.one_in(20) ? random.between(100, 300) : random.between(1, 40), threads = random.between(1, 3);
    const bool half = random.one_in(2);
    describe("rows: %s, %lld x %lld, %s, %lld threads", level.name, static_cast<long long>(rows),
             static_cast<long long>(width), half ? "bfloat16" : "float32", static_cast<long long>(threads));
    if (half)
        check_rows_of<Bfloat16>(random, level.rows, {true, rows, threads}, width);
    else
        check_rows_of<Float32>(random, level.rows, {false, rows, threads}, width);
}

}  // namespace fuzz
