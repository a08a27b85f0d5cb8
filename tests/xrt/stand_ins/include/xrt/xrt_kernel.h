// Stand-in for XRT's header: what the bridge uses of it, and no more. There is no read_register.
#pragma once

#include <string>

#include "xrt_device.h"

namespace xrt {
class kernel {
public:
    kernel(const device &device, const uuid &id, const std::string &name);
    ~kernel();
    int group_id(int argument) const;
};
} // namespace xrt
