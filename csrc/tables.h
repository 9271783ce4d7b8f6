// The tables of one log-mel definition, and the plain view of them that the vector code reads.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

namespace muomni {

// Frames are transformed LANES at a time, one frame a lane: element n of lane l lies at [n * LANES + l], so every
// inner loop is contiguous and needs no shuffle.
constexpr int LANES = 16;

struct alignas(64) Lane {
    float value[LANES];
};

// One pass of the mixed-radix FFT (Stockham, decimation in frequency).
struct FftPass {
    int radix;
    int m;                 // butterflies: remaining length / radix
    int stride;            // product of the radices before
    const float* twiddle;  // (m, radix, 2): exp(-2 pi i j r / (radix * m))
    const float* root;     // (radix, 2): exp(-2 pi i q / radix)
};

// Pointers only: code compiled for one instruction set may not instantiate anything the linker could share.
struct TableView {
    int n_fft, n_mels, n_passes;
    const FftPass* passes;    // complex FFT of n_fft / 2; none for 400
    const float* window;      // (n_fft,); but for 400 halved: the split of the real spectrum needs no factor then
    const float* twiddle;     // (n_fft / 4 + 1, 2): exp(-2 pi i k / n_fft); for 400 (20, 10, 2): exp(-2 pi i b c / 400), c from 1
    const float* logarithm;   // (2, 32): 1 / c and ln c, c the middles of 32 intervals from 1 to 2
    // Bands go by eights, all of as many bins as the widest: the last eight may hold bands of no weight.
    const int* band_begin;    // (n_eights, 8) first bin of each band
    const int* eight_bins;    // (n_eights,) bins of its bands
    const float* weights;     // of every eight (bins, 8)
};

class MelTables {
public:
    // window: (n_fft,) already centred in n_fft; filters: (n_mels, n_fft / 2 + 1), dense, zeros included.
    MelTables(int n_fft, const float* window, const float* filters, int n_mels);
    MelTables(const MelTables&) = delete;
    MelTables& operator=(const MelTables&) = delete;

    TableView view;

    // Lanes of scratch one block of frames needs.
    int64_t scratch_lanes() const { return LANES + view.n_fft / 2 + 1 + 2 * static_cast<int64_t>(view.n_fft); }

private:
    const float* keep(std::vector<float> values);
    void plan_fft(int n);
    const float* log_table();
    const float* plan_bands(const float* filters, int n_mels, int bins);

    std::deque<std::vector<float>> floats_;
    std::vector<FftPass> passes_;
    std::vector<int> band_begin_, eight_bins_;
};

}  // namespace muomni
