// A libcuda whose one device is this CPU: enough of CUDA's driver to test how the worker launches its kernels, without a GPU. `.ci/cuda test`
// builds it. All other functions of the driver do nothing, and there are no other kernels.

#include <mutex>
#include <utility>

#include "threads.h"

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

struct Kernel {
    const char *name;
    void (*run)(void **arguments);
};

template <auto function> struct Of;
template <typename... Parameters, void (*function)(Parameters...)> struct Of<function> {
    template <size_t... I> static void run(void **arguments, std::index_sequence<I...>) { function(*(Parameters *)arguments[I]...); }
    static void run(void **arguments) { run(arguments, std::index_sequence_for<Parameters...>()); }
};

#define OF(kernel, T) {#kernel "_" #T, Of<kernel##_##T>::run}
#define ALL(T) OF(group_norm_parts, T), OF(group_norm, T), OF(add, T), OF(geglu, T), OF(transpose, T)
static const Kernel kernels[] = {ALL(f32), ALL(f16), ALL(bf16)};

static int somewhere; // all handles point to it

extern "C" {
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int) { return *device = 0, SUCCESS; }
// Such as whether there are pools of memory.
Result cuDeviceGetAttribute(int *value, int, int) { return *value = 1, SUCCESS; }
Result cuDevicePrimaryCtxRetain(void **context, int) { return *context = &somewhere, SUCCESS; }
Result cuCtxGetCurrent(void **context) { return *context = &somewhere, SUCCESS; }
Result cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = &somewhere, SUCCESS; }
Result cuStreamCreate(void **stream, unsigned) { return *stream = &somewhere, SUCCESS; }
Result cuEventCreate(void **event, unsigned) { return *event = &somewhere, SUCCESS; }

Result cuMemAllocAsync(u64 *address, size_t bytes, void *) {
    *address = (u64)aligned_alloc(256, (bytes + 256) / 256 * 256);
    if (!*address) return OUT_OF_MEMORY;
    return memset((void *)*address, 0xff, bytes), SUCCESS; // no numbers
}
Result cuMemFreeAsync(u64 address, void *) { return free((void *)address), SUCCESS; }
Result cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *) { return memcpy((void *)to, from, bytes), SUCCESS; }
Result cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *) { return memcpy(to, (const void *)from, bytes), SUCCESS; }
Result cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void *) { return memcpy((void *)to, (const void *)from, bytes), SUCCESS; }
Result cuMemsetD8Async(u64 to, unsigned char value, size_t bytes, void *) { return memset((void *)to, value, bytes), SUCCESS; }

Result cuModuleLoadData(void **module, const void *) { return *module = &somewhere, SUCCESS; }
Result cuModuleGetFunction(const Kernel **function, void *, const char *name) {
    for (const Kernel &kernel : kernels)
        if (!strcmp(kernel.name, name)) return *function = &kernel, SUCCESS;
    return NOT_FOUND;
}
Result cuLaunchKernel(const Kernel *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y, unsigned threads_z,
                      unsigned, void *, void **arguments, void **) {
    if (threads != THREADS || threads_y != 1 || threads_z != 1 || !x || !y || !z || y > 65535 || z > 65535) return INVALID_VALUE;
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    return launch({x, y, z}, [=] { function->run(arguments); }), SUCCESS;
}
}
