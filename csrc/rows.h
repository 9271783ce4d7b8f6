// Row-wise ops on contiguous features: RMSNorm, rotary embedding, SwiGLU, and their gradients. Numbers are float, or the
// bits of bfloat16, and computed in float; strides are in elements.
#pragma once

#include <cstdint>

namespace muomni {

// y = s rstd weight with s = x + residual, rounded to its type first, and rstd = 1 / sqrt(mean(s^2) + eps).
struct Norm {
    const void *x, *residual;  // residual: null for s = x
    const float* weight;
    void *y, *s;               // y as x; s as residual, null without
    float* rstd;
    int64_t width, x_stride, residual_stride;
    float eps;
};

// With h = s rstd and g = dy weight: ds = rstd (g - h mean(g h)) + d_s, dw = sum over rows of dy h.
struct NormGradient {
    const void *dy, *d_s, *s;  // d_s: what reaches s from elsewhere, or null
    const float *weight, *rstd;
    void* ds;                  // as s
    int64_t width, dy_stride, d_s_stride, s_stride;
};

// A token's heads, each of contiguous features.
struct Heads {
    void* data;
    int64_t token_stride, head_stride, count;
};

// Features i and i + half of a head turn by the token's angle i; those from 2 half on pass.
struct Rope {
    Heads x;
    const float *cos, *sin;  // (tokens, half)
    void* y;                 // contiguous
    int64_t head_dim, half;
    float direction;         // 1, or -1 for the opposite angle
};

// Heads of q, k and v side by side in qkv; q and k are normalised head by head and turned.
struct QkNormRope {
    const void* qkv;
    int64_t qkv_stride;
    Heads q, k, v;           // results; in the gradient what reaches them
    const float *q_weight, *k_weight, *cos, *sin;  // cos, sin: null for no rotation
    void* dqkv;              // of the gradient; contiguous
    int64_t head_dim;
    float eps;
};

// y = silu(gate) up of rows (gate, up).
struct SwiGLU {
    const void* gate_up;
    int64_t stride, width;  // of y
    const void* dy;         // of the gradient
    int64_t dy_stride;
    void* out;              // y, or d gate_up; contiguous
};

// Work on rows (tokens) from first to before last, by type: [0] float, [1] bfloat16.
struct RowLevel {
    void (*norm[2][2])(const Norm&, int64_t first, int64_t last);  // by types of x and s
    // Adds to dw (width,); by types of dy and s.
    void (*norm_gradient[2][2])(const NormGradient&, int64_t first, int64_t last, float* dw);
    void (*rope[2])(const Rope&, int64_t first, int64_t last);
    void (*qk_norm_rope[2])(const QkNormRope&, int64_t first, int64_t last);
    void (*qk_norm_rope_gradient[2])(const QkNormRope&, int64_t first, int64_t last, float* dw);  // dw (2, head_dim)
    void (*swiglu[2])(const SwiGLU&, int64_t first, int64_t last);
    void (*swiglu_gradient[2])(const SwiGLU&, int64_t first, int64_t last);
};

struct RowTask {
    bool half;  // numbers are bfloat16
    int64_t n_rows, n_threads;
};

// All rows, by at most n_threads threads where they are many; the result does not depend on how many.
// half_s: the type of s. dw is written, (width,) or (2, head_dim).
void run(const RowLevel& level, const RowTask& task, const Norm& op, bool half_s);
void run_gradient(const RowLevel& level, const RowTask& task, const NormGradient& op, bool half_s, float* dw);
void run(const RowLevel& level, const RowTask& task, const Rope& op);
void run(const RowLevel& level, const RowTask& task, const QkNormRope& op);
void run_gradient(const RowLevel& level, const RowTask& task, const QkNormRope& op, float* dw);
void run(const RowLevel& level, const RowTask& task, const SwiGLU& op);
void run_gradient(const RowLevel& level, const RowTask& task, const SwiGLU& op);

}  // namespace muomni
