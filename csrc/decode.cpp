// A stack of blocks over new positions of several sequences: the row-wise ops, the products, and attention over the
// cache, phase by phase.
#include "decode.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "simd.h"
#include "team.h"

namespace muomni {

namespace {

template <typename T>
void pack(const T* weight, int64_t n_out, int64_t n_in, std::vector<T>& into) {
    into.assign(static_cast<size_t>((n_out + PANEL - 1) / PANEL * PANEL * n_in), T{});
    for (int64_t o = 0; o < n_out; ++o)
        for (int64_t i = 0; i < n_in; ++i)
            into[static_cast<size_t>((o / PANEL * n_in + i) * PANEL + o % PANEL)] = weight[o * n_in + i];
}

// Numbers kept from call to call, of this thread alone: pages of fresh memory cost more than a step.
float* scratch(size_t size) {
    static thread_local std::vector<float> kept;
    if (kept.size() < size) kept.resize(size);
    return kept.data();
}

// A product's panels in runs, so that a part is worth handing out; a step's fewest parts are its threads.
constexpr int64_t PART = 1 << 15;

int64_t panels_of_part(const Product& product) {
    return std::max<int64_t>(1, PART / std::max<int64_t>(1, product.weight.n_in * PANEL * product.n_rows));
}

void each_panel(Team& team, const SimdLevel& level, const Product& product) {
    const int64_t n_panels = product.weight.count(), run = panels_of_part(product);
    const auto work = level.decode.product[product.weight.bytes != nullptr];
    team.each((n_panels + run - 1) / run, [&](int64_t part) {
        for (int64_t panel = part * run; panel < std::min(n_panels, (part + 1) * run); ++panel) work(product, panel);
    });
}

void check(const DecodeStack& stack, const DecodeStep& step) {
    const int64_t n_positions = stack.axes.empty() ? 0 : static_cast<int64_t>(stack.cos.size() / stack.axes.size());
    for (int64_t i = 0; i < step.n_sequences; ++i) {
        if (step.rows[i] < 0 || step.rows[i] >= step.batch)
            throw std::invalid_argument("rows: expected numbers from 0 to below " + std::to_string(step.batch) + ".");
        for (int64_t j = 0; j < i; ++j)
            if (step.rows[i] == step.rows[j]) throw std::invalid_argument("rows: expected each row once.");
        if (step.lengths[i] < 0 || step.lengths[i] + step.n_new > step.max_len)
            throw std::invalid_argument("lengths: expected at most " + std::to_string(step.max_len - step.n_new) + ".");
    }
    if (step.positions == nullptr) return;
    for (int64_t i = 0; i < step.n_sequences * step.n_new * step.n_axes; ++i)
        if (step.positions[i] < 0 || step.positions[i] >= n_positions)
            throw std::out_of_range("positions: expected numbers below " + std::to_string(n_positions) + ".");
}

// One step's buffers, and what its phases share.
class Walk {
public:
    Walk(const SimdLevel& level, const DecodeStack& stack, const DecodeStep& step)
        : level_(level), stack_(stack), step_(step), n_rows_(step.n_sequences * step.n_new),
          d_model_(static_cast<int64_t>(stack.norm.size())), d_q_(stack.n_heads * stack.head_dim),
          d_kv_(stack.n_kv_heads * stack.head_dim) {
        int64_t d_ff = 0;
        for (const DecodeLayer& layer : stack.layers) d_ff = std::max(d_ff, layer.down->panels().n_in);
        const int64_t half = stack.head_dim / 2;
        n_seen_ = step.n_new + *std::max_element(step.lengths, step.lengths + step.n_sequences);
        const int64_t sizes[] = {d_model_, d_model_, d_model_, std::max(d_q_ + 2 * d_kv_, 2 * d_ff), std::max(d_q_, d_ff),
                                 half, half, 1, stack.n_kv_heads * n_seen_};
        int64_t total = 0;
        for (const int64_t size : sizes) total += size * n_rows_;
        float* at = scratch(static_cast<size_t>(total));
        float** const buffers[] = {&residual_, &branch_, &normed_, &wide_, &narrow_, &cos_, &sin_, &rstd_, &scores_};
        for (size_t i = 0; i < std::size(sizes); ++i) {
            *buffers[i] = at;
            at += sizes[i] * n_rows_;
        }
    }

