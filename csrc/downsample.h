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

// frames: (cu_frames[n_clips], width); out: (cu_rows[n_clips], width), or factor * width columns for stack; both of
// Element (element.h). Sums are of float.
template <typename Element>
void downsample(const typename Element::Stored* frames, const Groups& groups, Pool pool, typename Element::Stored* out);

// d_frames is written everywhere. For max the gradient goes to the first frame that holds the maximum; the other
// two do not read frames.
template <typename Element>
void downsample_backward(const typename Element::Stored* d_out, const typename Element::Stored* frames,
                         const Groups& groups, Pool pool, typename Element::Stored* d_frames);

}  // namespace muomni
