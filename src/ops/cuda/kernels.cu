// Kernels for operations that candle does in chains of small kernels, each of which reads and writes a whole tensor. The speed of all of
// them is bound by memory: they read and write 16 bytes at a time where they can.
//
// A kernel works with any grid: its blocks share the work. Tensors have fewer than 2^31 numbers, f32, f16 or bf16 in memory and f32 in
// registers. There are no headers, so that `tests/cuda` can run the same source on a CPU.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Threads of every block. A power of two, and a multiple of a tile's side.
const u32 THREADS = 512;

typedef float f32;
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

#ifdef __CUDACC__
__device__ inline float widen(f16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}
__device__ inline void narrow(float x, f16 &out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
#endif
__device__ inline float widen(f32 x) { return x; }
__device__ inline void narrow(float x, f32 &out) { out = x; }
__device__ inline float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ inline void narrow(float x, bf16 &out) {
    // Rounds to the nearest, and halfway to even. PTX has an instruction from sm_80 on.
    u32 bits = __float_as_uint(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
    out.bits = x != x ? 0x7fff : (u16)(rounded >> 16);
}

// Numbers that are loaded and stored together.
template <typename T, int N> struct alignas(N * sizeof(T)) Vector {
    T at[N];
};
// As many numbers as 16 bytes hold.
template <typename T> struct Wide {
    static const int N = 16 / sizeof(T);
};

template <int N, typename T> __device__ inline void load(const T *from, float (&to)[N]) {
    Vector<T, N> vector = *reinterpret_cast<const Vector<T, N> *>(from);
    for (int j = 0; j < N; j++) to[j] = widen(vector.at[j]);
}
template <int N, typename T> __device__ inline void store(const float (&from)[N], T *to) {
    Vector<T, N> vector;
    for (int j = 0; j < N; j++) narrow(from[j], vector.at[j]);
    *reinterpret_cast<Vector<T, N> *>(to) = vector;
}

// Whether vectors may be loaded from this address. A null pointer, of a tensor that is missing, is aligned.
__device__ inline bool is_aligned(const void *pointer) { return reinterpret_cast<u64>(pointer) % 16 == 0; }

// The names are those of `Activation`.
enum Function : u32 { NONE, SILU, GELU, QUICK_GELU, RELU };

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

__device__ inline float activated(float x, u32 function) {
    if (function == SILU) return x / (1.0f + expf(-x));
    if (function == GELU) return gelu(x);
    if (function == QUICK_GELU) return x / (1.0f + expf(-1.702f * x));
    // A NaN stays one.
    if (function == RELU) return x < 0.0f ? 0.0f : x;
    return x;
}

// The count of some numbers, their mean, and the sum of their squared distances from it.
struct Moments {
    float count, mean, squares;
};

// Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances": exact where the mean is large.
__device__ inline void join(Moments &all, const Moments &more) {
    if (more.count == 0) return;
    float count = all.count + more.count, share = more.count / count, distance = more.mean - all.mean;
    all.mean += distance * share;
    all.squares += more.squares + distance * distance * all.count * share;
    all.count = count;
}

// The moments of all threads of a block, joined.
__device__ inline Moments of_block(const Moments &own) {
    __shared__ Moments all[THREADS];
    all[threadIdx.x] = own;
    __syncthreads();
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) join(all[threadIdx.x], all[threadIdx.x + half]);
        __syncthreads();
    }
    return all[0];
}

// The moments of a thread's share of the numbers from `start` to `end`, a multiple of N.
template <int N, typename T> __device__ inline Moments moments(const T *x, u32 start, u32 end) {
    Moments all = {0, 0, 0};
    for (u32 i = start + threadIdx.x * N; i < end; i += THREADS * N) {
        float values[N];
        load<N>(x + i, values);
        Moments few = {N, 0, 0};
        for (int j = 0; j < N; j++) few.mean += values[j];
        few.mean *= 1.0f / N;
        for (int j = 0; j < N; j++) few.squares += (values[j] - few.mean) * (values[j] - few.mean);
        join(all, few);
    }
    return all;
}

