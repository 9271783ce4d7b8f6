// Complex FFT over LANES independent signals, part of one instruction set's namespace: Stockham autosort,
// butterflies of 2, 3, 4, 5 and 8, and a direct sum for other primes. Real and imaginary parts lie apart.

struct Complex {
    Vec re, im;
};

ALWAYS_INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
ALWAYS_INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
ALWAYS_INLINE Complex times(Complex a, float re, float im) {
    return {a.re * re - a.im * im, a.re * im + a.im * re};
}
ALWAYS_INLINE Complex minus_i(Complex a) { return {a.im, -a.re}; }

template <int P>
struct Butterfly;

template <>
struct Butterfly<2> {
    static ALWAYS_INLINE void run(Complex* x) {
        const Complex a = x[0], b = x[1];
        x[0] = a + b;
        x[1] = a - b;
    }
};

template <>
struct Butterfly<3> {
    static ALWAYS_INLINE void run(Complex* x) {
        constexpr float s = 0.866025403784438647f;  // sin(2 pi / 3)
        const Complex sum = x[1] + x[2], difference = x[1] - x[2];
        const Complex real = {x[0].re - 0.5f * sum.re, x[0].im - 0.5f * sum.im};
        const Complex turned = minus_i({s * difference.re, s * difference.im});
        x[0] = x[0] + sum;
        x[1] = real + turned;
        x[2] = real - turned;
    }
};

template <>
struct Butterfly<4> {
    static ALWAYS_INLINE void run(Complex* x) {
        const Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = minus_i(x[1] - x[3]);
        x[0] = a + c;
        x[1] = b + d;
        x[2] = a - c;
        x[3] = b - d;
    }
};

template <>
struct Butterfly<5> {
    static ALWAYS_INLINE void run(Complex* x) {
        constexpr float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f;  // cos(2 pi / 5), cos(4 pi / 5)
        constexpr float s1 = 0.951056516295153572f, ratio = 0.618033988749894848f;  // sin(2 pi / 5), sin(4 pi / 5) / s1
        const Complex a = x[1] + x[4], b = x[2] + x[3], c = x[1] - x[4], d = x[2] - x[3];
        const Complex near = {x[0].re + c1 * a.re + c2 * b.re, x[0].im + c1 * a.im + c2 * b.im};
        const Complex far = {x[0].re + c2 * a.re + c1 * b.re, x[0].im + c2 * a.im + c1 * b.im};
        // The factor s1 that both share rides on the last additions.
        const Complex p = {c.re + ratio * d.re, c.im + ratio * d.im}, q = {ratio * c.re - d.re, ratio * c.im - d.im};
        x[0] = x[0] + a + b;
        x[1] = {near.re + s1 * p.im, near.im - s1 * p.re};
        x[2] = {far.re + s1 * q.im, far.im - s1 * q.re};
        x[3] = {far.re - s1 * q.im, far.im + s1 * q.re};
        x[4] = {near.re - s1 * p.im, near.im + s1 * p.re};
    }
};

template <>
struct Butterfly<8> {
    static ALWAYS_INLINE void run(Complex* x) {
        constexpr float s = 0.707106781186547524f;  // sqrt(1 / 2)
        Complex even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
        Butterfly<4>::run(even);
        Butterfly<4>::run(odd);
        odd[1] = {s * (odd[1].re + odd[1].im), s * (odd[1].im - odd[1].re)};
        odd[2] = minus_i(odd[2]);
        odd[3] = {s * (odd[3].im - odd[3].re), -s * (odd[3].re + odd[3].im)};
        for (int r = 0; r < 4; ++r) {
            x[r] = even[r] + odd[r];
            x[r + 4] = even[r] - odd[r];
        }
    }
};

struct Buffer {
    float *re, *im;
};

ALWAYS_INLINE Complex load_complex(Buffer from, int64_t at) { return {load(from.re + at), load(from.im + at)}; }
ALWAYS_INLINE void store_complex(Buffer into, int64_t at, Complex value) {
    store(into.re + at, value.re);
    store(into.im + at, value.im);
}

// out[k + s (p j + r)] = twiddle[j][r] * sum_q in[k + s (j + m q)] * root[q r]
template <int P>
void fft_pass(const FftPass& pass, Buffer in, Buffer out) {
    const int64_t m = pass.m, s = pass.stride;
    const float* twiddle = pass.twiddle;
    for (int64_t j = 0; j < m; ++j, twiddle += 2 * P) {
        for (int64_t at = 0; at < s * LANES; at += W) {
            Complex x[P];
            for (int q = 0; q < P; ++q) x[q] = load_complex(in, s * (j + m * q) * LANES + at);
            Butterfly<P>::run(x);
            if (j != 0)
                for (int r = 1; r < P; ++r) x[r] = times(x[r], twiddle[2 * r], twiddle[2 * r + 1]);
            for (int r = 0; r < P; ++r) store_complex(out, s * (P * j + r) * LANES + at, x[r]);
        }
    }
}

void fft_pass_any(const FftPass& pass, Buffer in, Buffer out) {
    const int64_t p = pass.radix, m = pass.m, s = pass.stride;
    const float* root = pass.root;
    for (int64_t j = 0; j < m; ++j) {
        for (int64_t r = 0; r < p; ++r) {
            const float* twiddle = pass.twiddle + 2 * (j * p + r);
            for (int64_t at = 0; at < s * LANES; at += W) {
                Complex sum = load_complex(in, s * j * LANES + at);
                for (int64_t q = 1, turn = r; q < p; ++q, turn = (turn + r) % p)
                    sum = sum + times(load_complex(in, s * (j + m * q) * LANES + at), root[2 * turn], root[2 * turn + 1]);
                store_complex(out, s * (p * j + r) * LANES + at, times(sum, twiddle[0], twiddle[1]));
            }
        }
    }
}

// The transform of a; a and b are both overwritten. Returns the one that holds the result.
Buffer fft(const TableView& tables, Buffer a, Buffer b) {
    for (int i = 0; i < tables.n_passes; ++i) {
        const FftPass& pass = tables.passes[i];
        switch (pass.radix) {
            case 2: fft_pass<2>(pass, a, b); break;
            case 3: fft_pass<3>(pass, a, b); break;
            case 4: fft_pass<4>(pass, a, b); break;
            case 5: fft_pass<5>(pass, a, b); break;
            case 8: fft_pass<8>(pass, a, b); break;
            default: fft_pass_any(pass, a, b);
        }
        const Buffer swap = a;
        a = b;
        b = swap;
    }
    return a;
}
