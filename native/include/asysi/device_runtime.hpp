// The functions of an accelerator's runtime under their CUDA names, taken from the library that the process has loaded.
//
// CUDA is not needed to build this, and any library that exports these names can replace it.
#pragma once

#include <cstddef>
#include <string>
#include <type_traits>

#include <dlfcn.h>

#include "asysi/error.hpp"

namespace asysi {

/// A call of the runtime failed, or the runtime lacks a function.
struct DeviceError : RingError {
    using RingError::RingError;
};

struct DeviceRuntime {
    // Values of the runtime's enumerations and flags, which are part of the CUDA ABI.
    static constexpr int success = 0, not_ready = 600;
    static constexpr int device_to_host = 2;
    static constexpr unsigned non_blocking = 1, disable_timing = 2;
    static constexpr int capture_thread_local = 1;

    int (*set_device)(int) = nullptr;
    int (*get_device)(int*) = nullptr;
    int (*priorities)(int* least, int* greatest) = nullptr;
    int (*stream_create)(void** stream, unsigned flags, int priority) = nullptr;
    int (*stream_destroy)(void* stream) = nullptr;
    int (*stream_query)(void* stream) = nullptr;
    int (*stream_wait)(void* stream, void* event, unsigned flags) = nullptr;
    int (*event_create)(void** event, unsigned flags) = nullptr;
    int (*event_destroy)(void* event) = nullptr;
    int (*event_record)(void* event, void* stream) = nullptr;
    int (*event_query)(void* event) = nullptr;
    int (*copy)(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width, std::size_t height,
                int kind, void* stream) = nullptr;
    int (*exchange_capture_mode)(int* mode) = nullptr;
    int (*last_error)() = nullptr;
    const char* (*describe)(int error) = nullptr;

    /// Looks up the functions in the loaded library `path`. Throws DeviceError if it is not loaded or lacks one.
    static DeviceRuntime load(const std::string& path) {
        void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (library == nullptr) throw DeviceError("this process has not loaded " + path);
        DeviceRuntime found;
        const auto take = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            if (function == nullptr) throw DeviceError(path + " has no " + name);
        };
        take(found.set_device, "cudaSetDevice");
        take(found.get_device, "cudaGetDevice");
        take(found.priorities, "cudaDeviceGetStreamPriorityRange");
        take(found.stream_create, "cudaStreamCreateWithPriority");
        take(found.stream_destroy, "cudaStreamDestroy");
        take(found.stream_query, "cudaStreamQuery");
        take(found.stream_wait, "cudaStreamWaitEvent");
        take(found.event_create, "cudaEventCreateWithFlags");
        take(found.event_destroy, "cudaEventDestroy");
        take(found.event_record, "cudaEventRecord");
        take(found.event_query, "cudaEventQuery");
        take(found.copy, "cudaMemcpy2DAsync");
        take(found.exchange_capture_mode, "cudaThreadExchangeStreamCaptureMode");
        take(found.last_error, "cudaGetLastError");
        take(found.describe, "cudaGetErrorString");
        return found;
    }

    /// Records an event of `device` on a stream of it, and leaves the thread's current device as it was. Handles such as 0, the
    /// default stream, mean a stream of whichever device is current: another device's takes the event for nobody's.
    [[nodiscard]] int record_on(int device, void* event, void* stream) const {
        int current = device;
        if (const int status = get_device(&current); status != success) return status;
        if (current == device) return event_record(event, stream);
        if (const int status = set_device(device); status != success) return status;
        const int recorded = event_record(event, stream);
        const int restored = set_device(current);
        return recorded != success ? recorded : restored;
    }

    /// Throws DeviceError unless `status` is success.
    void expect(int status, const char* what) const {
        if (status != success) throw DeviceError(message(status, what));
    }
    [[nodiscard]] std::string message(int status, const char* what) const {
        return std::string(what) + " answered " + std::to_string(status) + " (" + describe(status) + ")";
    }
};

}  // namespace asysi
