// Fuzz cases of decoding: products against double precision, and a stack's steps against the same positions step by step,
// sequence by sequence and on one thread, bit for bit; buffers are exact to the byte.
#pragma once

#include <memory>
#include <vector>

#include "decode.h"
#include "fuzz_rows.h"

namespace fuzz {

inline std::vector<float> numbers(Random& random, int64_t n, double size) {
    std::vector<float> made;
    for (int64_t i = 0; i < n; ++i) made.push_back(static_cast<float>(random.real(-size, size)));
    return made;
}

inline void check_product(Random& random, const muomni::SimdLevel& level, int64_t n_threads) {
    const int64_t n_out = random.between(1, 150), n_in = random.between(1, 70), n_rows = random.between(0, 14);
    const bool bytes = random.one_in(2);
    const std::vector<float> weight = numbers(random, n_out * n_in, 2.0), scales = numbers(random, n_out, 1.0);
    std::vector<int8_t> small;
    for (int64_t i = 0; i < n_out * n_in; ++i) small.push_back(static_cast<int8_t>(random.between(-127, 127)));
    const auto matrix = bytes ? muomni::PackedMatrix(small.data(), scales.data(), n_out, n_in)
                              : muomni::PackedMatrix(weight.data(), n_out, n_in);
    const auto x = Table<Float32>::random(random, n_rows, n_in, 1.0);
    const auto y = Table<Float32>::result(n_rows, n_out);
    muomni::run(level, muomni::Product{matrix.panels(), x.block.data, y.block.data, n_rows, x.stride, n_out}, n_threads);
    for (int64_t row = 0; row < n_rows; ++row)
        for (int64_t o = 0; o < n_out; ++o) {
            double sum = 0.0, size = 0.0;
            for (int64_t i = 0; i < n_in; ++i) {
                const auto at = static_cast<size_t>(o * n_in + i);
                const double w = bytes ? static_cast<double>(small[at]) * scales[static_cast<size_t>(o)] : weight[at];
                sum += w * x.at(row, i);
                size += std::abs(w * x.at(row, i));
            }
            y.require(row, o, sum, size, "a product is off");
        }
}

// A stack of random weights and sizes.
struct RandomStack {
    std::vector<std::unique_ptr<muomni::PackedMatrix>> matrices;
    muomni::DecodeStack stack;
    int64_t d_model;

    explicit RandomStack(Random& random) : d_model(random.between(1, 40)) {
        stack.n_kv_heads = random.between(1, 2);
        stack.n_heads = stack.n_kv_heads * random.between(1, 3);
        stack.head_dim = 2 * random.between(1, 17);
        stack.eps = 1e-6f;
        const int64_t d_ff = random.between(1, 50), d = stack.head_dim, n_layers = random.between(1, 2);
        const auto matrix = [&](int64_t n_out, int64_t n_in) {
            const std::vector<float> weight = numbers(random, n_out * n_in, 0.5);
            matrices.push_back(std::make_unique<muomni::PackedMatrix>(weight.data(), n_out, n_in));
            return matrices.back().get();
        };
        for (int64_t i = 0; i < n_layers; ++i)
            stack.layers.push_back({numbers(random, d_model, 1.5), numbers(random, d, 1.5), numbers(random, d, 1.5),
                                    numbers(random, d_model, 1.5),
                                    matrix((stack.n_heads + 2 * stack.n_kv_heads) * d, d_model),
                                    matrix(d_model, stack.n_heads * d), matrix(2 * d_ff, d_model), matrix(d_model, d_ff),
                                    random.one_in(2)});
        if (random.one_in(2)) stack.mix = numbers(random, random.between(1, 4) * d_model, 1.0);
        stack.norm = numbers(random, d_model, 1.5);
        stack.cos = numbers(random, POSITIONS * d / 2, 1.0);
        stack.sin = numbers(random, POSITIONS * d / 2, 1.0);
        for (int64_t i = 0; i < d / 2; ++i) stack.axes.push_back(random.below(3));
    }

    static constexpr int64_t POSITIONS = 12;
};

inline void check_stack(Random& random, const muomni::SimdLevel& level, int64_t n_threads) {
    const RandomStack made(random);
    const int64_t batch = random.between(1, 4), n_new = random.between(1, 5), max_len = n_new + random.between(0, 6);
    const int64_t d_model = made.d_model, of_row = (max_len + 1) * made.stack.n_kv_heads * made.stack.head_dim;
    const int64_t size = static_cast<int64_t>(made.stack.layers.size()) * batch * of_row, n_inputs = batch * max_len * d_model;
    std::vector<int64_t> rows, lengths, positions;
    for (int64_t row = batch; row-- > 0;) {
        if (random.one_in(3)) continue;
        rows.push_back(row);
        lengths.push_back(random.between(0, max_len - n_new));
    }
    const auto n = static_cast<int64_t>(rows.size());
    for (int64_t i = 0; i < 3 * n * n_new; ++i) positions.push_back(random.below(RandomStack::POSITIONS));
    const std::vector<float> x = numbers(random, n * n_new * d_model, 1.0), before = numbers(random, size, 1.0),
                             inputs_before = numbers(random, n_inputs, 1.0);
    const Exact<float> k(size), v(size), y(n * n_new * d_model), k_alone(size), v_alone(size), y_alone(n * n_new * d_model);
    for (const Exact<float>* cache : {&k, &v, &k_alone, &v_alone})
        for (int64_t i = 0; i < size; ++i) cache->data[i] = before[static_cast<size_t>(i)];
    const Exact<float> inputs(n_inputs), inputs_alone(n_inputs);
    for (const Exact<float>* kept : {&inputs, &inputs_alone})
        for (int64_t i = 0; i < n_inputs; ++i) kept->data[i] = inputs_before[static_cast<size_t>(i)];
    muomni::run(level, made.stack,
                muomni::DecodeStep{x.data(), y.data, positions.data(), 3, rows.data(), lengths.data(), k.data, v.data,
                                   inputs.data, n, n_new, batch, max_len},
                n_threads);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t t = 0; t < n_new; ++t) {
            const int64_t at = i * n_new + t, length = lengths[static_cast<size_t>(i)] + t;
            muomni::run(level, made.stack,
                        muomni::DecodeStep{x.data() + at * d_model, y_alone.data + at * d_model, positions.data() + 3 * at,
                                           3, &rows[static_cast<size_t>(i)], &length, k_alone.data, v_alone.data,
                                           inputs_alone.data, 1, 1, batch, max_len},
                        1);
        }
    const auto same = [](const Exact<float>& a, const Exact<float>& b) {
        return std::memcmp(a.data, b.data, static_cast<size_t>(a.size) * sizeof(float)) == 0;
    };
    if (!same(y, y_alone)) fail("decode: a batch gives other states than its positions alone");
    if (!same(k, k_alone) || !same(v, v_alone) || !same(inputs, inputs_alone))
        fail("decode: a batch leaves another cache than its positions alone");
}

inline void check_decode(Random& random) {
    const std::vector<muomni::SimdLevel>& levels = muomni::simd_levels();
    const muomni::SimdLevel& level = levels[static_cast<size_t>(random.below(static_cast<int64_t>(levels.size())))];
    const int64_t n_threads = random.between(1, 3);
    describe("decode: %s, %lld threads", level.name, static_cast<long long>(n_threads));
    check_product(random, level, n_threads);
    check_stack(random, level, n_threads);
}

}  // namespace fuzz
