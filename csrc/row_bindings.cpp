// The row-wise ops for Python: tensors come as addresses and strides in elements, because a view of NumPy for each would
// take longer than a short row. Nothing here can check an address; cpp_rows.py alone calls these, with tensors whose
// shapes the public ops have checked.
#include "row_bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "rows.h"
#include "simd.h"

namespace py = pybind11;

namespace muomni {

namespace {

using Address = uintptr_t;  // 0 for none

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void require_sizes(int64_t n_rows, int64_t width, int64_t n_threads) {
    if (n_rows < 0 || width < 0 || n_threads < 1)
        throw std::invalid_argument("n_rows, width, n_threads: expected at least 0, 0 and 1.");
}

// (address, stride of tokens, stride of heads, heads)
using HeadsGiven = std::tuple<Address, int64_t, int64_t, int64_t>;

Heads heads_of(const HeadsGiven& given) {
    const auto& [data, token_stride, head_stride, count] = given;
    if (count < 1) throw std::invalid_argument("heads: expected at least one.");
    return {at<void>(data), token_stride, head_stride, count};
}

void norm(Address x, int64_t x_stride, Address residual, int64_t residual_stride, Address weight, Address y, Address s,
          Address rstd, int64_t n_rows, int64_t width, float eps, bool half, bool half_s, int64_t n_threads,
          const std::string& simd) {
    require_sizes(n_rows, width, n_threads);
    if (n_rows > 0 && residual == 0 && half != half_s) throw std::invalid_argument("half_s: expected x's type without a residual.");
    const Norm op{at<void>(x), at<void>(residual), at<float>(weight), at<void>(y), at<void>(s), at<float>(rstd),
                  width, x_stride, residual_stride, eps};
    run(level_named(simd).rows, {half, n_rows, n_threads}, op, half_s);
}

void norm_gradient(Address dy, int64_t dy_stride, Address d_s, int64_t d_s_stride, Address s, int64_t s_stride,
                   Address weight, Address rstd, Address ds, Address dw, int64_t n_rows, int64_t width, bool half,
                   bool half_s, int64_t n_threads, const std::string& simd) {
    require_sizes(n_rows, width, n_threads);
    const NormGradient op{at<void>(dy), at<void>(d_s), at<void>(s), at<float>(weight), at<float>(rstd), at<void>(ds),
                          width, dy_stride, d_s_stride, s_stride};
    run_gradient(level_named(simd).rows, {half, n_rows, n_threads}, op, half_s, at<float>(dw));
}

void rope(const HeadsGiven& x, Address cos, Address sin, Address y, int64_t n_tokens, int64_t head_dim, int64_t half_width,
          bool inverse, bool half, int64_t n_threads, const std::string& simd) {
    require_sizes(n_tokens, head_dim, n_threads);
    if (half_width < 0 || 2 * half_width > head_dim)
        throw std::invalid_argument("half_width: expected at most head_dim / 2.");
    const Rope op{heads_of(x), at<float>(cos), at<float>(sin), at<void>(y), head_dim, half_width, inverse ? -1.0f : 1.0f};
    run(level_named(simd).rows, {half, n_tokens, n_threads}, op);
}

// dqkv and dw: 0 for the forward.
void qk_norm_rope(Address qkv, int64_t qkv_stride, const HeadsGiven& q, const HeadsGiven& k, const HeadsGiven& v,
                  Address q_weight, Address k_weight, Address cos, Address sin, Address dqkv, Address dw,
                  int64_t n_tokens, int64_t head_dim, float eps, bool half, int64_t n_threads, const std::string& simd) {
    require_sizes(n_tokens, head_dim, n_threads);
    if (head_dim % 2) throw std::invalid_argument("head_dim: expected an even number.");
    const QkNormRope op{at<void>(qkv), qkv_stride, heads_of(q), heads_of(k), heads_of(v), at<float>(q_weight),
                        at<float>(k_weight), at<float>(cos), at<float>(sin), at<void>(dqkv), head_dim, eps};
    const RowTask task{half, n_tokens, n_threads};
    if (dw == 0)
        run(level_named(simd).rows, task, op);
    else
        run_gradient(level_named(simd).rows, task, op, at<float>(dw));
}

// dy: 0 for the forward.
void swiglu(Address gate_up, int64_t stride, Address dy, int64_t dy_stride, Address out, int64_t n_rows, int64_t width,
            bool half, int64_t n_threads, const std::string& simd) {
    require_sizes(n_rows, width, n_threads);
    const SwiGLU op{at<void>(gate_up), stride, width, at<void>(dy), dy_stride, at<void>(out)};
    const RowTask task{half, n_rows, n_threads};
    if (dy == 0)
        run(level_named(simd).rows, task, op);
    else
        run_gradient(level_named(simd).rows, task, op);
}

}  // namespace

void define_rows(py::module_& module) {
    const auto define = [&](const char* name, auto run, const char* doc) {
        module.def(name, run, py::call_guard<py::gil_scoped_release>(), doc);
    };
    define("norm", &norm, "RMSNorm of rows, with or without a residual.");
    define("norm_gradient", &norm_gradient, "Its gradients into ds and dw.");
    define("rope", &rope, "Rotation of heads by each token's angles, or back.");
    define("qk_norm_rope", &qk_norm_rope, "Norm and rotation of packed heads, or their gradients into dqkv and dw.");
    define("swiglu", &swiglu, "silu(gate) * up of rows, or its gradient into out.");
}

}  // namespace muomni
