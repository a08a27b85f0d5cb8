// Stand-in for XRT's header: what the bridge uses of it, and no more.
#pragma once

#include <cstdint>
#include <string>

#include "xrt/xrt_device.h"

namespace xrt {
class ip {
public:
    ip() = default;
    ip(const device &device, const uuid &id, const std::string &name);
    void write_register(uint32_t offset, uint32_t data);
    uint32_t read_register(uint32_t offset) const;
};
} // namespace xrt
