// Stand-in for XRT's header: what the bridge uses of it, and no more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "xrt_device.h"

enum xclBOSyncDirection { XCL_BO_SYNC_BO_TO_DEVICE, XCL_BO_SYNC_BO_FROM_DEVICE };

namespace xrt {
using memory_group = uint32_t;

class bo {
public:
    enum class flags : uint32_t { normal };
    bo(const device &device, size_t size, flags flags, memory_group group);
    uint64_t address() const;
    void write(const void *data, size_t size, size_t seek);
    void read(void *data, size_t size, size_t skip);
    void sync(xclBOSyncDirection direction, size_t size, size_t offset);

private:
    uint64_t address_;
    std::vector<uint8_t> host_;
};
} // namespace xrt
