// Decoding for Python: matrices and stacks keep what they are made of; steps take tensors as addresses, as row_bindings
// does. packed.py alone calls these, with tensors whose shapes it has checked.
#include "decode_bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "decode.h"
#include "simd.h"

namespace py = pybind11;

namespace muomni {

namespace {

using Address = uintptr_t;  // 0 for none
using Matrix = std::shared_ptr<PackedMatrix>;
using Numbers = std::vector<float>;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

Matrix pack(Address weight, Address scales, int64_t n_out, int64_t n_in) {
    if (n_out < 1 || n_in < 1) throw std::invalid_argument("weight: expected at least one row and column.");
    if (scales == 0) return std::make_shared<PackedMatrix>(at<float>(weight), n_out, n_in);
    return std::make_shared<PackedMatrix>(at<int8_t>(weight), at<float>(scales), n_out, n_in);
}

void multiply(const Matrix& matrix, Address x, Address y, int64_t n_rows, int64_t x_stride, int64_t n_threads,
              const std::string& simd) {
    const Panels weight = matrix->panels();
    run(level_named(simd), Product{weight, at<float>(x), at<float>(y), n_rows, x_stride, weight.n_out}, n_threads);
}

// A stack and the matrices it points to.
struct Stack {
    DecodeStack stack;
    std::vector<Matrix> kept;
};

// (attention_norm, q_norm, k_norm, ff_norm, qkv, out, gate_up, down, late_keys)
using LayerGiven = std::tuple<Numbers, Numbers, Numbers, Numbers, Matrix, Matrix, Matrix, Matrix, bool>;

std::unique_ptr<Stack> make_stack(std::vector<LayerGiven> layers, Numbers norm, Numbers mix, int64_t n_heads,
                                  int64_t n_kv_heads, int64_t head_dim, float eps, Numbers cos, Numbers sin,
                                  std::vector<int64_t> axes) {
    auto made = std::make_unique<Stack>();
    const auto d_model = static_cast<int64_t>(norm.size());
    const auto require = [](bool condition) {
        if (!condition) throw std::invalid_argument("layers: expected weights of one stack.");
    };
    require(n_kv_heads >= 1 && n_heads % n_kv_heads == 0 && head_dim >= 2 && head_dim % 2 == 0 && d_model >= 1);
    require(mix.size() % norm.size() == 0);
    require(cos.size() == sin.size() && (axes.empty() || static_cast<int64_t>(axes.size()) == head_dim / 2));
    require(axes.empty() ? cos.empty() : cos.size() % axes.size() == 0);
    for (const int64_t axis : axes) require(axis >= 0 && axis < 3);
    for (auto& [attention_norm, q_norm, k_norm, ff_norm, qkv, out, gate_up, down, late_keys] : layers) {
        const auto fits = [](const Matrix& matrix, int64_t n_out, int64_t n_in) {
            return matrix && matrix->panels().n_out == n_out && matrix->panels().n_in == n_in;
        };
        const auto of = [](const Numbers& numbers, int64_t n) { return static_cast<int64_t>(numbers.size()) == n; };
        require(of(attention_norm, d_model) && of(ff_norm, d_model) && of(q_norm, head_dim) && of(k_norm, head_dim));
        require(down && fits(qkv, (n_heads + 2 * n_kv_heads) * head_dim, d_model) &&
                fits(out, d_model, n_heads * head_dim) && fits(down, d_model, down->panels().n_in) &&
                fits(gate_up, 2 * down->panels().n_in, d_model));
        made->kept.insert(made->kept.end(), {qkv, out, gate_up, down});
        made->stack.layers.push_back({std::move(attention_norm), std::move(q_norm), std::move(k_norm), std::move(ff_norm),
                                      qkv.get(), out.get(), gate_up.get(), down.get(), late_keys});
    }
    made->stack.norm = std::move(norm);
    made->stack.mix = std::move(mix);
    made->stack.n_heads = n_heads;
    made->stack.n_kv_heads = n_kv_heads;
    made->stack.head_dim = head_dim;
    made->stack.eps = eps;
    made->stack.cos = std::move(cos);
    made->stack.sin = std::move(sin);
    made->stack.axes = std::move(axes);
    return made;
}

void step(const Stack& stack, Address x, Address y, Address positions, int64_t n_axes, const std::vector<int64_t>& rows,
          const std::vector<int64_t>& lengths, Address k, Address v, Address inputs, int64_t n_new, int64_t batch,
          int64_t max_len, int64_t n_threads, const std::string& simd) {
    if (rows.size() != lengths.size() || n_new < 0 || n_threads < 1 || (n_axes != 1 && n_axes != 3))
        throw std::invalid_argument("step: expected as many lengths as rows, and 1 or 3 axes.");
    if ((positions == 0) != stack.stack.axes.empty())
        throw std::invalid_argument("positions: expected where there are rotary angles, and only there.");
    if (inputs == 0 && !stack.stack.mix.empty())
        throw std::invalid_argument("inputs: expected where they are mixed.");
    run(level_named(simd), stack.stack,
        DecodeStep{at<float>(x), at<float>(y), at<int64_t>(positions), n_axes, rows.data(), lengths.data(), at<float>(k),
                   at<float>(v), at<float>(inputs), static_cast<int64_t>(rows.size()), n_new, batch, max_len},
        n_threads);
}

}  // namespace

void define_decode(py::module_& module) {
    py::class_<PackedMatrix, Matrix>(module, "PackedMatrix", "A matrix in the order products read it.")
        .def(py::init(&pack), py::call_guard<py::gil_scoped_release>())
        .def("multiply", &multiply, py::call_guard<py::gil_scoped_release>(), "Rows x into rows y.");
    py::class_<Stack>(module, "DecodeStack", "Blocks over new positions of some sequences.")
        .def(py::init(&make_stack))
        .def("step", &step, py::call_guard<py::gil_scoped_release>(), "New positions behind those of a cache.");
}

}  // namespace muomni