// Where a block's part begins among `count` numbers in vectors of N; it ends where the next block's begins.
__device__ inline u32 part(u32 block, u32 count, u32 n) {
    u32 vectors = ((count + n - 1) / n + gridDim.y - 1) / gridDim.y;
    u64 start = (u64)block * vectors * n;
    return start < count ? (u32)start : count;
}

// Group normalization, first pass: the moments of parts of each group. A block along x for each group, a block along y for each part.
template <typename T> __device__ inline void group_norm_parts(const T *x, Moments *parts, u32 count) {
    const int N = Wide<T>::N;
    x += (u64)blockIdx.x * count;
    u32 start = part(blockIdx.y, count, N), end = part(blockIdx.y + 1, count, N);
    Moments own = count % N == 0 && is_aligned(x) ? moments<N>(x, start, end) : moments<1>(x, start, end);
    Moments all = of_block(own);
    if (threadIdx.x == 0) parts[blockIdx.x * gridDim.y + blockIdx.y] = all;
}

// How a group is normalized.
template <typename T> struct GroupNorm {
    const T *weight, *bias; // of the group's first channel
    u32 pixels;
    float mean, factor;
    u32 function;
};

template <int N, typename T> __device__ inline void normalize(const T *x, T *out, u32 start, u32 end, const GroupNorm<T> &norm) {
    for (u32 i = start + threadIdx.x * N; i < end; i += THREADS * N) {
        u32 channel = i / norm.pixels; // all N numbers are of one channel
        float values[N], factor = norm.factor * widen(norm.weight[channel]), shift = widen(norm.bias[channel]);
        load<N>(x + i, values);
        for (int j = 0; j < N; j++) values[j] = activated((values[j] - norm.mean) * factor + shift, norm.function);
        store<N>(values, out + i);
    }
}

// Group normalization (https://arxiv.org/abs/1803.08494) of (batch, channels, pixels), with an activation function. A block along x for each
// group of `count` numbers, of which a sample has `groups`, and any number of blocks along y. The moments of a group are those of its
// `n_parts` parts; where there are none, each block computes them itself.
template <typename T>
__device__ inline void group_norm(const T *x, T *out, const T *weight, const T *bias, const Moments *parts, u32 count, u32 pixels,
                                  u32 groups, u32 n_parts, float eps, u32 function) {
    const int N = Wide<T>::N;
    x += (u64)blockIdx.x * count;
    out += (u64)blockIdx.x * count;
    bool wide = pixels % N == 0 && is_aligned(x) && is_aligned(out);
    Moments own = {0, 0, 0};
    if (n_parts == 0) own = wide ? moments<N>(x, 0, count) : moments<1>(x, 0, count);
    for (u32 i = threadIdx.x; i < n_parts; i += THREADS) join(own, parts[blockIdx.x * n_parts + i]);
    Moments all = of_block(own);

    u32 channel = blockIdx.x % groups * (count / pixels);
    GroupNorm<T> norm = {weight + channel, bias + channel, pixels, all.mean, 1.0f / sqrtf(all.squares / all.count + eps), function};
    u32 start = part(blockIdx.y, count, N), end = part(blockIdx.y + 1, count, N);
    if (wide) normalize<N>(x, out, start, end, norm);
    else normalize<1>(x, out, start, end, norm);
}

// What is added to a tensor (batch, channels, pixels). Each may be missing.
template <typename T> struct Added {
    const T *bias;        // (channels)
    const T *sample_bias; // (samples, channels), each for `sample` numbers in a row
    const T *residual;    // of the tensor's shape
    u32 channels, pixels, sample;
    u32 function;
};

template <int N, typename T> __device__ inline void add(T *x, u32 count, const Added<T> &added) {
    for (u32 i = (blockIdx.x * THREADS + threadIdx.x) * N; i < count; i += gridDim.x * THREADS * N) {
        float values[N], residual[N];
        load<N>(x + i, values);
        if (added.residual) load<N>(added.residual + i, residual);
        u32 channel = i / added.pixels % added.channels, step = added.pixels == 1 ? 1 : 0;
        const T *of_sample = added.sample_bias ? added.sample_bias + i / added.sample * added.channels : nullptr;
        for (int j = 0; j < N; j++, channel += step) {
            if (added.bias) values[j] += widen(added.bias[channel]);
            if (of_sample) values[j] += widen(of_sample[channel]);
            if (added.residual) values[j] += residual[j];
            values[j] = activated(values[j], added.function);
        }
        store<N>(values, x + i);
    }
}

