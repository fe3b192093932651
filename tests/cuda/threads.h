// The CUDA kernels on a CPU: the source that a GPU gets, and what CUDA has and C++ lacks. The threads of a block are fibers that take turns
// from one __syncthreads to the next, in one order and then in the reverse order: a thread that reads what another has not written yet gives
// a wrong result in one of them.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
static dim3 threadIdx, blockIdx, gridDim;
static void __syncthreads();
static float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
struct f16;
static float widen(f16 x);
static void narrow(float x, f16 &out);

#include "../../src/ops/cuda/kernels.cu"

static float widen(f16 x) {
    int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY) : std::ldexp(exponent ? 1024 + fraction : fraction, (exponent ? exponent : 1) - 25);
    return x.bits >> 15 ? -size : size;
}
static void narrow(float x, f16 &out) {
    int exponent = std::isfinite(x) && x != 0 ? std::max(std::ilogb(x), -14) : -14;
    // At least 1024 units, except of the smallest numbers. Rounding up to 2048 gives the next exponent, as it should.
    double units = std::nearbyint(std::ldexp(std::fabs((double)x), 10 - exponent));
    double bits = units + (exponent + 14) * 1024.0;
    unsigned rounded = std::isnan(x) ? 0x7fff : bits < 0x7c00 ? (unsigned)bits : 0x7c00;
    out.bits = (u16)(rounded | (std::signbit(x) ? 0x8000 : 0));
}

// Blocks one after the other, each of THREADS fibers.
static ucontext_t scheduler, fibers[THREADS];
static u32 running;
static bool done[THREADS];
static std::function<void()> kernel;

static void __syncthreads() { swapcontext(&fibers[running], &scheduler); }
static void fiber() {
    kernel();
    done[running] = true;
}
static void run_block() {
    static std::vector<char> stacks((size_t)THREADS << 16);
    for (u32 i = 0; i < THREADS; i++) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = &stacks[(size_t)i << 16];
        fibers[i].uc_stack.ss_size = 1 << 16;
        fibers[i].uc_link = &scheduler;
        makecontext(&fibers[i], fiber, 0);
        done[i] = false;
    }
    u32 finished = 0;
    for (bool forward = true; finished < THREADS; forward = !forward) {
        u32 arrived = 0;
        for (u32 i = 0; i < THREADS; i++) {
            running = forward ? i : THREADS - 1 - i;
            if (done[running]) continue;
            threadIdx.x = running;
            swapcontext(&scheduler, &fibers[running]);
            (done[running] ? finished : arrived)++;
        }
        if (arrived > 0 && finished > 0) puts("some threads wait for others that have ended"), exit(1);
    }
}
static void launch(dim3 grid, std::function<void()> function) {
    gridDim = grid;
    kernel = function;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block();
}
