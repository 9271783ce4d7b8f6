// The row-wise ops shared among threads. What a row gives never depends on the number of threads: rows are independent,
// and a weight's gradient is added up in blocks of rows that only the number of rows decides, block after block.
#include "rows.h"

#include <algorithm>
#include <vector>

#include "pool.h"

namespace muomni {

namespace {

// Below so many elements a thread's share is not worth waking it.
constexpr int64_t SHARE = 1 << 15;

// Rows of a block, and the most blocks: their sums take memory.
constexpr int64_t BLOCK = 64, MAX_BLOCKS = 256;

int64_t parts_of(int64_t n_rows, int64_t width, int64_t n_threads) {
    return std::max<int64_t>(1, std::min({n_threads, n_rows, n_rows * width / SHARE}));
}

template <typename Op>
void for_rows(void (*work)(const Op&, int64_t, int64_t), const Op& op, int64_t n_rows, int64_t width, int64_t n_threads) {
    const int64_t n_parts = parts_of(n_rows, width, n_threads);
    share(n_parts, n_threads, [&](int64_t part) { work(op, n_rows * part / n_parts, n_rows * (part + 1) / n_parts); });
}

template <typename Op>
void for_blocks(void (*work)(const Op&, int64_t, int64_t, float*), const Op& op, int64_t n_rows, int64_t width,
                int64_t n_threads, int64_t n_sums, float* dw) {
    const int64_t block = std::max(BLOCK, (n_rows + MAX_BLOCKS - 1) / MAX_BLOCKS), n_blocks = (n_rows + block - 1) / block;
    const int64_t n_parts = parts_of(n_blocks, block * width, n_threads);
    std::vector<float> sums(static_cast<size_t>(n_blocks * n_sums));
    share(n_parts, n_threads, [&](int64_t part) {
        for (int64_t i = n_blocks * part / n_parts; i < n_blocks * (part + 1) / n_parts; ++i)
            work(op, i * block, std::min((i + 1) * block, n_rows), sums.data() + i * n_sums);
    });
    std::fill_n(dw, n_sums, 0.0f);
    for (int64_t i = 0; i < n_blocks; ++i)
        for (int64_t c = 0; c < n_sums; ++c) dw[c] += sums[static_cast<size_t>(i * n_sums + c)];
}

int64_t width_of(const QkNormRope& op) { return (op.q.count + 2 * op.k.count) * op.head_dim; }

}  // namespace

void run(const RowLevel& level, const RowTask& task, const Norm& op, bool half_s) {
    for_rows(level.norm[task.half][half_s], op, task.n_rows, op.width, task.n_threads);
}

void run_gradient(const RowLevel& level, const RowTask& task, const NormGradient& op, bool half_s, float* dw) {
    for_blocks(level.norm_gradient[task.half][half_s], op, task.n_rows, op.width, task.n_threads, op.width, dw);
}

void run(const RowLevel& level, const RowTask& task, const Rope& op) {
    for_rows(level.rope[task.half], op, task.n_rows, op.x.count * op.head_dim, task.n_threads);
}

void run(const RowLevel& level, const RowTask& task, const QkNormRope& op) {
    for_rows(level.qk_norm_rope[task.half], op, task.n_rows, width_of(op), task.n_threads);
}

void run_gradient(const RowLevel& level, const RowTask& task, const QkNormRope& op, float* dw) {
    for_blocks(level.qk_norm_rope_gradient[task.half], op, task.n_rows, width_of(op), task.n_threads, 2 * op.head_dim, dw);
}

void run(const RowLevel& level, const RowTask& task, const SwiGLU& op) {
    for_rows(level.swiglu[task.half], op, task.n_rows, 2 * op.width, task.n_threads);
}

void run_gradient(const RowLevel& level, const RowTask& task, const SwiGLU& op) {
    for_rows(level.swiglu_gradient[task.half], op, task.n_rows, 2 * op.width, task.n_threads);
}

}  // namespace muomni