    void run(Team& team) {
        team_ = &team;
        turn();
        const float* branch = nullptr;
        mix();
        for (size_t i = 0; i < stack_.layers.size(); ++i) {
            const DecodeLayer& layer = stack_.layers[i];
            norm(layer.attention_norm, branch, normed_);
            product(*layer.qkv, normed_, wide_);
            attention(layer, static_cast<int64_t>(i));
            product(*layer.out, narrow_, branch_);
            norm(layer.ff_norm, branch_, normed_);
            product(*layer.gate_up, normed_, wide_);
            swiglu(layer.down->panels().n_in);
            product(*layer.down, narrow_, branch_);
            branch = branch_;
        }
        norm(stack_.norm, branch, step_.y);
    }

private:
    // The angles of the new positions.
    void turn() {
        if (step_.positions == nullptr) return;
        const int64_t half = stack_.head_dim / 2;
        for (int64_t row = 0; row < n_rows_; ++row)
            for (int64_t i = 0; i < half; ++i) {
                const int64_t axis = step_.n_axes == 1 ? 0 : stack_.axes[static_cast<size_t>(i)];
                const auto at = static_cast<size_t>(step_.positions[row * step_.n_axes + axis] * half + i);
                cos_[row * half + i] = stack_.cos[at];
                sin_[row * half + i] = stack_.sin[at];
            }
    }

    // What enters: the new inputs, each with what the positions before it count.
    void mix() {
        if (stack_.mix.empty()) {
            std::copy_n(step_.x, n_rows_ * d_model_, residual_);
            return;
        }
        const auto n_taps = static_cast<int64_t>(stack_.mix.size()) / d_model_;
        for (int64_t row = 0; row < n_rows_; ++row) {
            const int64_t sequence = row / step_.n_new, position = step_.lengths[sequence] + row % step_.n_new;
            float* at = step_.inputs + (step_.rows[sequence] * step_.max_len + position) * d_model_;
            std::copy_n(step_.x + row * d_model_, d_model_, at);
            float* y = residual_ + row * d_model_;
            std::fill_n(y, d_model_, 0.0f);
            for (int64_t j = 0; j < std::min(n_taps, position + 1); ++j)
                for (int64_t i = 0; i < d_model_; ++i)
                    y[i] += at[i - j * d_model_] * stack_.mix[static_cast<size_t>(j * d_model_ + i)];
        }
    }

    // Adds the branch to the residual stream and normalises it into y.
    void norm(const std::vector<float>& weight, const float* branch, float* y) {
        // As x the branch, as residual the stream; without a branch the stream alone.
        const Norm op{branch == nullptr ? residual_ : branch, branch == nullptr ? nullptr : residual_, weight.data(), y,
                      branch == nullptr ? nullptr : residual_, rstd_, d_model_, d_model_, d_model_, stack_.eps};
        level_.rows.norm[0][0](op, 0, n_rows_);
    }

    void product(const PackedMatrix& matrix, const float* x, float* y) {
        const Panels weight = matrix.panels();
        each_panel(*team_, level_, {weight, x, y, n_rows_, weight.n_in, weight.n_out});
    }

