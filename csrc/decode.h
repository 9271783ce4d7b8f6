// Decoding on a CPU: a stack of transformer blocks over a few new positions, with weights in the order they are read.
#pragma once

#include <cstdint>
#include <vector>

namespace muomni {

// Outputs of a panel.
constexpr int64_t PANEL = 64;

// A matrix (n_out, n_in) as panels of 64 outputs: number 0 of each of the 64, then number 1; the last panel is filled
// up with zeros. Numbers are float, or int8_t times their output's scale.
struct Panels {
    const float* numbers;   // or null
    const int8_t* bytes;
    const float* scales;    // of bytes
    int64_t n_in, n_out;

    int64_t count() const { return (n_out + PANEL - 1) / PANEL; }
};

class PackedMatrix {
public:
    // weight: (n_out, n_in) contiguous.
    PackedMatrix(const float* weight, int64_t n_out, int64_t n_in);
    PackedMatrix(const int8_t* weight, const float* scales, int64_t n_out, int64_t n_in);

    Panels panels() const;

private:
    std::vector<float> numbers_, scales_;
    std::vector<int8_t> bytes_;
    int64_t n_in_, n_out_;
};

// y[r] = weight x[r], rows x_stride and y_stride numbers apart.
struct Product {
    Panels weight;
    const float* x;
    float* y;
    int64_t n_rows, x_stride, y_stride;
};

// Queries that share a key head, over the first n_keys keys: out[g] = softmax(scale q[g] k^T) v.
struct Attend {
    const float *q, *k, *v;  // q: (groups, head_dim); of k and v a head's features, key_stride numbers from key to key
    float* out;              // (groups, head_dim)
    int64_t groups, head_dim, n_keys, key_stride;
    float scale;
};

// A row's numbers never depend on how many rows there are.
struct DecodeLevel {
    void (*product[2])(const Product&, int64_t panel);  // one panel; of float, of int8_t
    void (*attend)(const Attend&, float* scratch);      // scratch: (n_keys,)
};

struct DecodeLayer {
    std::vector<float> attention_norm, q_norm, k_norm, ff_norm;
    const PackedMatrix *qkv, *out, *gate_up, *down;
    bool late_keys;  // the key beside a value is that of the position before, and neither keys nor queries are rotated
};

// Weights of a stack; the matrices belong to somebody who lives longer.
struct DecodeStack {
    std::vector<DecodeLayer> layers;
    std::vector<float> norm;
    // (taps, d_model): what an input's own position, the one before, and so on count; none for the input alone.
    std::vector<float> mix;
    int64_t n_heads, n_kv_heads, head_dim;
    float eps;
    // Rotary angles of positions 0..n_positions - 1, (n_positions, head_dim / 2); none for no rotation.
    std::vector<float> cos, sin;
    // Which of a position's numbers turns each angle.
    std::vector<int64_t> axes;
};

// New positions of some sequences, behind what their rows of the cache hold.
struct DecodeStep {
    const float* x;            // (n_sequences, n_new, d_model)
    float* y;                  // the same; normalised states
    const int64_t* positions;  // (n_sequences, n_new, n_axes), or null
    int64_t n_axes;
    const int64_t* rows;       // (n_sequences,) of the cache
    const int64_t* lengths;    // (n_sequences,) positions that are there
    float *k, *v;              // (n_layers, batch, max_len + 1, n_kv_heads, head_dim)
    float* inputs;             // (batch, max_len, d_model), where they are mixed
    int64_t n_sequences, n_new, batch, max_len;
};

struct SimdLevel;

// Throws std::out_of_range for a position beyond the table, and std::invalid_argument for rows outside the cache, one
// row twice, or more positions than fit; nothing is written then. The result does not depend on n_threads.
void run(const SimdLevel& level, const DecodeStack& stack, const DecodeStep& step, int64_t n_threads);

// All panels of a product.
void run(const SimdLevel& level, const Product& product, int64_t n_threads);

}  // namespace muomni
