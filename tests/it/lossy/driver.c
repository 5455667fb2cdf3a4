// A Vulkan driver for tests: another driver whose device is lost, or hangs, at the Nth submit.
//
// REAL_DRIVER  the library of the other driver
// LOSE_AT      the submit, counted from 1, at which the device is lost
// LOSE_NEXT    if set: every later device is lost too, at this submit
// HANG_AT      the submit, counted from 1, from which the device finishes nothing; a device that is opened later works
// AS_GPU       if set: the device says that it is a GPU, not a software driver
// COUNT_FILE   a file that gets the number of submits when the process ends

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TIMEOUT = 2, DEVICE_LOST = -4, DISCRETE_GPU = 2 };

typedef void (*Function)(void);
typedef int32_t Result;

static void *library, *device;
static long submits, lose_at, hang_at;
static int lost, hung;

static Result (*negotiate)(uint32_t *);
static Function (*instance_function)(void *, const char *);
static Function (*physical_device_function)(void *, const char *);
static Function (*device_function)(void *, const char *);
static Result (*real_submit)(void *, uint32_t, const void *, uint64_t);
static Result (*real_submit2)(void *, uint32_t, const void *, uint64_t);
static Result (*real_wait_fences)(void *, uint32_t, const void *, uint32_t, uint64_t);
static Result (*real_wait_semaphores)(void *, const void *, uint64_t);
static Result (*real_semaphore_value)(void *, uint64_t, uint64_t *);
static Result (*real_device_idle)(void *);
static Result (*real_queue_idle)(void *);
static Result (*real_create_device)(void *, const void *, const void *, void **);
static void (*real_properties)(void *, void *);
static void (*real_properties2)(void *, void *);

static void write_count(void) {
    FILE *file = getenv("COUNT_FILE") ? fopen(getenv("COUNT_FILE"), "w") : NULL;
    if (file) {
        fprintf(file, "%ld", submits);
        fclose(file);
    }
}

static void load(void) {
    if (library) return;
    library = dlopen(getenv("REAL_DRIVER"), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "lossy driver: %s\n", dlerror());
        exit(9);
    }
    negotiate = dlsym(library, "vk_icdNegotiateLoaderICDInterfaceVersion");
    instance_function = dlsym(library, "vk_icdGetInstanceProcAddr");
    physical_device_function = dlsym(library, "vk_icdGetPhysicalDeviceProcAddr");
    lose_at = getenv("LOSE_AT") ? atol(getenv("LOSE_AT")) : 0;
    hang_at = getenv("HANG_AT") ? atol(getenv("HANG_AT")) : 0;
    atexit(write_count);
}

static int lost_now(void) {
    submits++;
    if (!lost && lose_at > 0 && submits >= lose_at) {
        Result (*idle)(void *) = (Result(*)(void *))device_function(device, "vkDeviceWaitIdle");
        if (idle) idle(device);
        lost = 1;
        // The loader loads this library again for the next instance: the variable outlives its memory.
        setenv("LOSE_AT", getenv("LOSE_NEXT") ? getenv("LOSE_NEXT") : "0", 1);
    }
    return lost;
}

static int hung_now(void) {
    if (hang_at > 0 && submits >= hang_at) {
        hung = 1;
        hang_at = 0;
        setenv("HANG_AT", "0", 1);
    }
    return hung;
}

// The end of a wait on a GPU that hangs: the time is said to be over at once, and without a limit there is no end.
static Result out_of_time(uint64_t timeout) {
    while (timeout == UINT64_MAX) pause();
    return TIMEOUT;
}