template <typename T> __device__ inline void add(T *x, u32 count, const Added<T> &added) {
    const int N = Wide<T>::N;
    // The numbers of a vector are of one channel, or of one pixel.
    bool fits = added.pixels % N == 0 || (added.pixels == 1 && added.channels % N == 0);
    if (fits && is_aligned(x) && is_aligned(added.residual)) add<N>(x, count, added);
    else add<1>(x, count, added);
}

// GEGLU (https://arxiv.org/abs/2002.05202): (rows, 2 * columns), with a bias for each column, to (rows, columns): the first half of a row
// times GELU of the second.
template <int N, typename T> __device__ inline void geglu(const T *x, T *out, const T *bias, u32 count, u32 columns) {
    for (u32 i = (blockIdx.x * THREADS + threadIdx.x) * N; i < count; i += gridDim.x * THREADS * N) {
        u32 row = i / columns, column = i % columns;
        const T *from = x + (u64)row * 2 * columns + column;
        float values[N], gates[N];
        load<N>(from, values);
        load<N>(from + columns, gates);
        for (int j = 0; j < N; j++)
            values[j] = (values[j] + widen(bias[column + j])) * gelu(gates[j] + widen(bias[columns + column + j]));
        store<N>(values, out + i);
    }
}

template <typename T> __device__ inline void geglu(const T *x, T *out, const T *bias, u32 count, u32 columns) {
    const int N = Wide<T>::N;
    if (columns % N == 0 && is_aligned(x) && is_aligned(out)) geglu<N>(x, out, bias, count, columns);
    else geglu<1>(x, out, bias, count, columns);
}

const u32 TILE = 32;

// (batch, rows, columns) to (batch, columns, rows), a block for each tile: along x those of the columns, along y those of the rows, along z
// the batch. A tile goes through shared memory, so that both sides are read and written in the order of their memory.
template <typename T> __device__ inline void transpose(const T *x, T *out, u32 rows, u32 columns) {
    __shared__ T tile[TILE][TILE + 1]; // one more, or a whole column would be in one bank
    u64 sample = (u64)blockIdx.z * rows * columns;
    u32 first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    u32 inner = threadIdx.x % TILE, outer = threadIdx.x / TILE;
    for (u32 row = outer; row < TILE; row += THREADS / TILE) {
        if (first_row + row < rows && first_column + inner < columns)
            tile[row][inner] = x[sample + (u64)(first_row + row) * columns + first_column + inner];
    }
    __syncthreads();
    for (u32 column = outer; column < TILE; column += THREADS / TILE) {
        if (first_row + inner < rows && first_column + column < columns)
            out[sample + (u64)(first_column + column) * rows + first_row + inner] = tile[inner][column];
    }
}

#define KERNELS(T)                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS) group_norm_parts_##T(const T *x, Moments *parts, u32 count) {                    \
        group_norm_parts(x, parts, count);                                                                                                 \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                  \
        group_norm_##T(const T *x, T *out, const T *weight, const T *bias, const Moments *parts, u32 count, u32 pixels, u32 groups,        \
                       u32 n_parts, float eps, u32 function) {                                                                             \
        group_norm(x, out, weight, bias, parts, count, pixels, groups, n_parts, eps, function);                                            \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) add_##T(T *x, const T *bias, const T *sample_bias, const T *residual, u32 count, \
                                                                  u32 channels, u32 pixels, u32 sample, u32 function) {                    \
        add(x, count, Added<T>{bias, sample_bias, residual, channels, pixels, sample, function});                                          \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) geglu_##T(const T *x, T *out, const T *bias, u32 count, u32 columns) {           \
        geglu(x, out, bias, count, columns);                                                                                               \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) transpose_##T(const T *x, T *out, u32 rows, u32 columns) {                       \
        transpose(x, out, rows, columns);                                                                                                  \
    }

KERNELS(f32)
KERNELS(f16)
KERNELS(bf16)