    // wide_: q, k and v -> narrow_: what each head gathers. New keys and values go into the cache.
    void attention(const DecodeLayer& layer, int64_t number) {
        const int64_t d = stack_.head_dim, half = d / 2, n_new = step_.n_new, groups = stack_.n_heads / stack_.n_kv_heads;
        // One place more than positions, for the last late key.
        const int64_t of_row = (step_.max_len + 1) * d_kv_, of_layer = number * step_.batch * of_row;
        for (int64_t i = 0; i < step_.n_sequences; ++i) {
            const int64_t first = of_layer + step_.rows[i] * of_row + step_.lengths[i] * d_kv_;
            const bool turned = step_.positions != nullptr && !layer.late_keys;
            // There is no position before the first one.
            if (layer.late_keys && step_.lengths[i] == 0) std::fill_n(step_.k + first, d_kv_, 0.0f);
            const float *cos = turned ? cos_ + i * n_new * half : nullptr, *sin = turned ? sin_ + i * n_new * half : nullptr;
            // q is written over itself: a head is read before it is written.
            const QkNormRope op{wide_ + i * n_new * (d_q_ + 2 * d_kv_), d_q_ + 2 * d_kv_,
                                {wide_ + i * n_new * (d_q_ + 2 * d_kv_), d_q_ + 2 * d_kv_, d, stack_.n_heads},
                                {step_.k + first + (layer.late_keys ? d_kv_ : 0), d_kv_, d, stack_.n_kv_heads},
                                {step_.v + first, d_kv_, d, stack_.n_kv_heads},
                                layer.q_norm.data(), layer.k_norm.data(), cos, sin, nullptr, d, stack_.eps};
            level_.rows.qk_norm_rope[0](op, 0, n_new);
        }
        team_->each(n_rows_ * stack_.n_kv_heads, [&](int64_t part) {
            const int64_t row = part / stack_.n_kv_heads, head = part % stack_.n_kv_heads;
            const int64_t sequence = row / n_new, n_keys = step_.lengths[sequence] + row % n_new + 1;
            const int64_t keys = of_layer + step_.rows[sequence] * of_row + head * d;
            level_.decode.attend({wide_ + row * (d_q_ + 2 * d_kv_) + head * groups * d, step_.k + keys, step_.v + keys,
                                  narrow_ + row * d_q_ + head * groups * d, groups, d, n_keys, d_kv_,
                                  1.0f / std::sqrt(static_cast<float>(d))},
                                 scores_ + part * n_seen_);
        });
    }

    void swiglu(int64_t d_ff) {
        const SwiGLU op{wide_, 2 * d_ff, d_ff, nullptr, 0, narrow_};
        level_.rows.swiglu[0](op, 0, n_rows_);
    }

    const SimdLevel& level_;
    const DecodeStack& stack_;
    const DecodeStep& step_;
    Team* team_ = nullptr;
    const int64_t n_rows_, d_model_, d_q_, d_kv_;
    int64_t n_seen_;
    float *residual_, *branch_, *normed_, *wide_, *narrow_, *cos_, *sin_, *rstd_, *scores_;
};

}  // namespace

PackedMatrix::PackedMatrix(const float* weight, int64_t n_out, int64_t n_in) : n_in_(n_in), n_out_(n_out) {
    pack(weight, n_out, n_in, numbers_);
}

PackedMatrix::PackedMatrix(const int8_t* weight, const float* scales, int64_t n_out, int64_t n_in)
    : n_in_(n_in), n_out_(n_out) {
    pack(weight, n_out, n_in, bytes_);
    scales_.assign(static_cast<size_t>(panels().count() * PANEL), 0.0f);
    std::copy_n(scales, n_out, scales_.begin());
}

Panels PackedMatrix::panels() const {
    const bool is_float = bytes_.empty();
    return {is_float ? numbers_.data() : nullptr, is_float ? nullptr : bytes_.data(), scales_.data(), n_in_, n_out_};
}

void run(const SimdLevel& level, const DecodeStack& stack, const DecodeStep& step, int64_t n_threads) {
    check(stack, step);
    if (step.n_sequences * step.n_new == 0) return;
    Walk walk(level, stack, step);
    with_team(n_threads, [&](Team& team) { walk.run(team); });
}

void run(const SimdLevel& level, const Product& product, int64_t n_threads) {
    with_team(n_threads, [&](Team& team) { each_panel(team, level, product); });
}

}  // namespace muomni
