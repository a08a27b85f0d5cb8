// Stand-in for SLASH's header: what the bridge uses of it, and no more.
#pragma once

#include <memory>
#include <string>

#include <vrt/allocator/allocator.hpp>
#include <vrt/utils/platform.hpp>

namespace vrt {

namespace impl {
class Device {
public:
    Allocator *getAllocator() { return &allocator_; }
    vrtd::Device &getVrtdDevice() { return device_; }

private:
    Allocator allocator_;
    vrtd::Device device_;
};
} // namespace impl

class Device {
public:
    Device(const std::string &bdf, const std::string &vrtbin);
    Platform getPlatform();
    std::shared_ptr<impl::Device> getHandle() const { return handle_; }
    void cleanup();

private:
    std::shared_ptr<impl::Device> handle_;
};

} // namespace vrt
