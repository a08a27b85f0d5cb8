// Stand-in for XRT's header: what the bridge uses of it, and no more.
#pragma once

#include <string>

#include "xrt_uuid.h"

namespace xrt {
class device {
public:
    explicit device(unsigned int index);
    uuid load_xclbin(const std::string &path);
};
} // namespace xrt
