/* A Vulkan driver that passes every call on to another driver, and fails as the file $VULKAN_FAULT says while it is there:
   "lost"    vkQueueSubmit returns VK_ERROR_DEVICE_LOST, as after a reset of the GPU
   "memory"  vkAllocateMemory returns VK_ERROR_OUT_OF_DEVICE_MEMORY

   $VULKAN_DRIVER is the other driver's library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_DEVICE_MEMORY = -2, DEVICE_LOST = -4 }; /* VkResult */

typedef void (*Function)(void);
typedef Function (*GetProcAddr)(void *object, const char *name);
typedef int (*Call)(void *object, const void *a, const void *b, void *c);
typedef int (*Submit)(void *queue, unsigned count, const void *submits, void *fence);

static GetProcAddr real_device_proc;
static Submit real_submit;
static Call real_allocate;

static int is_failing(const char *fault) {
    char text[16] = "";
    FILE *file = fopen(getenv("VULKAN_FAULT"), "r");
    if (file == NULL) return 0;
    if (fgets(text, sizeof text, file) == NULL) text[0] = 0;
    fclose(file);
    return strcmp(text, fault) == 0;
}

static int submit(void *queue, unsigned count, const void *submits, void *fence) {
    return is_failing("lost") ? DEVICE_LOST : real_submit(queue, count, submits, fence);
}

static int allocate(void *device, const void *info, const void *allocator, void *memory) {
    return is_failing("memory") ? OUT_OF_DEVICE_MEMORY : real_allocate(device, info, allocator, memory);
}

static Function device_proc(void *device, const char *name);

static Function wrap(const char *name, Function real) {
    if (real == NULL) return NULL;
    if (strcmp(name, "vkGetDeviceProcAddr") == 0) return real_device_proc = (GetProcAddr)real, (Function)device_proc;
    if (strcmp(name, "vkQueueSubmit") == 0) return real_submit = (Submit)real, (Function)submit;
    if (strcmp(name, "vkAllocateMemory") == 0) return real_allocate = (Call)real, (Function)allocate;
    return real;
}

static Function device_proc(void *device, const char *name) { return wrap(name, real_device_proc(device, name)); }

static void *of_driver(const char *name) {
    static void *driver;
    if (driver == NULL) driver = dlopen(getenv("VULKAN_DRIVER"), RTLD_NOW | RTLD_LOCAL);
    return dlsym(driver, name);
}

Function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
    return wrap(name, ((GetProcAddr)of_driver(__func__))(instance, name));
}

Function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
    return ((GetProcAddr)of_driver(__func__))(instance, name);
}

int vk_icdNegotiateLoaderICDInterfaceVersion(unsigned *version) {
    return ((int (*)(unsigned *))of_driver(__func__))(version);
}
