// Stand-in for SLASH's header: what the bridge uses of it, and no more.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <vrt/device.hpp>

namespace vrt {
class Kernel {
public:
    Kernel(Device device, const std::string &name);
    void write(uint32_t offset, uint32_t value);
    uint32_t read(uint32_t offset);
    MemoryConfig portMemoryConfig(std::string_view port) const;
};
} // namespace vrt