static Result submit(void *queue, uint32_t count, const void *infos, uint64_t fence) {
    if (lost_now()) return DEVICE_LOST;
    return hung_now() ? 0 : real_submit(queue, count, infos, fence);
}
static Result submit2(void *queue, uint32_t count, const void *infos, uint64_t fence) {
    if (lost_now()) return DEVICE_LOST;
    return hung_now() ? 0 : real_submit2(queue, count, infos, fence);
}
static Result wait_fences(void *dev, uint32_t count, const void *fences, uint32_t all, uint64_t timeout) {
    if (hung) return out_of_time(timeout);
    return lost ? DEVICE_LOST : real_wait_fences(dev, count, fences, all, timeout);
}
static Result wait_semaphores(void *dev, const void *info, uint64_t timeout) {
    if (hung) return out_of_time(timeout);
    return lost ? DEVICE_LOST : real_wait_semaphores(dev, info, timeout);
}
static Result semaphore_value(void *dev, uint64_t semaphore, uint64_t *value) {
    return lost ? DEVICE_LOST : real_semaphore_value(dev, semaphore, value);
}
static Result device_idle(void *dev) {
    if (hung) return out_of_time(UINT64_MAX);
    return lost ? DEVICE_LOST : real_device_idle(dev);
}
static Result queue_idle(void *queue) {
    if (hung) return out_of_time(UINT64_MAX);
    return lost ? DEVICE_LOST : real_queue_idle(queue);
}
static Result create_device(void *physical, const void *info, const void *allocator, void **made) {
    hung = 0;
    return real_create_device(physical, info, allocator, made);
}

// `at` is the offset of VkPhysicalDeviceProperties, whose fifth number is the type of the device.
static void as_gpu(void *properties, size_t at) {
    uint32_t type = DISCRETE_GPU;
    if (getenv("AS_GPU")) memcpy((char *)properties + at + 4 * sizeof(uint32_t), &type, sizeof type);
}
static void properties(void *physical, void *into) {
    real_properties(physical, into);
    as_gpu(into, 0);
}
static void properties2(void *physical, void *into) {
    real_properties2(physical, into);
    // After the type of the structure and the pointer to the next one.
    as_gpu(into, 2 * sizeof(void *));
}

static Function lossy_device_function(void *dev, const char *name);

// Stands in front of the functions that can report a lost device, or wait for one.
static Function wrapped(const char *name, Function function) {
    if (!function) return function;
#define WRAP(vulkan, real, mine)                                                                                         \
    if (!strcmp(name, vulkan)) {                                                                                         \
        real = (void *)function;                                                                                         \
        return (Function)mine;                                                                                           \
    }
    WRAP("vkGetDeviceProcAddr", device_function, lossy_device_function)
    WRAP("vkQueueSubmit", real_submit, submit)
    WRAP("vkQueueSubmit2", real_submit2, submit2)
    WRAP("vkQueueSubmit2KHR", real_submit2, submit2)
    WRAP("vkWaitForFences", real_wait_fences, wait_fences)
    WRAP("vkWaitSemaphores", real_wait_semaphores, wait_semaphores)
    WRAP("vkWaitSemaphoresKHR", real_wait_semaphores, wait_semaphores)
    WRAP("vkGetSemaphoreCounterValue", real_semaphore_value, semaphore_value)
    WRAP("vkGetSemaphoreCounterValueKHR", real_semaphore_value, semaphore_value)
    WRAP("vkDeviceWaitIdle", real_device_idle, device_idle)
    WRAP("vkQueueWaitIdle", real_queue_idle, queue_idle)
    WRAP("vkCreateDevice", real_create_device, create_device)
    WRAP("vkGetPhysicalDeviceProperties", real_properties, properties)
    WRAP("vkGetPhysicalDeviceProperties2", real_properties2, properties2)
    WRAP("vkGetPhysicalDeviceProperties2KHR", real_properties2, properties2)
    return function;
}

static Function lossy_device_function(void *dev, const char *name) {
    device = dev;
    return wrapped(name, device_function(dev, name));
}

Result vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
    load();
    return negotiate(version);
}

Function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
    load();
    return wrapped(name, instance_function(instance, name));
}

Function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
    load();
    return physical_device_function ? wrapped(name, physical_device_function(instance, name)) : NULL;
}
