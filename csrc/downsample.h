// Frames at 100 Hz -> rows at 12.5 Hz inside each clip: mean, max or stack, forward and backward.
#pragma once

#include <cstdint>

namespace muomni {

enum class Pool { mean, max, stack };

// A clip's last group may be short: mean divides by the frames there are, stack fills with zeros.
struct Groups {
    const int64_t* cu_frames;  // (n_clips + 1,)
    const int64_t* cu_rows;    // (n_clips + 1,): ceil(frames / factor) rows a clip
    int64_t n_clips, width, factor;
};

// frames: (cu_frames[n_clips], width); out: (cu_rows[n_clips], width), or factor * width columns for stack.
void downsample(const float* frames, const Groups& groups, Pool pool, float* out);

// d_frames is written everywhere. For max the gradient goes to the first frame that holds the maximum; the other
// two do not read frames.
void downsample_backward(const float* d_out, const float* frames, const Groups& groups, Pool pool, float* d_frames);

}  // namespace muomni
