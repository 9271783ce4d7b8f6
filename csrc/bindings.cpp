// muomni_kernels._C: checks every array and offset, releases the GIL, and runs the front end.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "downsample.h"
#include "log_mel.h"

namespace py = pybind11;
using namespace muomni;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

// Offsets must start at 0, never fall, and end at `total`.
void check_offsets(const Array<int64_t>& offsets, int64_t total, const std::string& name) {
    require(offsets.ndim() == 1 && offsets.size() >= 1, name + ": expected (n + 1,) int64.");
    const int64_t* at = offsets.data();
    require(at[0] == 0, name + ": expected to start at 0, got " + std::to_string(at[0]) + ".");
    for (py::ssize_t i = 1; i < offsets.size(); ++i)
        require(at[i] >= at[i - 1], name + ": falls at index " + std::to_string(i) + ".");
    require(at[offsets.size() - 1] == total,
            name + ": ends at " + std::to_string(at[offsets.size() - 1]) + ", expected " + std::to_string(total) + ".");
}

MelPlan make_plan(int n_fft, int hop_length, const Array<float>& window, const Array<float>& filters) {
    require(n_fft >= 4 && n_fft <= 65536 && n_fft % 2 == 0, "n_fft: expected an even number from 4 to 65536.");
    require(hop_length >= 1 && hop_length <= n_fft, "hop_length: expected 1 to n_fft.");
    require(window.ndim() == 1 && window.size() == n_fft, "window: expected (n_fft,) float32.");
    require(filters.ndim() == 2 && filters.shape(1) == n_fft / 2 + 1, "filters: expected (n_mels, n_fft / 2 + 1) float32.");
    return MelPlan(n_fft, hop_length, std::vector<float>(window.data(), window.data() + n_fft), filters.data(),
                   static_cast<int>(filters.shape(0)));
}

template <typename Sample>
void run_log_mel(const MelPlan& plan, const Array<Sample>& waveform, const Array<int64_t>& cu_samples,
                 const Array<int64_t>& cu_frames, const std::string& padding, const std::string& log, float floor,
                 int n_threads, Array<float>& out) {
    require(waveform.ndim() == 1, "waveform: expected (n_samples,).");
    require(out.ndim() == 2 && out.shape(1) == plan.n_mels, "out: expected (n_frames, n_mels) float32.");
    require(cu_samples.size() == cu_frames.size(), "cu_samples, cu_frames: expected the same length.");
    require(floor > 0.0f, "floor: expected a positive number.");
    check_offsets(cu_samples, waveform.size(), "cu_samples");
    check_offsets(cu_frames, out.shape(0), "cu_frames");
    const bool causal = padding == "causal";
    for (py::ssize_t i = 0; i + 1 < cu_samples.size(); ++i) {
        const int64_t samples = cu_samples.data()[i + 1] - cu_samples.data()[i];
        const int64_t frames = cu_frames.data()[i + 1] - cu_frames.data()[i];
        require(frames == (causal ? (samples + plan.hop_length - 1) / plan.hop_length : samples / plan.hop_length),
                "cu_frames: clip " + std::to_string(i) + " does not follow the length rule.");
        require(causal || frames == 0 || samples > plan.n_fft / 2,
                "waveform: clip " + std::to_string(i) + " is too short to reflect.");
    }
    const Ragged ragged{cu_samples.data(), cu_frames.data(), cu_samples.size() - 1};
    float* into = out.mutable_data();
    const Sample* from = waveform.data();
    py::gil_scoped_release release;
    log_mel<Sample>(plan, from, ragged, causal ? Padding::causal : Padding::reflect,
                    log == "whisper" ? Log::whisper : Log::natural, floor, n_threads, into);
}

Pool pool_of(const std::string& mode) {
    if (mode == "mean") return Pool::mean;
    if (mode == "max") return Pool::max;
    require(mode == "stack", "mode: expected mean, max or stack, got " + mode + ".");
    return Pool::stack;
}

// Checks the offsets and the length rule; the number of clips.
int64_t check_groups(const Array<int64_t>& cu_in, const Array<int64_t>& cu_out, int64_t rows_in, int64_t rows_out,
                     int64_t factor) {
    require(factor >= 1, "factor: expected at least 1.");
    require(cu_in.size() == cu_out.size(), "cu_in, cu_out: expected the same length.");
    check_offsets(cu_in, rows_in, "cu_in");
    check_offsets(cu_out, rows_out, "cu_out");
    for (py::ssize_t i = 0; i + 1 < cu_in.size(); ++i)
        require(cu_out.data()[i + 1] - cu_out.data()[i] == (cu_in.data()[i + 1] - cu_in.data()[i] + factor - 1) / factor,
                "cu_out: clip " + std::to_string(i) + " does not hold ceil(frames / factor) rows.");
    return cu_in.size() - 1;
}

void run_downsample(const Array<float>& in, const Array<int64_t>& cu_in, const Array<int64_t>& cu_out, int64_t factor,
                    const std::string& mode, Array<float>& out) {
    const Pool pool = pool_of(mode);
    require(in.ndim() == 2 && out.ndim() == 2, "in, out: expected two dimensions.");
    require(out.shape(1) == in.shape(1) * (pool == Pool::stack ? factor : 1), "out: wrong number of columns.");
    const int64_t clips = check_groups(cu_in, cu_out, in.shape(0), out.shape(0), factor);
    float* into = out.mutable_data();
    py::gil_scoped_release release;
    downsample(in.data(), cu_in.data(), cu_out.data(), clips, in.shape(1), factor, pool, into);
}

void run_downsample_backward(const Array<float>& d_out, const Array<float>& in, const Array<int64_t>& cu_in,
                             const Array<int64_t>& cu_out, int64_t factor, const std::string& mode, Array<float>& d_in) {
    const Pool pool = pool_of(mode);
    require(in.ndim() == 2 && d_out.ndim() == 2 && d_in.ndim() == 2, "in, d_out, d_in: expected two dimensions.");
    require(d_in.shape(0) == in.shape(0) && d_in.shape(1) == in.shape(1), "d_in: expected the shape of in.");
    require(d_out.shape(1) == in.shape(1) * (pool == Pool::stack ? factor : 1), "d_out: wrong number of columns.");
    const int64_t clips = check_groups(cu_in, cu_out, in.shape(0), d_out.shape(0), factor);
    float* into = d_in.mutable_data();
    py::gil_scoped_release release;
    downsample_backward(d_out.data(), in.data(), cu_in.data(), cu_out.data(), clips, in.shape(1), factor, pool, into);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "muomni's audio front end: log-mel and mel-frame downsampling.";
    py::class_<MelPlan>(module, "MelPlan", "Tables of one log-mel definition.")
        .def(py::init(&make_plan), py::arg("n_fft"), py::arg("hop_length"), py::arg("window"), py::arg("filters"));
    module.def("log_mel_float32", &run_log_mel<float>, "Ragged float32 waveforms into out (n_frames, n_mels).");
    module.def("log_mel_int16", &run_log_mel<int16_t>, "Ragged int16 waveforms into out (n_frames, n_mels).");
    module.def("downsample", &run_downsample, "Ragged frames into out.");
    module.def("downsample_backward", &run_downsample_backward, "Gradient of downsample into d_in.");
}
