// Frames at 100 Hz -> frames at 12.5 Hz inside each clip: mean, max or stack, forward and backward.
#pragma once

#include <cstdint>

namespace muomni {

enum class Pool { mean, max, stack };

// in: (cu_in[n_clips], width); out: (cu_out[n_clips], width), or factor * width columns for stack.
// A clip's last group may be short: mean divides by the frames there are, stack fills with zeros.
void downsample(const float* in, const int64_t* cu_in, const int64_t* cu_out, int64_t n_clips, int64_t width,
                int64_t factor, Pool pool, float* out);

// d_in is written everywhere. For max the gradient goes to the first frame that holds the maximum.
void downsample_backward(const float* d_out, const float* in, const int64_t* cu_in, const int64_t* cu_out,
                         int64_t n_clips, int64_t width, int64_t factor, Pool pool, float* d_in);

}  // namespace muomni
